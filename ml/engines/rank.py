"""One of the processes that ml/engines/torchrun.py trains in: `python -m ml.engines.rank FOLDER`, with the variables that torchrun sets."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from pathlib import Path

import torch

from ml import ranks
from ml.device import device_of
from ml.launched import work
from ml.recipe import Compute

PR_SET_PDEATHSIG = 1


def join(compute: Compute) -> torch.device:
    """Joins the other ranks; gives what this one computes on."""
    device = device_of(compute)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    ranks.begin(device, compute.timeout)
    return device


def watch(launcher: int) -> None:
    """Waits for the end of standard input from now on, at which this process ends at once and takes the launcher along."""

    def read() -> None:
        while os.read(0, 1):
            pass
        if os.getppid() == launcher:
            os.kill(launcher, signal.SIGKILL)  # or it would start us again
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=read, name="watch", daemon=True).start()


def bind() -> None:
    """The kernel kills this process when its launcher dies: also where it is stopped, and reads nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


if __name__ == "__main__":
    bind()
    watch(os.getppid())
    work(Path(sys.argv[1]), join)
