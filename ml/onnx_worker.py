"""Runs an exported graph in a process without torch, whose threads onnxruntime's would fight: `python -P onnx_worker.py GRAPH THREADS`.

Arrays come in on standard input and go out on standard output in numpy's format, each after its size; the first that goes out is empty and says
that the graph is loaded.
"""

from __future__ import annotations

import io
import sys
from typing import BinaryIO

import numpy as np


def write(stream: BinaryIO, array: np.ndarray) -> None:
    """Sends an array. Nothing is pickled."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    stream.write(len(buffer.getbuffer()).to_bytes(8, "little"))
    stream.write(buffer.getbuffer())
    stream.flush()


def read(stream: BinaryIO) -> np.ndarray | None:
    """The next array, None at the stream's end."""
    size = stream.read(8)
    return np.load(io.BytesIO(stream.read(int.from_bytes(size, "little"))), allow_pickle=False) if len(size) == 8 else None


def main() -> None:
    import onnxruntime  # here, as who talks to this process must not load it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(sys.argv[2])
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    write(sys.stdout.buffer, np.zeros(0, np.float32))
    while (array_B := read(sys.stdin.buffer)) is not None:
        write(sys.stdout.buffer, session.run(None, {name: array_B})[0])


if __name__ == "__main__":
    main()
