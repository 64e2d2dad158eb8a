"""The services of compose.yaml, with its commands, environments, names and health checks, but as processes: containers need an engine.

They have a network of their own, in which each service's name is the loopback address; what the images would bring is not tried.
"""

import re
import secrets
import sys
import time
from pathlib import Path

import namespaces
import pytest
import yaml
from commands import clean_environment

from mlflow_server import postgresql

pytestmark = [pytest.mark.servers, pytest.mark.timeout(900), namespaces.needed]
PLACE = Path(postgresql.__file__).parent
SERVICES = ("mlflow", "prefect", "worker")


@pytest.fixture
def content() -> dict:
    """The file, with passwords in the place of the variables that its example lists."""
    names = [line.removesuffix("=") for line in (PLACE / "compose.env.example").read_text().splitlines() if line.endswith("=")]
    given = {name: secrets.token_hex(24) for name in names}
    text = re.sub(r"\$\{(\w+)(?::\?[^}]*)?\}", lambda match: given[match[1]], (PLACE / "compose.yaml").read_text())
    return yaml.safe_load(text)


@pytest.fixture
def host(content, place, installed):
    environment = {**clean_environment(), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin:/usr/sbin", "DO_NOT_TRACK": "1"}
    one = namespaces.Namespace("compose", place, "".join(f"127.0.0.1 {name}\n" for name in content["services"]), environment)
    yield one
    one.remove()
    for log in sorted(place.glob("*/log")):  # which are shown where the test failed
        print(f"--- {log.parent.name}\n{log.read_text()[-4000:]}")


def healthy(host: namespaces.Namespace, check: list[str], **more) -> None:
    deadline = time.monotonic() + 200
    while host.start(*check, **more).wait() != 0:
        assert time.monotonic() < deadline, check
        time.sleep(1)


def start_postgresql(host, service: dict, sql: str) -> None:
    """What the image of PostgreSQL does with its environment and its folder of scripts."""
    user, password = service["environment"]["POSTGRES_USER"], service["environment"]["POSTGRES_PASSWORD"]
    binaries = max(postgresql.installed().items(), key=lambda one: float(one[0]))[1]
    data = host.folder / "data"
    data.mkdir()
    (host.folder / "password").write_text(password)
    host.run("chown", "postgres", data, host.folder / "password")
    asone = ("runuser", "-u", "postgres", "--")
    host.run(*asone, binaries / "initdb", "-D", data, "-U", user, "--pwfile", host.folder / "password", "-A", "scram-sha-256", "-E", "UTF8", "--locale", "C.UTF-8", cwd="/")
    host.start(*asone, binaries / "postgres", "-D", data, "-k", "", "-c", "listen_addresses=127.0.0.1", cwd="/")
    environment = {"PGPASSWORD": password, "PGHOST": "127.0.0.1", "PGDATABASE": "postgres"}
    healthy(host, [binaries / "pg_isready", *service["healthcheck"]["test"][2:]], environment=environment)
    host.run(binaries / "psql", "-U", user, "-v", "ON_ERROR_STOP=1", "-c", sql.strip().splitlines()[0], "-c", sql.strip().splitlines()[1], environment=environment)


def test_they_find_each_other_and_do_the_job(content, host, tiny):
    services = content["services"]
    start_postgresql(host, services["postgresql"], content["configs"]["databases"]["content"])
    for name in SERVICES:
        folder = host.folder / name
        folder.mkdir()
        service = services[name]
        command = service["command"].replace("/data", str(folder)).split()
        environment = {key: value.replace("/data", str(folder)) for key, value in service["environment"].items()}
        services[name]["environment"] = environment
        with (folder / "log").open("w") as log:
            host.start(*command, environment=environment, cwd=folder, stdout=log, stderr=log)
        if "healthcheck" in service:
            healthy(host, service["healthcheck"]["test"][1:])
    worker = {"environment": services["worker"]["environment"], "cwd": host.folder / "worker"}
    made = host.run("warmstart", "deploy", tiny, **worker)
    assert "pretrain-finetune/tiny" in made
    said = host.run("prefect", "deployment", "run", "pretrain-finetune/tiny", "--watch", "--watch-timeout", "500", seconds=550, **worker)
    assert "finished successfully" in said, said
    assert "champion" in host.run("warmstart", "models", "tiny", **worker)
    refused = host.start(sys.executable, "-c", "import urllib.request; urllib.request.urlopen('http://mlflow:5000/api/2.0/mlflow/experiments/get?experiment_id=0')")
    assert refused.wait() != 0, "without a password"
