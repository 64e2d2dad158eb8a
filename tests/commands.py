"""A command in a process of its own: while it runs, and how it ended."""

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).parent / "warmstart")
"""As a user's shell has it."""


def clean_environment() -> dict[str, str]:
    """This process's environment without what configures servers, and with one thread for each computation."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "WARMSTART_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "", "COLUMNS": "80"}


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict:
        """What it printed, which must be one JSON object, as `run --json` does."""
        assert self.code == 0, self.err
        return json.loads(self.out, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))

    def refused(self, words: list[str]) -> None:
        """Checks that it ended with exit code 2 and one message that holds the words."""
        assert self.code == 2, (self.code, self.err)
        assert self.out == ""
        assert "Traceback" not in self.err
        assert [line[:6] for line in self.err.splitlines() if "error" in line.lower()[:20]] == ["error:"], self.err
        for word in words:
            assert word in self.err[self.err.index("error:") :], (word, self.err)


def newest_step(folder: Path) -> int:
    """Of the checkpoints of the pretraining in a folder that was not at its end."""
    work = folder / ".warmstart" / "work"
    return max((int(path.parent.name.split("-")[1]) for path in work.glob("pretrain-*/checkpoints/step-*/manifest.json")), default=0)


class Running:
    """A command that runs in a process of its own, or has ended."""

    def __init__(self, process, output: Path, errors: Path):
        self.process, self._output, self._errors = process, output, errors

    @property
    def out(self) -> str:
        return self._output.read_text() if self._output.exists() else ""

    @property
    def err(self) -> str:
        return self._errors.read_text() if self._errors.exists() else ""

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = 240) -> Done:
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            pytest.fail(f"the command did not end in {seconds} s; it said:\n{self.err}")
        return Done(self.process.exitcode, self.out, self.err)
