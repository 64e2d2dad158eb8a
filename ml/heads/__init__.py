"""Heads: what a model is fine-tuned for."""

from ml.heads.classification import Classification

HEADS: dict[str, type] = {
    "classification": Classification,
}
