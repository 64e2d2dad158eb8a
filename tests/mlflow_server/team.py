"""A folder with `warmstart up`, as a user's shell has it: its commands, its servers, its processes."""

import json
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from mlflow_server import bound


def status(url: str, method: str = "GET", content: dict | None = None, **headers: str) -> int:
    """The status of a request."""
    request = urllib.request.Request(url, json.dumps(content or {}).encode() if method != "GET" else None, {"Content-Type": "application/json", **headers}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


class Team:
    """The folder of a team, its commands, and what its servers say."""

    def __init__(self, folder: Path, outside) -> None:
        self.folder, self.command = folder, outside
        self.services = folder / ".warmstart" / "services"

    def run(self, *arguments, code: int = 0) -> str:
        done = self.command(self.folder, *arguments)
        assert done.code == code, done.out + done.err
        return done.out

    def status(self) -> dict:
        return json.loads(self.command(self.folder, "status", "--json").out)

    def clients(self) -> dict:
        return json.loads((self.services / "services.json").read_text())["clients"]

    def prefect(self, path: str, content: dict | None = None):
        return self._ask(f"{self.clients()['PREFECT_API_URL']}/{path}", content)

    def mlflow(self, path: str, content: dict | None = None):
        return self._ask(f"{self.clients()['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/{path}", content)

    def _ask(self, url: str, content: dict | None):
        """The answer, asked again where the server is busy, as its own clients do: on SQLite that happens."""
        request = urllib.request.Request(url, None if content is None else json.dumps(content).encode(), {"Content-Type": "application/json"})
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code != 503 or time.monotonic() > deadline:
                    raise
            time.sleep(1)

    def start(self, deployment: str) -> str:
        """Triggers a run of a deployment and gives its id."""
        found = self.prefect(f"deployments/name/{deployment}")
        return self.prefect(f"deployments/{found['id']}/create_flow_run", {})["id"]

    def flow_run(self, run: str) -> dict:
        return self.prefect(f"flow_runs/{run}")

    def processes(self) -> list[int]:
        """All that the group has running."""
        return [pid for pid in bound.processes() if bound.running(pid) and bound.marked_with(pid, bound.mark(self.services, ""))]

    def running(self, part: str) -> list[int]:
        """Those of them whose command line holds the words."""
        found = []
        for pid in self.processes():
            with suppress(OSError):
                if part in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode():
                    found.append(pid)
        return found

    def wrapper(self, name: str) -> int:
        return next(pid for pid in bound.processes() if bound.running(pid) and Path(f"/proc/{pid}/cmdline").read_bytes().endswith(f"{self.services}\0{name}\0".encode()))


def wait_for(condition, seconds: float = 240):
    """What the condition gives, once that is true."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError, StopIteration, KeyError):
            if found := condition():
                return found
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.3)
