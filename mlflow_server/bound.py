"""Runs one of the services, so that nothing it starts outlives it: `python bound.py FOLDER NAME`, as supervisord does.

FOLDER/services.json (for its owner alone, since it holds secrets) says what to run. The program dies with this process, this process with
its parent, and all that they started with either. What even `kill -9` of both at once leaves behind carries a mark in its environment, by
which the next start finds and ends it. Only the standard library is imported, so that this process is small.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

MARK = "WARMSTART_SERVICE"
GRACE = 5.0  # seconds for what a service left behind to end by itself
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main(folder: Path, name: str) -> int:
    """Runs the service to its end and gives its exit code."""
    control(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == 1:  # the parent died before we asked
        return 1
    control(PR_SET_CHILD_SUBREAPER, 1)
    asked = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: asked.append(number))
    service = json.loads((folder / "services.json").read_text())["programs"][name]
    sweep(mark(folder, name))
    for probe in service["after"]:
        while not asked and subprocess.run(probe, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode:
            time.sleep(0.5)
    if asked:
        return 0
    process = launch(service, mark(folder, name))
    deadline = None
    while process.poll() is None:
        if asked and deadline is None:
            process.send_signal(signal.Signals[service["stop"]])
            deadline = time.monotonic() + service["grace"]
        if deadline is not None and time.monotonic() > deadline:
            process.kill()
        time.sleep(0.1)
    end(descendants(os.getpid()), service["grace"])
    return 0 if asked else process.returncode or 1  # a service has no end of its own


def launch(service: dict, marked: str) -> subprocess.Popen:
    """Starts the program, as the user that it asks for; the kernel ends it when this process dies."""

    def bind() -> None:  # after the change of user, which would undo it
        control(PR_SET_PDEATHSIG, signal.Signals[service["orphaned"]])

    user = {"user": service["user"], "group": service["user"], "extra_groups": []} if service["user"] else {}
    environment = {**os.environ, **service["environment"], MARK: marked}
    return subprocess.Popen(service["command"], cwd=service["folder"], env=environment, stdin=subprocess.DEVNULL, preexec_fn=bind, start_new_session=True, **user)


def mark(folder: Path, name: str) -> str:
    return f"{folder}:{name}"


def sweep(marked: str) -> int:
    """Ends all processes whose mark begins with `marked`, this one and its ancestors aside; gives how many there were."""
    spared = {os.getpid()} | ancestors(os.getpid())
    found = [pid for pid in processes() if pid not in spared and marked_with(pid, marked)]
    end(found, GRACE)
    return len(found)


def end(pids: list[int], grace: float) -> None:
    """Asks processes to end, and kills those that have not within `grace` seconds."""
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, GRACE)):
        for pid in pids:
            with suppress(OSError):
                os.kill(pid, number)
        deadline = time.monotonic() + patience
        while pids and time.monotonic() < deadline:
            reap()
            pids = [pid for pid in pids if running(pid)]
            time.sleep(0.05)


def reap() -> None:
    """Takes note of children that have ended: those of others are ours where these died before them."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def descendants(pid: int) -> list[int]:
    """All processes below one, deepest last."""
    parents: dict[int, list[int]] = {}
    for one in processes():
        with suppress(OSError, ValueError):
            parents.setdefault(parent(one), []).append(one)
    found, waiting = [], [pid]
    while waiting:
        below = parents.get(waiting.pop(0), [])
        found += below
        waiting += below
    return found


def ancestors(pid: int) -> set[int]:
    found: set[int] = set()
    with suppress(OSError, ValueError):
        while pid > 1:
            pid = parent(pid)
            found.add(pid)
    return found


def processes() -> list[int]:
    return [int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit()]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def running(pid: int) -> bool:
    """Whether there is such a process that has not ended; one that has ended and waits for its parent's notice does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def marked_with(pid: int, marked: str) -> bool:
    try:
        return f"\0{MARK}={marked}".encode() in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended, or is another user's
        return False


def control(option: int, value: int) -> None:
    """prctl(2), where there is one."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, int(value))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
