"""Heads: what a model is fine-tuned for."""

from ml.heads.answering import Answering
from ml.heads.classification import Classification
from ml.heads.language_model import LanguageModel
from ml.heads.translation import Translation

HEADS: dict[str, type] = {
    "classification": Classification,
    "language-model": LanguageModel,
    "answering": Answering,
    "translation": Translation,
}
