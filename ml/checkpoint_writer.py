"""Checkpoints written beside the training, which waits only while its state is copied.

The copies lie in buffers that each checkpoint uses again, and one thread writes them: at most one write is in flight.
"""

from __future__ import annotations

import copy
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ml import checkpoint

SHARE = 0.01  # of the time, at most, goes into checkpoints


class Writer:
    """Writes a training's checkpoints into `folder`, `every` so many seconds at most (0: always). As a context it ends with its last write; what failed is raised by `check`, `save` and `wait`."""

    def __init__(self, folder: Path, every: float):
        self.folder, self.every = folder, every
        self.stall = 0.0
        """Seconds that the training waited for its last checkpoint."""
        self.seconds = 0.0
        """Of a core's time that the last finished write took."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[float] | None = None
        self._buffers: dict[tuple, Tensor] = {}

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()

    def due(self, passed: float, all_cores: bool) -> bool:
        """Whether to make a checkpoint, `passed` seconds after the last one: not above SHARE of the time, of which a training that has `all_cores` gives
        a core to what writes."""
        if not self.every:
            return True
        cost = self.stall + (self.seconds if all_cores else 0.0)
        return passed >= max(self.every, cost / SHARE) and not self._busy

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copies `state`, after the write in flight, and has it written; see `checkpoint.save`."""
        began = time.perf_counter()
        self.wait()
        self._writing = self._thread.submit(self._write, step, self._copied(state))
        self.stall = time.perf_counter() - began

    def check(self) -> None:
        """Raises what the last write raised, where it has ended; never waits."""
        if not self._busy:
            self.wait()

    @property
    def _busy(self) -> bool:
        return self._writing is not None and not self._writing.done()

    def wait(self) -> None:
        """Waits for the write in flight, and raises what it raised."""
        writing, self._writing = self._writing, None
        if writing is not None:
            self.seconds = writing.result()

    def _write(self, step: int, state: dict[str, Any]) -> float:
        began = time.thread_time()
        checkpoint.save(self.folder, step, state)
        return time.thread_time() - began

    def _copied(self, state: dict[str, Any]) -> dict[str, Any]:
        copies: dict[tuple, tuple[Tensor, Tensor]] = {}

        def copied(value: Any, place: tuple) -> Any:
            if isinstance(value, Tensor):
                # Tied weights have several names and one memory: it is copied, and written, once.
                same = (value.data_ptr(), value.shape, value.stride(), value.dtype)
                if same not in copies:
                    copies[same] = (self._buffer(value, place), value)
                return copies[same][0]
            if isinstance(value, dict):
                found = copy.copy(value)  # with the versions that a module's state carries
                found.update((name, copied(one, (*place, name))) for name, one in value.items())
                return found
            if isinstance(value, list | tuple):
                return type(value)(copied(one, (*place, number)) for number, one in enumerate(value))
            return value

        found = copied(state, ())
        if copies:
            buffers, values = zip(*copies.values(), strict=True)
            torch._foreach_copy_(buffers, values, non_blocking=True)
            if any(value.is_cuda for value in values):
                torch.cuda.synchronize()
        return found

    def _buffer(self, value: Tensor, place: tuple) -> Tensor:
        """Where the tensor at `place` was copied to before, or a new one of its kind."""
        held = self._buffers.get(place)
        if held is None or (held.shape, held.stride(), held.dtype) != (value.shape, value.stride(), value.dtype):
            held = self._buffers[place] = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda, requires_grad=False)
        return held
