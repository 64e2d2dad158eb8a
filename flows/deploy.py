"""Deployments of one recipe on a Prefect server: `warmstart deploy conf/image/digits.yaml --cron "0 3 * * 1"`.

| deployment                          | what a run of it does                                                        |
| ----------------------------------- | ---------------------------------------------------------------------------- |
| pretrain-finetune/NAME              | the whole pipeline; scheduled where asked for                                |
| pretrain-finetune/NAME-from-backbone| fine-tunes from the registered backbone, without pretraining                  |
| pretrain/NAME                       | pretraining alone                                                            |
| predict/NAME                        | scores files with the champion                                               |
| watch/NAME                          | looks for drift and new data, and triggers the pipeline                      |
| promote/NAME, rollback/NAME         | moves the champion                                                           |

Deployed again, they are changed in place. Runs work in the folder that they were deployed from. Those that died are scheduled again by the worker
of `warmstart up`, a bounded number of times, and their stages go on from their checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flows.session import SPINS
from ml.contracts import InputError
from ml.masking import mask
from ml.recipe import Recipe, parse
from mlflow_server.worker import TAG
from tasks.tracking import database

ANCHOR = datetime(2024, 1, 1, tzinfo=UTC)
"""Intervals are counted from here, so that deploying again moves no run."""
ENVIRONMENT = {database.PATIENCE: "3600", "GOMP_SPINCOUNT": SPINS}
"""Of deployments' runs: a night's shall survive what somebody mends within the hour, and leave the cores to the servers beside it."""
ONCE = timedelta(seconds=60)
"""In which a run's end is told once: one that is cancelled crashes first, as its process is asked to end."""


@dataclass(frozen=True)
class Schedule:
    """When the pipeline runs by itself: cron's five fields in a time zone, or every so many seconds; neither, only when triggered."""

    cron: str = ""
    timezone: str = "UTC"
    interval: float = 0

    def make(self) -> list[Any]:
        """Prefect's schedules. Raises InputError for what is none."""
        from prefect.client.schemas.actions import DeploymentScheduleCreate
        from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

        if self.cron and self.interval:
            raise InputError("a schedule is --cron or --interval, not both")
        try:
            if self.cron:
                return [DeploymentScheduleCreate(schedule=CronSchedule(cron=self.cron, timezone=self.timezone), active=True)]
            if self.interval:
                return [DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(seconds=self.interval), anchor_date=ANCHOR, timezone=self.timezone), active=True)]
        except ValueError as error:
            raise InputError(f"the schedule cannot be used: {' '.join(str(error).split())}. Expected five fields of cron (0 3 * * 1: Mondays at 3) and a zone such as Europe/Berlin.") from None
        return []


@dataclass(frozen=True)
class Planned:
    """One deployment: where its flow is, and what its runs are given unless they say otherwise."""

    entrypoint: str
    name: str
    description: str
    parameters: dict[str, Any] = field(default_factory=dict)
    scheduled: bool = False
    watched: bool = False


def plan(recipe: Recipe) -> Iterator[Planned]:
    """The deployments of a recipe."""
    name, model = recipe.name, recipe.registration.model or recipe.name
    content = recipe.model_dump(mode="json")
    yield Planned("flows.pipeline.pipeline", name, "Preprocess, pretrain, split, fine-tune, evaluate and register.", {"recipe": content}, scheduled=True)
    if recipe.pretraining.enabled:
        yield Planned("flows.pretrain.pretrain", name, "Pretraining alone; the pipeline with the same settings finds it done.", {"recipe": content})
        started = {**content, "weights": f"models:/{model}-backbone@champion", "pretraining": {**content["pretraining"], "enabled": False}}
        parse(started)
        yield Planned("flows.pipeline.pipeline", f"{name}-from-backbone", f"Fine-tunes from the registered backbone {model}-backbone@champion.", {"recipe": started})
    yield Planned("flows.predict.predict", name, "Scores files with the champion.", {"model_uri": f"models:/{model}@champion"})
    yield Planned("flows.watch.watch", name, "Compares what the champion serves with what it was tested on, and retrains when that drifts or new data come.", {"recipe": content}, watched=True)
    yield Planned("flows.promotion.promote", name, "Makes a version the champion.", {"model": model})
    yield Planned("flows.promotion.rollback", name, "Makes the previous champion the champion again.", {"model": model})


def schedulable() -> None:
    """Raises InputError where there is no Prefect server that stays: a temporary one would forget the deployments."""
    import prefect.settings

    from tasks.prefect_server import PATIENCE
    from tasks.reach import wait_for

    url = prefect.settings.get_current_settings().api.url
    if not url:
        raise InputError("deployments need a Prefect server that stays: `warmstart up`, or set PREFECT_API_URL")
    wait_for(f"{url.rstrip('/')}/health", f"Prefect at {mask(url)}", "Start it (`warmstart up`).", PATIENCE)


def deploy(recipe: Recipe, pool: str, schedule: Schedule, watching: Schedule, timeout: float = 0, notify: str = "", paused: bool = False) -> list[str]:
    """Makes or changes the deployments and gives their names, FLOW/NAME. Raises InputError.

    A run that takes longer than `timeout` seconds is cancelled. `notify` is a block KIND/NAME, of a webhook or one that notifies: it is told when a run fails, crashes or takes too long.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    schedules, looks = schedule.make(), watching.make()
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(pool)
        except ObjectNotFound:
            raise InputError(f"there is no work pool {pool!r}: `warmstart up` makes one, or `prefect work-pool create {pool} --type process`") from None
        told = _block(client, notify) if notify else None
        made = []
        for planned in plan(recipe):
            name, key = _apply(planned, recipe, pool, schedules if planned.scheduled else looks if planned.watched else [], paused)
            made.append(name)
            _automate(client, name, key, timeout, told)
    return made


def _apply(planned: Planned, recipe: Recipe, pool: str, schedules: list[Any], paused: bool) -> tuple[str, Any]:
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.deployments.runner import RunnerDeployment

    one = RunnerDeployment.from_entrypoint(
        planned.entrypoint,
        planned.name,
        parameters=planned.parameters,
        description=planned.description,
        tags=[TAG, recipe.name],
        schedules=schedules,
        paused=paused,
        # What comes while another run works waits for its end.
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
        work_pool_name=pool,
        job_variables={"working_dir": str(Path.cwd()), "env": ENVIRONMENT},
    )
    return f"{one.flow_name}/{one.name}", one.apply()


def _automate(client: Any, name: str, key: Any, timeout: float, told: Any) -> None:
    """Replaces the automations of one deployment."""
    from prefect.events.actions import CallWebhook, CancelFlowRun, SendNotification
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    run = {"match": {"prefect.resource.id": "prefect.flow-run.*"}, "match_related": {"prefect.resource.role": "deployment", "prefect.resource.id": f"prefect.deployment.{key}"}}
    ended = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Crashed", "Cancelled", "Cancelling")}
    wanted = {}
    if timeout:
        trigger = EventTrigger(**run, after={"prefect.flow-run.Running"}, expect=ended, for_each={"prefect.resource.id"}, posture=Posture.Proactive, threshold=1, within=timedelta(seconds=timeout))
        wanted[f"warmstart: {name} takes too long"] = (trigger, [CancelFlowRun()])
    if told is not None:
        trigger = EventTrigger(**run, expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.Cancelled"}, for_each={"prefect.resource.id"}, posture=Posture.Reactive, threshold=1, within=ONCE)
        kind, block = told
        words = "flow.name ~ '/' ~ flow_run.name ~ ' is ' ~ flow_run.state.name ~ ': ' ~ (flow_run.state.message or '')"
        if kind == "webhook":
            action = CallWebhook(block_document_id=block, payload=f'{{"text": {{{{ ({words}) | tojson }}}}}}')
        else:
            action = SendNotification(block_document_id=block, subject=f"warmstart: {name}", body=f"{{{{ {words} }}}}")
        wanted[f"warmstart: {name} failed"] = (trigger, [action])
    for title in (f"warmstart: {name} takes too long", f"warmstart: {name} failed"):
        for old in client.read_automations_by_name(title):
            client.delete_automation(old.id)
        if title in wanted:
            trigger, actions = wanted[title]
            client.create_automation(AutomationCore(name=title, trigger=trigger, actions=actions))


def _block(client: Any, notify: str) -> tuple[str, Any]:
    """The kind and the id of a block KIND/NAME."""
    from prefect.exceptions import ObjectNotFound

    kind, _, name = notify.partition("/")
    try:
        return kind, client.read_block_document_by_name(name, kind).id
    except (ObjectNotFound, ValueError):
        raise InputError(f"there is no block {notify!r}: make one in Prefect's UI (Blocks), and name it KIND/NAME, such as webhook/team or slack-webhook/team") from None
