"""A service within bound.py: nothing that it started outlives it, however it or its parent ends."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mlflow_server import bound

# A service with a child and a grandchild of its own, in sessions of their own, that ignore what asks them to end.
PROGRAM = """
import os, signal, subprocess, sys, time
child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)'], start_new_session=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
time.sleep(600)
"""
PARENT = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(600)"


@pytest.fixture
def service(tmp_path):
    """A folder with one service, and what starts it under a parent."""
    made = {"command": [sys.executable, "-c", PROGRAM], "environment": {"ONE": "1"}, "after": [], "stop": "SIGTERM", "orphaned": "SIGKILL", "user": "", "grace": 0.5, "folder": str(tmp_path)}
    (tmp_path / "services.json").write_text(json.dumps({"programs": {"one": made}}))
    started = []

    def start() -> subprocess.Popen:
        line = [sys.executable, bound.__file__, str(tmp_path), "one"]
        started.append(subprocess.Popen([sys.executable, "-c", PARENT, *line]))
        wait_for(lambda: len(marked(tmp_path)) == 3)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
    bound.sweep(bound.mark(tmp_path, ""))


def marked(folder) -> list[int]:
    """The service's processes: those that carry its mark."""
    return [pid for pid in bound.processes() if bound.marked_with(pid, bound.mark(folder, "")) and bound.running(pid)]


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def wrapper(folder) -> int:
    return next(pid for pid in bound.processes() if f"{folder}\0one".encode() in (bound.Path(f"/proc/{pid}/cmdline").read_bytes() if bound.running(pid) else b"") and bound.parent(pid) != os.getpid())


def test_it_ends_with_its_parent(service, tmp_path):
    parent = service()
    parent.kill()
    wait_for(lambda: not marked(tmp_path))


def test_it_ends_with_what_was_asked_to_end(service, tmp_path):
    service()
    os.kill(wrapper(tmp_path), signal.SIGTERM)
    wait_for(lambda: not marked(tmp_path))


def test_what_it_started_ends_when_it_dies(service, tmp_path):
    service()
    below = bound.descendants(wrapper(tmp_path))
    assert len(below) == 3
    os.kill(below[0], signal.SIGKILL)
    wait_for(lambda: not marked(tmp_path))


def test_what_even_two_kills_leave_is_found_at_the_next_start(service, tmp_path):
    parent = service()
    left = set(marked(tmp_path))
    for pid in (parent.pid, wrapper(tmp_path)):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: len(marked(tmp_path)) < 3)  # the service dies with the wrapper, by the kernel
    assert marked(tmp_path), "nothing is left to be found"
    service()
    assert not left & set(marked(tmp_path))


def test_a_service_waits_for_what_it_needs(tmp_path):
    made = {"command": [sys.executable, "-c", "open('ran', 'w')"], "environment": {}, "after": [["test", "-e", str(tmp_path / "there")]], "stop": "SIGTERM", "orphaned": "SIGKILL", "user": "", "grace": 1, "folder": str(tmp_path)}
    (tmp_path / "services.json").write_text(json.dumps({"programs": {"one": made}}))
    process = subprocess.Popen([sys.executable, bound.__file__, str(tmp_path), "one"])
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "there").touch()
    assert process.wait(20) == 1, "a service that ends by itself has failed"
    assert (tmp_path / "ran").exists()


def test_marks_of_one_service_are_not_those_of_another(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={**os.environ, bound.MARK: bound.mark(tmp_path, "one")})
    try:
        wait_for(lambda: bound.marked_with(process.pid, bound.mark(tmp_path, "one")))
        assert bound.sweep(bound.mark(tmp_path, "two")) == 0
        assert bound.sweep(bound.mark(tmp_path / "other", "")) == 0
        assert bound.running(process.pid)
        assert bound.sweep(bound.mark(tmp_path, "one")) == 1
    finally:
        process.kill()
        process.wait()
