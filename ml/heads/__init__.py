"""Heads: what a model is fine-tuned for."""

from ml.heads.answering import Answering
from ml.heads.classification import Classification
from ml.heads.embedding import Embedding
from ml.heads.language_model import LanguageModel
from ml.heads.multi_label import MultiLabel
from ml.heads.tagging import Tagging
from ml.heads.translation import Translation

HEADS: dict[str, type] = {
    "classification": Classification,
    "multi-label": MultiLabel,
    "language-model": LanguageModel,
    "answering": Answering,
    "tagging": Tagging,
    "translation": Translation,
    "embedding": Embedding,
}
