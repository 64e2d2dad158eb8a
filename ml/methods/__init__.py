"""Methods: how a model is fine-tuned."""

from ml.methods.adaptive import Adaptive
from ml.methods.full import Full
from ml.methods.gradual_unfreezing import GradualUnfreezing
from ml.methods.layer_decay import LayerDecay
from ml.methods.linear_probe import LinearProbe
from ml.methods.lora import Lora

METHODS: dict[str, type] = {
    "full": Full,
    "linear-probe": LinearProbe,
    "gradual-unfreezing": GradualUnfreezing,
    "layer-decay": LayerDecay,
    "lora": Lora,
    "adaptive": Adaptive,
}
