"""Sums over ranks that share a machine, by sockets between each two of them.

gloo passes each exchange through threads that sleep: one or two milliseconds, where a small network has twenty in an update, one for each batch
normalisation on either way. Here the thread that needs the sum sends and reads itself, and looks for a while before it sleeps (docs/decisions/0027).
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

SPIN = 0.02
"""Seconds of looking before a rank sleeps, longer than ranks are apart within a step: to wake a core takes as long as a layer."""
MOST = 16
"""Ranks, above which each two of them would be too many."""
HEADER = struct.Struct("<QQ")
"""Before what is sent: the number of the sum, and its bytes."""
BUFFER = 4 << 20


class Neighbours:
    """This rank's sockets, by the other rank. A rank that is silent for `silence` seconds, or ends, ends a sum with a RuntimeError."""

    def __init__(self, rank: int, sockets: dict[int, socket.socket], silence: float):
        self.rank, self.sockets, self.silence, self.sums = rank, sockets, silence, 0
        for one in sockets.values():
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            one.setblocking(False)

    def sum(self, total: Tensor) -> None:
        """Makes `total`, on the CPU and of one shape in all ranks, the sum over them in place: the same to the bit in each."""
        self.sums += 1
        own = total.detach().contiguous()
        parts = {self.rank: own, **self._exchange(own)}
        first, *others = (parts[number] for number in sorted(parts))
        found = first + others[0]
        for one in others[1:]:
            found += one
        total.copy_(found)

    def _exchange(self, own: Tensor) -> dict[int, Tensor]:
        """The like of `own` that each other rank sends, who all get it."""
        header = HEADER.pack(self.sums, own.nbytes)
        content, size = _bytes(own), HEADER.size + own.nbytes
        found = {other: torch.empty_like(own) for other in self.sockets}
        heads, bodies = {other: memoryview(bytearray(HEADER.size)) for other in found}, {other: _bytes(one) for other, one in found.items()}
        sent, read = dict.fromkeys(found, 0), dict.fromkeys(found, 0)
        since = time.monotonic()
        while sent or read:
            moved = False
            for other in [*sent]:
                left = _left(memoryview(header), content, sent[other])
                if got := self._told(other, lambda one, left=left: one.sendmsg(left)):
                    sent[other], moved = sent[other] + got, True
                    if sent[other] == size:
                        del sent[other]
            for other in [*read]:
                left = _left(heads[other], bodies[other], read[other])
                if got := self._told(other, lambda one, left=left: one.recvmsg_into(left)[0] or -1):
                    if got < 0:
                        raise RuntimeError(f"rank {other} has ended")
                    read[other], moved = read[other] + got, True
                    if read[other] >= HEADER.size and heads[other] != header:
                        said = f"sum and bytes {HEADER.unpack(heads[other])}, not {HEADER.unpack(header)}"
                        raise RuntimeError(f"rank {other} adds up something else than rank {self.rank}: {said}")
                    if read[other] == size:
                        del read[other]
            since = time.monotonic() if moved else since
            if (waited := time.monotonic() - since) > self.silence:
                raise RuntimeError(f"rank {min({**sent, **read})} has been silent for {self.silence:g} s")
            if waited < SPIN:
                os.sched_yield()
            else:
                select.select([self.sockets[other] for other in read], [self.sockets[other] for other in sent], [], self.silence - waited)
        return found

    def _told(self, other: int, act: Callable[[socket.socket], int]) -> int:
        """What `act` gives of that rank's socket; 0 where it has to wait."""
        try:
            return act(self.sockets[other])
        except BlockingIOError:
            return 0
        except ConnectionError:
            raise RuntimeError(f"rank {other} has ended") from None

    def close(self) -> None:
        for one in self.sockets.values():
            one.close()


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def _left(head: memoryview, body: memoryview, done: int) -> list[memoryview]:
    """What is left of both after the first `done` bytes."""
    return [head[done:], body] if done < HEADER.size else [body[done - HEADER.size :]]


def find(rank: int, count: int, silence: float, told: Callable[[Callable[[], str]], str], agreed: Callable[[bool], bool]) -> Neighbours | None:
    """The other ranks, where all are on this machine; otherwise None, in each of them.

    `told(make)` is what `make` gives in rank 0, in all ranks; `agreed(yes)` whether all say so.
    """
    if not 1 < count <= MOST:
        return None
    folder = Path(told(lambda: tempfile.mkdtemp(prefix="warmstart-")))
    sockets: dict[int, socket.socket] = {}
    try:
        with socket.socket(socket.AF_UNIX) as door:
            here = agreed(_succeeds(lambda: (door.bind(str(folder / str(rank))), door.listen(count))))
            here = here and agreed(_succeeds(lambda: sockets.update({other: _connected(folder / str(other), rank) for other in range(rank)})))
            for _ in range(rank + 1, count if here else 0):  # they are at the door
                one, _ = door.accept()
                sockets[one.recv(1)[0]] = one
        agreed(True)  # nobody needs the folder any more
    finally:
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
    made = Neighbours(rank, dict(sorted(sockets.items())), silence)
    if not here:
        made.close()
    return made if here else None


def _succeeds(act: Callable[[], object]) -> bool:
    try:
        act()
    except OSError:  # another machine has no such folder; nor does any system have names of any length
        return False
    return True


def _connected(path: Path, rank: int) -> socket.socket:
    one = socket.socket(socket.AF_UNIX)
    one.connect(str(path))
    one.sendall(bytes([rank]))
    return one
