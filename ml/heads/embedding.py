"""Sentence embeddings for retrieval, learnt from pairs (multiple negatives ranking, Henderson et al. 2017, arXiv:1705.00652; as a siamese network,
Reimers and Gurevych 2019, arXiv:1908.10084).

B batch, D numbers of an embedding, N rows, S numbers that are put out: an embedding of the source and one of the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field
from torch import Tensor, cat, nn
from torch.nn import functional as F

from ml.contracts import Batch, DataSpec, InputError, Options, StepResult
from ml.language import texts
from ml.metrics import Metric
from ml.pairs import both_sides, contrast_sides
from ml.retrieval import RETRIEVAL, Found, search

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ml.classical import Classical

SHOWN = 300
"""Characters of a text in a list of mistakes."""


class EmbeddingOptions(Options):
    width: int = Field(0, ge=0, le=65_536, description="Numbers of an embedding, by a linear layer over the features; 0 takes the backbone's features themselves.")
    temperature: float = Field(0.05, gt=0, le=10, description="Divides the similarities in training: lower looks harder at near neighbours.")


class Embedding(nn.Module):
    """Embeds texts so that a source lies near its target; measured by how it finds it among all targets of the test, from source to target."""

    Options = EmbeddingOptions
    needs: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset({"text-pair"})
    labels: ClassVar[bool] = False
    several: ClassVar[bool] = False
    packed: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    augmentation: ClassVar[str] = "none"
    trivial: ClassVar[str] = "comparing words, rare ones counting more (TF-IDF)"
    primary: ClassVar[str] = "mrr"
    metrics: ClassVar[Mapping[str, Metric]] = RETRIEVAL

    def __init__(self, options: EmbeddingOptions, width: int, spec: DataSpec):
        super().__init__()
        if spec.modality not in self.reads:
            raise InputError(f"the head embedding learns from pairs of texts, found {spec.modality} data: set data.modality to text-pair")
        self.temperature, self.size = options.temperature, options.width or width
        self.linear = nn.Linear(width, options.width, bias=False) if options.width else nn.Identity()

    def step(self, backbone: nn.Module, batch: Batch) -> StepResult:
        """InfoNCE in nats in both directions, and the share of sources that find their targets among those of the batch."""
        return contrast_sides(self._embedded(backbone, both_sides(batch.inputs)), batch, self.temperature)

    def outputs(self, backbone: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, 2D): the source and the target, each of unit length."""
        return cat(self._embedded(backbone, both_sides(inputs)).chunk(2), 1)

    def serve(self, backbone: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, D): the source alone."""
        return self._embedded(backbone, {name: inputs[name] for name in ("tokens", "mask")})

    def answers(self, outputs_NS: np.ndarray, rows: Mapping[str, Any], temperature: float = 1.0) -> np.ndarray:
        """The embeddings, of which users are told the first."""
        return outputs_NS

    def scores(self, answers_NS: Any, rows: Mapping[str, Any]) -> np.ndarray:
        """(N, 2) float64: how many wrong targets are nearer to the source than its own, and how many as near."""
        return self._found(answers_NS, rows).scores

    def trivial_answers(self, train_rows: Mapping[str, Any], rows: Mapping[str, Any]) -> Any:
        """Sources and targets by their words, as ml.retrieval_classical.shared_words has them."""
        from ml import retrieval_classical  # imported where it is used: scikit-learn costs seconds

        return retrieval_classical.shared_words(_pairs(train_rows), _pairs(rows))

    def frame(self, answers_NS: np.ndarray) -> pd.DataFrame:
        """The column embedding: a list of float32 of length 1, that of the source."""
        import pyarrow as pa

        return pd.DataFrame({"embedding": pd.Series([one[: self.size] for one in answers_NS], dtype=pd.ArrowDtype(pa.list_(pa.float32())))})

    def details(
        self, table: pd.DataFrame, answers_NS: np.ndarray, before_NS: Any, rows: Mapping[str, Any], *, mistakes: int, **options: Any
    ) -> tuple[dict[str, Any], pd.DataFrame]:
        """The wrong targets that are nearest to a source, and what `pictures` draws; and what each source finds."""
        found, (sources, targets) = self._found(answers_NS, rows), _pairs(rows)
        wrong_N = found.above_N > 0
        predictions = table[["row_id", "key"]].reset_index(drop=True).assign(
            source=sources,
            target=targets,
            found=[targets[nearest if wrong else row] for row, (nearest, wrong) in enumerate(zip(found.nearest_N, wrong_N, strict=True))],
            rank=found.rank_N,
            similarity=found.own_N,
            nearest_wrong=found.other_N,
        )
        worst = [
            {
                "row": int(row),
                "key": str(predictions["key"][row]),
                "source": sources[row][:SHOWN],
                "truth": targets[row][:SHOWN],
                "answer": predictions["found"][row][:SHOWN],
                "similarity": f"{found.other_N[row]:.3f} against {found.own_N[row]:.3f}",
                "rank": f"{found.rank_N[row]:,g}",
            }
            for row in np.argsort(-found.other_N, kind="stable")
            if wrong_N[row]
        ][:mistakes]
        facts = {"mistakes": worst, "mistakes_title": "The wrong targets that were nearest to a source"}
        lists = {"ranks": found.rank_N.tolist(), "own": found.own_N.tolist(), "other": [one if np.isfinite(one) else None for one in found.other_N.tolist()]}
        return facts | {"rows": lists | {"candidates": found.candidates}}, predictions

    def pictures(self, facts: Mapping[str, Any]) -> dict[str, Figure]:
        """The ranks of the right targets, and how near right and wrong ones are."""
        from ml import retrieval_pictures  # imported where it is used: a served model draws nothing

        return retrieval_pictures.pictures(facts["rows"])

    @staticmethod
    def alternative(train_rows: Mapping[str, Any], validation_rows: Mapping[str, Any], rows: Mapping[str, Any], spec: DataSpec, seed: int) -> Classical:
        """Latent semantic indexing of the pairs."""
        from ml import retrieval_classical

        return retrieval_classical.classical(*map(_pairs, (train_rows, validation_rows, rows)), seed)

    def _embedded(self, backbone: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        return F.normalize(self.linear(backbone.encode(inputs).whole).float(), dim=1)

    def _found(self, answers_NS: Any, rows: Mapping[str, Any]) -> Found:
        width = answers_NS.shape[1] // 2
        return search(answers_NS[:, :width], answers_NS[:, width:], *_pairs(rows))


def _pairs(rows: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The sources and the targets."""
    return list(texts(rows["text"])), list(texts(rows["target"]))
