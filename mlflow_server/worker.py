"""A Prefect worker for this machine, with the automations that notice dead runs and go on with them: `python -m mlflow_server.worker POOL RUNS PORT`."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

SILENT = timedelta(seconds=90)  # without a heartbeat, of which there is one each 30 s
TAG = "warmstart"
"""Of deployments whose runs may be started again: their stages go on from their checkpoints."""


def automations() -> list[Any]:
    """What a server of one's own must be given: silent runs are crashed, and crashed runs of our deployments are scheduled again."""
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
        AutomationCore(
            name="warmstart: crashed runs go on",
            description="A crashed run of a deployment of Warmstart is scheduled again; its stages go on from their last checkpoints.",
            trigger=EventTrigger(
                match=run,
                match_related={"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"},
                expect={"prefect.flow-run.Crashed"},
                for_each={"prefect.resource.id"},
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            ),
            actions=[ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message="Goes on from its last checkpoints.")],
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
    """Tells Prefect that runs which a worker of this machine had, and whose processes are gone, have crashed; without this it waits for their heartbeats."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    going = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])))
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=going):
            if run.labels.get("prefect.worker.name") == name() and not _runs(run.infrastructure_pid, str(run.id)):
                client.set_flow_run_state(run.id, Crashed(message=f"Its process {run.infrastructure_pid} is gone."))


def name() -> str:
    """Of this machine's worker, the same whenever it is started."""
    return f"warmstart-{socket.gethostname()}"


def _runs(pid: str | None, run: str) -> bool:
    """Whether the process of that number is the flow run's, and no later one."""
    try:
        return f"\0PREFECT__FLOW_RUN_ID={run}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def main(pool: str, runs: int, port: int) -> None:
    """Becomes the worker. How many run at once is the pool's limit: a worker's own is not free yet when a run that crashed is scheduled again, and ends it."""
    install(pool, runs)
    reconcile()
    os.environ |= {"PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1", "PREFECT_WORKER_WEBSERVER_PORT": str(port)}
    line = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process", "--name", name()]
    os.execv(line[0], [*line, "--with-healthcheck"])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
