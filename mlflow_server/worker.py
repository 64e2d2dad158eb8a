"""A Prefect worker for this machine, which notices dead runs and has them go on: `python -m mlflow_server.worker POOL RUNS PORT`."""

from __future__ import annotations

import hashlib
import logging
import os
import runpy
import socket
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tasks.tracking.flow_run import ATTEMPTS

SILENT = timedelta(seconds=90)  # without a heartbeat, of which there is one each 30 s
FORGOTTEN = timedelta(days=1)  # after which a crashed run is not started again
PENDING = timedelta(seconds=60)  # that a process may take to start
EVERY = 10.0  # seconds between two looks at the runs
SETTLED = timedelta(seconds=20)
"""After which a crash is told for good: the worker reports a dead process twice, the second time when it has looked for the flow's hooks."""
TAG = "warmstart"
"""Of deployments whose runs may be started again: their stages go on from their checkpoints."""


def automations() -> list[Any]:
    """What a server of one's own must be given: silent runs are crashed."""
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.states import StateType

    run = {"prefect.resource.id": "prefect.flow-run.*"}
    beat, ends = "prefect.flow-run.heartbeat", {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    return [
        AutomationCore(
            name="warmstart: silent runs have crashed",
            description="A flow run that sends no heartbeat any more is dead: its process was killed, or its machine is gone.",
            trigger=EventTrigger(match=run, after={beat}, expect={beat, *ends}, for_each={"prefect.resource.id"}, posture=Posture.Proactive, threshold=1, within=SILENT),
            actions=[ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message="No heartbeat any more: its process is dead.")],
        ),
    ]


def install(pool: str, runs: int) -> None:
    """Makes the work pool, which runs so many flow runs at once, and the automations; or brings them to what they should be."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectAlreadyExists

    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=pool, type="process", concurrency_limit=runs))
        except ObjectAlreadyExists:
            client.update_work_pool(pool, WorkPoolUpdate(concurrency_limit=runs))
        for wanted in automations():
            # Told apart by a digest: what is changed forgets the heartbeats that it has seen, and with them the runs that it watches.
            wanted.description += f" [{hashlib.sha256(wanted.model_dump_json().encode()).hexdigest()[:12]}]"
            found = client.read_automations_by_name(wanted.name)
            if [one.description for one in found] != [wanted.description]:
                for one in found:
                    client.delete_automation(one.id)
                client.create_automation(wanted)


def reconcile() -> None:
    """Runs of this machine's worker whose processes are gone have crashed, and crashed runs of our deployments are scheduled again.

    Asked again and again, since a server that was away has missed what happened meanwhile. A report of a crash that came so late that it met the next
    attempt is taken back: that one works, and a third beside it would only wait.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType, FlowRunFilterTags
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.states import AwaitingRetry, Crashed, Running

    def those(*types: StateType, tags: list[str] | None = None) -> list[Any]:
        wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))), tags=FlowRunFilterTags(all_=tags) if tags else None)
        return client.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.START_TIME_DESC)

    with get_client(sync_client=True) as client:
        for run in those(StateType.RUNNING, StateType.PENDING, StateType.CANCELLING):
            # One that is pending has its process's number only when that has started: until then, in a second attempt, the first one's.
            settled = run.state_type != StateType.PENDING or run.state.timestamp < datetime.now(UTC) - PENDING
            if settled and _works(run) is False:
                client.set_flow_run_state(run.id, Crashed(message=f"Its process {run.infrastructure_pid} is gone."))
        now = datetime.now(UTC)
        for run in those(StateType.CRASHED, tags=[TAG]):
            if not SETTLED < now - run.state.timestamp < FORGOTTEN:
                continue
            if _works(run):
                client.set_flow_run_state(run.id, Running(message="Its process works."))
            elif run.run_count <= ATTEMPTS:
                client.set_flow_run_state(run.id, AwaitingRetry(message="Goes on from its last checkpoints."))


def watch() -> None:
    """`reconcile` for as long as the worker lives."""
    log = logging.getLogger(__name__)
    while True:
        time.sleep(EVERY)
        try:
            reconcile()
        except Exception as error:  # the server is away: it is asked again
            log.debug("Prefect: %s", error)


def _works(run: Any) -> bool | None:
    """Whether the flow run's process is there, and no later one of its number; None where this machine's worker has started none."""
    if run.labels.get("prefect.worker.name") != name() or not run.infrastructure_pid:
        return None
    try:
        return f"\0PREFECT__FLOW_RUN_ID={run.id}\0".encode() in Path(f"/proc/{run.infrastructure_pid}/environ").read_bytes()
    except OSError:
        return False


def share(runs: int) -> dict[str, str]:
    """What gives each of several runs its part of the cores: trainings that want all of them at once slow each other down manyfold."""
    if runs == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // runs))}


def name() -> str:
    """Of this machine's worker, the same whenever it is started."""
    return f"warmstart-{socket.gethostname()}"


def main(pool: str, runs: int, port: int) -> None:
    """Becomes the worker. How many run at once is the pool's limit: a worker's own is not free yet when a run that crashed is scheduled again, and ends it."""
    # First: Prefect reads its settings when it is imported, and this sign of life would be told to everybody, at a port that others have.
    os.environ |= {"PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1", "PREFECT_WORKER_WEBSERVER_PORT": str(port), **share(runs)}
    install(pool, runs)
    threading.Thread(target=watch, name="reconcile", daemon=True).start()
    sys.argv = ["prefect", "worker", "start", "--pool", pool, "--type", "process", "--name", name(), "--with-healthcheck"]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
