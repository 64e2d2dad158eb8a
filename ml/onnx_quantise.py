"""Makes of a graph one whose matrices have 8 bits, in a process without torch: `python -P onnx_quantise.py GRAPH OUTPUT`.

Dynamic quantisation: weights are rounded channel by channel, activations as they come. Convolutions stay as they are: of small networks
the rounding costs more time than it saves.
"""

from __future__ import annotations

import logging
import sys

OPERATORS = ["MatMul", "Gemm", "Gather"]


def main() -> None:
    from onnxruntime.quantization import quantize_dynamic

    logging.disable(logging.WARNING)  # advice to optimise the graph, which onnxruntime does as it loads it
    quantize_dynamic(sys.argv[1], sys.argv[2], op_types_to_quantize=OPERATORS, per_channel=True)


if __name__ == "__main__":
    main()
