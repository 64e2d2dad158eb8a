"""`warmstart up`, `deploy`, `status`, `down` as a user's shell has them: a schedule fires, a drift trains, failures are told, nothing is left."""

import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from team import wait_for

from flows.deploy import ENVIRONMENT
from mlflow_server import postgresql, services, supervision

pytestmark = [pytest.mark.servers, pytest.mark.timeout(900)]


def test_the_port_of_serve_stays_free(team):
    assert 8080 not in json.loads((team.services / "services.json").read_text())["ports"].values()


def test_up_again_changes_nothing(team):
    before = sorted(team.processes())
    team.run("up")
    assert sorted(team.processes()) == before
    found = team.status()
    assert found["ready"] and found["database"] == ("PostgreSQL" if postgresql.installed() else "SQLite")
    assert team.command(team.folder, "up", "--runs", "7").code == 2


def test_what_is_secret_is_its_owners_alone(team):
    for path in team.services.iterdir():
        if path.is_file() and path.name not in ("lock",):
            assert path.stat().st_mode & 0o077 == 0, path


def test_a_schedule_fires_and_leaves_a_new_version(team):
    said = team.run("deploy", "tiny.yaml", "--interval", "15")
    assert [line.split("'")[1] for line in said.splitlines()] == [f"{flow}/tiny" for flow in ("pretrain-finetune", "pretrain")] + ["pretrain-finetune/tiny-from-backbone", "predict/tiny", "watch/tiny", "promote/tiny", "rollback/tiny"]
    try:
        version = wait_for(lambda: team.mlflow("model-versions/search?filter=name%3D'tiny'").get("model_versions"))[0]
        wait_for(lambda: "champion" in str(team.mlflow("registered-models/get?name=tiny")["registered_model"].get("aliases")))
    finally:
        team.run("deploy", "tiny.yaml", "seed=1")  # without a schedule
    assert version["status"] == "READY"
    scheduled = team.prefect("flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}})
    assert scheduled and scheduled[0]["auto_scheduled"] and scheduled[0]["created_by"]["type"] == "SCHEDULE"
    summary = next(one for one in team.prefect("artifacts/filter", {}) if one["type"] == "markdown")
    assert team.clients()["MLFLOW_TRACKING_URI"] in summary["data"]
    assert {one["key"] for one in team.prefect("artifacts/filter", {}) if one["type"] == "progress"} >= {"pretrain", "finetune"}
    experiment = team.mlflow("experiments/get-by-name?experiment_name=tiny")["experiment"]["experiment_id"]
    runs = team.mlflow("runs/search", {"experiment_ids": [experiment], "filter": "tags.`warmstart.kind` = 'pipeline'"})["runs"]
    tags = {tag["key"]: tag["value"] for tag in runs[-1]["data"]["tags"]}
    assert tags["warmstart.prefect"].startswith(team.status()["prefect"]) and tags["warmstart.prefect"] in tags["mlflow.note.content"]


def test_a_drift_of_what_was_served_triggers_the_pipeline_once(team, pictures):
    negatives = []
    for path in sorted(pictures.rglob("*.png")):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(buffer := io.BytesIO(), "PNG")
        negatives.append(buffer.getvalue())
    (team.folder / "samples").mkdir()
    columns = {"time": pa.array([datetime.now(UTC)] * len(negatives), pa.timestamp("us", "UTC")), "image": pa.array(negatives, pa.binary())}
    pq.write_table(pa.table(columns), team.folder / "samples" / "samples-0.parquet")
    team.run("deploy", "tiny.yaml", "--watch", "0 6 * * *")
    found = team.prefect("deployments/name/pretrain-finetune/tiny")
    deployment = found["id"]
    assert found["job_variables"]["env"] == ENVIRONMENT
    assert [one["schedule"]["cron"] for one in team.prefect("deployments/name/watch/tiny")["schedules"]] == ["0 6 * * *"]

    def triggered() -> list[dict]:
        return [one for one in team.prefect("flow_runs/filter", {}) if one["deployment_id"] == deployment and (one["idempotency_key"] or "").startswith("watch-")]

    for _ in range(2):
        look = team.start("watch/tiny")
        wait_for(lambda look=look: team.flow_run(look)["state_type"] == "COMPLETED")
    assert len(triggered()) == 1
    wait_for(lambda: triggered()[0]["state_type"] == "COMPLETED")
    summary = [one["data"] for one in team.prefect("artifacts/filter", {}) if one["key"] == "tiny-watch"]
    assert len(summary) == 2 and all("inputs have drifted" in one for one in summary)


def test_its_ports_stay_its_own_while_a_service_is_down(team, tmp_path):
    """Another folder's group, which would like the same ones, is planned with others."""
    had = json.loads((team.services / "services.json").read_text())["ports"]
    wanted = services.Wanted(database=f"sqlite:///{tmp_path}/mlflow.db", prefect_database=f"sqlite+aiosqlite:///{tmp_path}/prefect.db")
    with supervision.asking(team.services) as supervisor:
        supervisor.stopProcess("mlflow")
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", had["mlflow"]))  # nothing else keeps it
        other = services._group(tmp_path, wanted, {"ports": had}, print)["ports"]
        supervisor.startProcess("mlflow")
    assert not set(other.values()) & set(had.values())
    wait_for(lambda: team.status()["ready"])


def test_down_leaves_nothing_and_up_finds_all(team):
    before = team.mlflow("model-versions/search?filter=name%3D'tiny'")["model_versions"]
    where = {name: team.status()[name] for name in ("mlflow", "prefect")}
    team.run("down")
    assert not team.processes()
    team.run("status", code=3)
    assert "no services" in team.run("down")
    team.run("up")
    assert team.mlflow("model-versions/search?filter=name%3D'tiny'")["model_versions"] == before
    assert {name: team.status()[name] for name in where} == where
    assert len(team.prefect("deployments/filter", {})) >= 6


@pytest.fixture
def told():
    """The URL of a webhook, and what it is told."""
    found = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            found.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words):
            """Nothing on standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", found
    server.shutdown()
    thread.join()
    server.server_close()


BLOCKS = {
    "webhook": "from prefect.blocks.webhook import Webhook; Webhook(url={url!r}).save('ops', overwrite=True)",
    "custom-webhook": "from prefect.blocks.notifications import CustomWebhookNotificationBlock as Hook; "
    "Hook(name='ops', url={url!r}, json_data={{'text': '{{{{subject}}}}: {{{{body}}}}'}}).save('ops', overwrite=True)",
}


def make_block(team, kind: str, url: str) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", BLOCKS[kind].format(url=url)], env={**os.environ, **team.clients()}, check=True, capture_output=True)


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_run_that_fails_is_told(team, told, kind):
    url, found = told
    make_block(team, kind, url)
    team.run("deploy", "tiny.yaml", "name=gone", "data.source.options.path=/nowhere \"at all\"", "--notify", f"{kind}/ops")
    run = team.start("pretrain-finetune/gone")
    wait_for(lambda: found)
    assert team.flow_run(run)["state_type"] == "FAILED"
    text = json.loads(found[0])["text"]
    assert "pretrain-finetune/gone" in text and "is Failed: " in text and '/nowhere "at all"' in text


def test_a_run_that_takes_too_long_is_cancelled_and_told_once(team, told):
    url, found = told
    content = yaml.safe_load((team.folder / "tiny.yaml").read_text())
    content["pretraining"]["fit"] = {"samples": 10**8, "batch_size": 16}
    (team.folder / "endless.yaml").write_text(yaml.safe_dump(content | {"name": "endless"}))
    make_block(team, "webhook", url)
    team.run("deploy", "endless.yaml", "--timeout", "10", "--notify", "webhook/ops")
    run = team.start("pretrain/endless")
    wait_for(lambda: team.flow_run(run)["state_type"] == "CANCELLED")
    experiment = team.mlflow("experiments/get-by-name?experiment_name=endless")["experiment"]["experiment_id"]
    wait_for(lambda: not [one for one in team.mlflow("runs/search", {"experiment_ids": [experiment]})["runs"] if one["info"]["status"] == "RUNNING"])
    wait_for(lambda: found)
    time.sleep(10)  # in which its other states would have been told
    assert len(found) == 1 and "pretrain/endless" in json.loads(found[0])["text"]


def test_nothing_listens_beyond_this_machine(team):
    addresses = {connection.laddr.ip for pid in team.processes() for connection in psutil.Process(pid).net_connections() if connection.status == psutil.CONN_LISTEN}
    assert addresses == {"127.0.0.1"}
