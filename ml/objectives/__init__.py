"""Objectives: what a backbone is pretrained with."""

from ml.objectives.causal_language import CausalLanguage
from ml.objectives.denoising import Denoising
from ml.objectives.masked import Masked
from ml.objectives.masked_language import MaskedLanguage
from ml.objectives.pairs import Pairs
from ml.objectives.simclr import SimCLR
from ml.objectives.span_corruption import SpanCorruption
from ml.objectives.supervised import Supervised
from ml.objectives.vicreg import VICReg

OBJECTIVES: dict[str, type] = {
    "simclr": SimCLR,
    "vicreg": VICReg,
    "masked": Masked,
    "denoising": Denoising,
    "supervised": Supervised,
    "masked-language": MaskedLanguage,
    "causal-language": CausalLanguage,
    "span-corruption": SpanCorruption,
    "pairs": Pairs,
}
