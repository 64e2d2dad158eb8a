"""Translation of a text into another, learnt from pairs by a network that reads one and writes the other (Sutskever et al. 2014, arXiv:1409.3215).

B batch, N rows, S tokens of the target, V vocabulary, W most tokens that are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field
from torch import Tensor, nn

from ml import tokenizing, translation_metrics
from ml.contracts import Batch, DataSpec, InputError, Options, StepResult
from ml.language import texts, tokenizer_of
from ml.losses import next_tokens
from ml.metrics import Metric

SHOWN = 300
"""Characters of a text in a list of mistakes."""


class TranslationOptions(Options):
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Share of each target token spread evenly over the vocabulary.")
    beams: int = Field(1, ge=1, le=64, description="Width of the beam search that writes, in validation too; 1 takes the likeliest token each time, which is fastest.")


class Translation(nn.Module):
    """Writes the target of a source, token by token; measured by BLEU and chrF, as sacrebleu has them."""

    Options = TranslationOptions
    needs: ClassVar[frozenset[str]] = frozenset({"tokens", "vocabulary", "sequence-to-sequence"})
    reads: ClassVar[frozenset[str]] = frozenset({"text-pair"})
    labels: ClassVar[bool] = False
    several: ClassVar[bool] = False
    packed: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    augmentation: ClassVar[str] = "none"
    trivial: ClassVar[str] = "copying the source"
    primary: ClassVar[str] = "bleu"
    metrics: ClassVar[Mapping[str, Metric]] = translation_metrics.TRANSLATION

    def __init__(self, options: TranslationOptions, width: int, spec: DataSpec):
        super().__init__()
        if spec.modality not in self.reads:
            raise InputError(f"the head translation learns from pairs of texts, found {spec.modality} data: set data.modality to text-pair")
        if int(spec.options["vocabulary"]) > 2**24:
            raise InputError(f"a vocabulary of {spec.options['vocabulary']:,} tokens is too large: translation can tell {2**24:,} apart")
        self.options, self.length, self.marks = options, spec.shape[0], dict(spec.statistics["tokens"])
        self.json = spec.statistics["tokenizer"]

    def step(self, backbone: nn.Module, batch: Batch) -> StepResult:
        """Mean cross-entropy of a target's token in nats, and the share of tokens guessed right."""
        logits_BSV = backbone.logits(batch.inputs).float()
        return next_tokens(logits_BSV, batch.inputs["target"], batch.inputs["target_mask"], self.options.label_smoothing)

    def outputs(self, backbone: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, W) float32: the ids that are written of each source, padded; W is `max_length`."""
        return backbone.generate(inputs, self.length, self.options.beams, self.marks).float()

    def answers(self, outputs_NS: np.ndarray, rows: Mapping[str, Any], temperature: float = 1.0) -> list[str]:
        """The translation of each row."""
        tokenizer = tokenizer_of(self.json)
        return [tokenizing.decode(tokenizer, self._written(row)).strip() for row in outputs_NS.astype(np.int64)]

    def scores(self, answers: Sequence[str], rows: Mapping[str, Any]) -> np.ndarray:
        """(N, S) float64 statistics, from which BLEU and chrF of any rows are made."""
        return translation_metrics.statistics(answers, list(texts(rows["target"])))

    def trivial_answers(self, train_rows: Mapping[str, Any], rows: Mapping[str, Any]) -> list[str]:
        """The sources."""
        return list(texts(rows["text"]))

    def frame(self, answers: Sequence[str]) -> pd.DataFrame:
        """The column translation."""
        return pd.DataFrame({"translation": pd.Series(list(answers), dtype=object)})

    def details(
        self, table: pd.DataFrame, answers: Sequence[str], before: Sequence[str], rows: Mapping[str, Any], *, mistakes: int, **options: Any
    ) -> tuple[dict[str, Any], pd.DataFrame]:
        """The translations that are furthest from their references, and each one's chrF by the length of its source."""
        sources, references = list(texts(rows["text"])), list(texts(rows["target"]))
        chrf_N = translation_metrics.each_chrf(self.scores(answers, rows))
        predictions = table[["row_id", "key"]].reset_index(drop=True)
        predictions = predictions.assign(source=sources, reference=references, translation=list(answers), chrf=chrf_N)
        worst = [
            {
                "row": int(row),
                "key": str(predictions["key"][row]),
                "source": sources[row][:SHOWN],
                "truth": references[row][:SHOWN],
                "answer": answers[row][:SHOWN],
                "chrf": float(chrf_N[row]),
            }
            for row in np.argsort(chrf_N, kind="stable")[:mistakes]
        ]
        facts = {"mistakes": worst, "mistakes_title": "The translations furthest from their references"}
        return facts | {"lengths": [len(source.split()) for source in sources], "chrf": chrf_N.tolist()}, predictions

    def pictures(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        from ml import pictures  # imported where it is used: a served model draws nothing

        return {"length_and_chrf": pictures.scatter(facts["lengths"], facts["chrf"], "words of the source", "chrF of its translation")}

    def _written(self, ids_W: np.ndarray) -> np.ndarray:
        """The ids before the mark of the end, or what pads them."""
        over = np.flatnonzero((ids_W == self.marks["end"]) | (ids_W == self.marks["pad"]))
        return ids_W[: over[0]] if len(over) else ids_W
