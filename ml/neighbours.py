"""Sums over ranks that share a machine, in memory that they share; sockets between each two of them say when it may be read.

gloo passes each exchange through threads that sleep: one or two milliseconds, where a small network has twenty in an update, one for each batch
normalisation on either way. Here the thread that needs the sum writes and reads itself, and looks for a while before it sleeps (docs/decisions/0027).
"""

from __future__ import annotations

import mmap
import os
import select
import shutil
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

SPIN = 0.02
"""Seconds of looking before a rank sleeps, longer than ranks are apart within a step: to wake a core takes as long as a layer."""
MOST = 16
"""Ranks, above which each two of them would be too many."""
HEADER = struct.Struct("<QQ")
"""What a rank tells the others: the number of the part of a sum that lies in its memory, and its bytes."""
KIND = socket.SOCK_SEQPACKET
"""A message comes as a whole."""
PART = 1 << 20
"""Bytes that are added up at once. Each rank has room for two parts: when it writes one, nobody reads that before the last any more."""
SHAPES = 256
"""Kinds of parts whose places in the memory are kept: after a layer has emptied the caches, to find one takes as long as to fill it."""


class Neighbours:
    """This rank's sockets, by the other rank, and all ranks' `memory`. A rank that is silent for `silence` seconds, or ends, ends a sum with a RuntimeError."""

    def __init__(self, rank: int, sockets: dict[int, socket.socket], memory: mmap.mmap, silence: float):
        self.rank, self.sockets, self.silence, self.parts = rank, sockets, silence, 0
        self.memory_N2P = torch.frombuffer(memory, dtype=torch.uint8).view(len(sockets) + 1, 2, PART)
        self.rooms = lru_cache(SHAPES)(self._rooms)
        for one in sockets.values():
            one.setblocking(False)

    def sum(self, total: Tensor) -> None:
        """Makes `total`, on the CPU and of one shape in all ranks, the sum over them in place: the same to the bit in each."""
        flat = total.contiguous().view(-1)
        for part in _parts(flat):
            first, second, *others = self._shown(part)
            torch.add(first, second, out=part)
            for one in others:
                part += one
        if flat.data_ptr() != total.data_ptr():
            total.copy_(flat.view_as(total))

    def stack(self, own: Tensor) -> Tensor:
        """(N, ...) of what each of the N ranks has, on the CPU and of one shape in all."""
        parts = [torch.stack(self._shown(part)) for part in _parts(own.contiguous().view(-1))]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).view(len(self.sockets) + 1, *own.shape)

    def _shown(self, part: Tensor) -> tuple[Tensor, ...]:
        """That part of all ranks, by rank, until the next but one is asked for."""
        rooms = self.rooms(self.parts % 2, part.dtype, len(part))
        rooms[self.rank].copy_(part)
        self._meet(part.nbytes)
        return rooms

    def _rooms(self, half: int, dtype: torch.dtype, count: int) -> tuple[Tensor, ...]:
        return self.memory_N2P[:, half, : count * dtype.itemsize].view(dtype).unbind()

    def _meet(self, size: int) -> None:
        """Tells the others that this rank's part lies there, and waits until theirs do."""
        self.parts += 1
        header = HEADER.pack(self.parts, size)
        for other in self.sockets:
            self._asked(other, lambda one: one.send(header))
        waiting, began = [*self.sockets], time.monotonic()
        while waiting:
            for other in [*waiting]:
                if (said := self._asked(other, lambda one: one.recv(HEADER.size))) is not None:
                    if said != header:
                        found = f"part and bytes {HEADER.unpack(said)}, not {HEADER.unpack(header)}"
                        raise RuntimeError(f"rank {other} adds up something else than rank {self.rank}: {found}")
                    waiting.remove(other)
            if not waiting:
                return
            if (waited := time.monotonic() - began) > self.silence:
                raise RuntimeError(f"rank {waiting[0]} has been silent for {self.silence:g} s")
            if waited < SPIN:
                os.sched_yield()
            else:
                select.select([self.sockets[other] for other in waiting], [], [], self.silence - waited)

    def _asked(self, other: int, act: Callable[[socket.socket], int | bytes]) -> int | bytes | None:
        """What `act` gives of that rank's socket; None where it has to wait."""
        try:
            found = act(self.sockets[other])
        except BlockingIOError:
            return None
        except ConnectionError:
            found = b""
        if found == b"":
            raise RuntimeError(f"rank {other} has ended")
        return found

    def close(self) -> None:
        for one in self.sockets.values():
            one.close()


def _parts(flat: Tensor) -> Sequence[Tensor]:
    return [flat] if flat.nbytes <= PART else flat.split(PART // flat.element_size())


def find(rank: int, count: int, silence: float, told: Callable[[Callable[[], str]], str], agreed: Callable[[bool], bool]) -> Neighbours | None:
    """The other ranks, where all are on this machine; otherwise None, in each of them.

    `told(make)` is what `make` gives in rank 0, in all ranks; `agreed(yes)` whether all say so.
    """
    if not 1 < count <= MOST:
        return None
    folder = Path(told(lambda: tempfile.mkdtemp(prefix="warmstart-")))
    sockets: dict[int, socket.socket] = {}
    shared: list[mmap.mmap] = []
    try:
        with socket.socket(socket.AF_UNIX, KIND) as door:
            here = agreed(_succeeds(lambda: (door.bind(str(folder / str(rank))), door.listen(count))))
            here = here and agreed(_succeeds(lambda: sockets.update({other: _connected(folder / str(other), rank) for other in range(rank)})))
            for _ in range(rank + 1, count if here else 0):  # they are at the door
                one, _ = door.accept()
                sockets[one.recv(1)[0]] = one
        here = here and agreed(rank > 0 or _succeeds(lambda: shared.append(_given(sockets, count))))
        if here and rank > 0:
            shared.append(_taken(sockets[0], count))
        agreed(True)  # nobody needs the folder any more
    finally:
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
    if here:
        return Neighbours(rank, dict(sorted(sockets.items())), shared[0], silence)
    for one in sockets.values():
        one.close()
    return None


def _given(sockets: dict[int, socket.socket], count: int) -> mmap.mmap:
    """Memory for all ranks, which the others get too: of no file system, as that for shared memory is small in many a container."""
    descriptor = os.memfd_create("warmstart")
    try:
        os.ftruncate(descriptor, count * 2 * PART)
        for one in sockets.values():
            socket.send_fds(one, [b"memory"], [descriptor])
        return mmap.mmap(descriptor, count * 2 * PART)
    finally:
        os.close(descriptor)


def _taken(first: socket.socket, count: int) -> mmap.mmap:
    _, (descriptor, *_), *_ = socket.recv_fds(first, len(b"memory"), 1)
    try:
        return mmap.mmap(descriptor, count * 2 * PART)
    finally:
        os.close(descriptor)


def _succeeds(act: Callable[[], object]) -> bool:
    try:
        act()
    except (OSError, AttributeError):  # another machine has no such folder; another system no such sockets or memory, or names of any length
        return False
    return True


def _connected(path: Path, rank: int) -> socket.socket:
    one = socket.socket(socket.AF_UNIX, KIND)
    one.connect(str(path))
    one.send(bytes([rank]))
    return one
