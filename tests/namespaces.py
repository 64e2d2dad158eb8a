"""A network and a name of its own for some processes of a test, as a machine or a container has them: Linux's namespaces, which need root."""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

TRIAL = ["unshare", "--uts", "--mount", "--net", "true"]
MISSING = shutil.which("ip") is None or shutil.which("unshare") is None or subprocess.run(TRIAL, capture_output=True, check=False).returncode != 0
needed = pytest.mark.skipif(MISSING, reason="needs root and iproute2, for network namespaces")
ENTER = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Namespace:
    """Starts commands in `folder`, in a network where nothing but the loopback interface is, and by the name `name`; `hosts` is what /etc/hosts says."""

    def __init__(self, name: str, folder: Path, hosts: str, environment: Mapping[str, str]):
        self.name, self.space, self.folder, self.environment = name, f"ws{os.getpid()}-{name}", folder, dict(environment)
        self.started: list[subprocess.Popen] = []
        self._hosts = folder / f"hosts-{name}"
        self._hosts.write_text(f"127.0.0.1 localhost\n{hosts}")
        ip("netns", "add", self.space)
        ip("-n", self.space, "link", "set", "lo", "up")

    def start(self, *command: object, environment: Mapping[str, str] | None = None, **more: object) -> subprocess.Popen:
        words = ["ip", "netns", "exec", self.space, "unshare", "--uts", "--mount", "sh", "-c", ENTER, "sh", self.name, self._hosts, *command]
        given = {"cwd": self.folder, "env": {**self.environment, **(environment or {})}, "text": True} | more
        self.started.append(subprocess.Popen([str(word) for word in words], **given))
        return self.started[-1]

    def run(self, *command: object, seconds: float = 300, **more: object) -> str:
        """What a command that must succeed prints."""
        process = self.start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more)
        out = process.communicate(timeout=seconds)[0]
        assert process.returncode == 0, out
        return out

    def remove(self) -> None:
        """Kills all that is in it."""
        for pid in subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, text=True, check=False).stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "del", self.space], capture_output=True, check=False)
        for process in self.started:
            process.communicate()
