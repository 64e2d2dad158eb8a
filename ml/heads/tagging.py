"""Token tagging: a tag for each word, told by its first token (Devlin et al. 2018, arXiv:1810.04805): names, chunks, parts of speech.

B batch, D features, I windows, K tags, N rows, T tokens, W words.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ml import tag_metrics
from ml.contracts import Batch, DataSpec, InputError, Options, StepResult
from ml.losses import NOT_ASKED
from ml.metrics import Metric
from ml.tag_metrics import Scheme
from ml.tagged_words import windows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ml.classical import Classical

WINDOWS = 64
"""Windows that are read at a time."""


class TaggingOptions(Options):
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of the backbone's features dropped in training.")
    balance: float = Field(0.0, ge=0, le=1, description="How much more rare tags count in the loss: each by its number of words to minus this power; 0 counts all alike.")


class Tagging(nn.Module):
    """A tag for each word; of names, as IOB2 and its kin tell them, also the names themselves."""

    Options = TaggingOptions
    needs: ClassVar[frozenset[str]] = frozenset({"tokens"})
    reads: ClassVar[frozenset[str]] = frozenset({"tagged"})
    labels: ClassVar[bool] = False
    several: ClassVar[bool] = False
    packed: ClassVar[bool] = False
    whole: ClassVar[bool] = True
    augmentation: ClassVar[str] = "none"
    primary: ClassVar[str] = "f1"
    metrics: ClassVar[Mapping[str, Metric]] = tag_metrics.TAGS
    trivial: ClassVar[str] = "each word's commonest tag"

    def __init__(self, options: TaggingOptions, width: int, spec: DataSpec):
        super().__init__()
        if spec.modality not in self.reads:
            raise InputError(f"the head tagging learns from words with tags, found {spec.modality} data: set data.modality to tagged")
        self.limit, self.tags, self.scheme = spec.shape[0], list(spec.statistics["tags"]), Scheme.of(spec.statistics["tags"])
        self.dropout, self.linear = nn.Dropout(options.dropout), nn.Linear(width, len(self.tags))
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        counts_K = torch.tensor(spec.statistics["tag_counts"], dtype=torch.float32)
        self.register_buffer("weights_K", (counts_K.mean() / counts_K) ** options.balance, persistent=False)

    def step(self, backbone: nn.Module, batch: Batch) -> StepResult:
        """Mean cross-entropy of a word's tag in nats, weighted by `balance`, and the share of words tagged right."""
        logits_BTK, tags_BT = self._logits(backbone, batch.inputs), batch.inputs["tags"]
        asked_BT = tags_BT != NOT_ASKED
        total = F.cross_entropy(logits_BTK.flatten(0, 1), tags_BT.flatten(), self.weights_K, ignore_index=NOT_ASKED, reduction="sum")
        weight = (self.weights_K[tags_BT.clamp(min=0)] * asked_BT).sum()
        right = (logits_BTK.detach().argmax(2) == tags_BT).sum() / asked_BT.sum().clamp(min=1)
        return StepResult(total / weight.clamp(min=1e-6), {"accuracy": right}, weight)

    def outputs(self, backbone: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, 2W) float32: of each word of a row the likeliest tag and its probability, then NaN. Rows of any length are read in windows, and each
        word is told by the one that holds most around it."""
        first_BT = inputs["first"]
        words_B = first_BT.sum(1)
        found_BT2 = torch.zeros(*first_BT.shape, 2, device=first_BT.device)
        found = [(row, *one) for row, length in enumerate(inputs["mask"].sum(1).tolist()) for one in windows(length, self.limit)]
        found.sort(key=lambda one: one[2] - one[1])  # so that little of a batch is padding
        for begin in range(0, len(found), WINDOWS):
            row_I, start_I, end_I, low_I, high_I = torch.tensor(found[begin : begin + WINDOWS], device=first_BT.device).T
            place_IT = start_I[:, None] - 1 + torch.arange(int((end_I - start_I).max()) + 2, device=first_BT.device)
            inside_IT = place_IT <= end_I[:, None]
            last_I = inputs["mask"].sum(1)[row_I] - 1
            read_IT = place_IT.where(place_IT >= start_I[:, None], 0).where(place_IT < end_I[:, None], last_I[:, None])  # between the row's two marks
            read = {name: inputs[name][row_I[:, None], read_IT] for name in ("tokens", "first")}
            logits_ITK = self._logits(backbone, {**read, "mask": inside_IT})
            told_IT = (place_IT >= low_I[:, None]) & (place_IT < high_I[:, None])
            sure_IT, tag_IT = logits_ITK.softmax(2).max(2)
            found_BT2[row_I[:, None].expand_as(place_IT)[told_IT], place_IT[told_IT]] = torch.stack([tag_IT.float(), sure_IT], 2)[told_IT]
        outputs_BW2 = torch.full((len(words_B), int(words_B.max()), 2), torch.nan, device=first_BT.device)
        row_w, place_w = first_BT.nonzero(as_tuple=True)
        outputs_BW2[row_w, (first_BT.cumsum(1) - 1)[row_w, place_w]] = found_BT2[row_w, place_w]
        return outputs_BW2.flatten(1)

    def answers(self, outputs_NS: np.ndarray, rows: Mapping[str, Any], temperature: float = 1.0) -> list[dict[str, Any]]:
        """{"words", "tags", "scores", "entities"} of each row: a tag a word, its probability, and {"type", "text", "start", "end", "score"} of each
        span: its characters in the text, and the probability of its least sure word."""
        found = []
        for row, words in enumerate(_words(rows)):
            told_W2 = outputs_NS[row].reshape(-1, 2)[: len(words)]
            found.append(self._told(rows, row, words, [self.tags[int(tag)] for tag in told_W2[:, 0]], told_W2[:, 1].tolist()))
        return found

    def scores(self, answers: Sequence[Mapping[str, Any]], rows: Mapping[str, Any]) -> np.ndarray:
        """(N, S) float64 with the columns of tag_metrics.STATISTICS."""
        return tag_metrics.statistics([one["tags"] for one in answers], _truths(rows), self.scheme)

    def trivial_answers(self, train_rows: Mapping[str, Any], rows: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The tag that each word has most often in the training rows; of a word that they lack, the commonest tag of those that occur in them once."""
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for words, tags in zip(_words(train_rows), _truths(train_rows), strict=True):
            for word, tag in zip(words, tags, strict=True):
                counts[word][tag] += 1
        rare = Counter(tag for tags in counts.values() if tags.total() == 1 for tag in tags) or sum(counts.values(), Counter())
        known = {word: tags.most_common(1)[0] + (tags.total(),) for word, tags in counts.items()}
        unknown = (*rare.most_common(1)[0], rare.total())
        found = []
        for row, words in enumerate(_words(rows)):
            told = [known.get(word, unknown) for word in words]
            found.append(self._told(rows, row, words, [tag for tag, _, _ in told], [count / total for _, count, total in told]))
        return found

    def frame(self, answers: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """words, tags and, where tags make up spans, entities, as JSON lists; score: the probability of the least sure word's tag."""
        columns = ["words", "tags", *["entities"] * self.scheme.has_spans]
        told = {name: pd.Series([json.dumps(one[name], ensure_ascii=False) for one in answers], dtype=object) for name in columns}
        return pd.DataFrame(told | {"score": pd.Series([min(one["scores"], default=1.0) for one in answers], dtype=np.float64)})

    def details(
        self, table: pd.DataFrame, answers: Sequence[Mapping[str, Any]], before: Any, rows: Mapping[str, Any], *, mistakes: int, options: Mapping[str, Any], **more: Any
    ) -> tuple[dict[str, Any], pd.DataFrame]:
        """F1 of each type, which types' words are taken for which, and the wrong tags that the model is surest of; and what it says of each row."""
        from ml import tag_details  # imported where they are used: a served model tells and draws none of this

        facts = tag_details.details(table, answers, _truths(rows), self.scheme, mistakes=mistakes, options=options)
        told = pd.DataFrame({"truth": [json.dumps(one, ensure_ascii=False) for one in _truths(rows)]})
        scores = pd.DataFrame(self.scores(answers, rows), columns=list(tag_metrics.STATISTICS))
        return facts, pd.concat([table[["row_id", "key"]].reset_index(drop=True), self.frame(answers), told, scores.add_prefix("n_")], axis=1)

    def pictures(self, facts: Mapping[str, Any]) -> dict[str, Figure]:
        """F1 by type, and the confusion of types."""
        from ml import tag_pictures

        return tag_pictures.pictures(facts)

    @staticmethod
    def alternative(train_rows: Mapping[str, Any], validation_rows: Mapping[str, Any], rows: Mapping[str, Any], spec: DataSpec, seed: int) -> Classical:
        """Logistic regression on the shapes of a word and its neighbours."""
        from ml import tag_classical  # imported where it is used: scikit-learn costs seconds

        known = [(_words(one), _truths(one)) for one in (train_rows, validation_rows)]
        return tag_classical.classical(*known, _words(rows), spec.statistics["tags"], seed)

    def _logits(self, backbone: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, T, K) float32. A network that reads forwards has read a word only at its last token, whose features are then taken for all of it."""
        features_BTD = backbone.encode({name: inputs[name] for name in ("tokens", "mask")}).tokens_BTD
        if "causal" in backbone.traits:
            features_BTD = features_BTD.gather(1, _last(inputs["first"], inputs["mask"])[:, :, None].expand_as(features_BTD))
        return self.linear(self.dropout(features_BTD)).float()

    def _told(self, rows: Mapping[str, Any], row: int, words: list[str], tags: list[str], scores: list[float]) -> dict[str, Any]:
        text, spans_W2 = bytes(rows["text"][row]).decode(), np.asarray(rows["spans"][row]).reshape(-1, 2).tolist()
        entities = []
        for kind, first, last in self.scheme.spans(tags) if self.scheme.has_spans else ():
            start, end = spans_W2[first][0], spans_W2[last - 1][1]
            entities.append({"type": kind, "text": text[start:end], "start": start, "end": end, "score": round(min(scores[first:last]), 3)})
        return {"words": words, "tags": tags, "scores": scores, "entities": entities}


def _last(first_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, T) int64: the place of the last token of the word that each token belongs to."""
    place_T = torch.arange(first_BT.shape[1], device=first_BT.device)
    begins_BT = first_BT | (place_T == mask_BT.sum(1, keepdim=True) - 1)  # words, and the mark of the end
    next_BT = F.pad(place_T.where(begins_BT, len(place_T))[:, 1:], (0, 1), value=len(place_T))
    return next_BT.flip(1).cummin(1).values.flip(1) - 1


def _words(rows: Mapping[str, Any]) -> list[list[str]]:
    """The words of each row, as they stand in its text."""
    texts = (bytes(text).decode() for text in rows["text"])
    return [[text[start:end] for start, end in np.asarray(spans).reshape(-1, 2).tolist()] for text, spans in zip(texts, rows["spans"], strict=True)]


def _truths(rows: Mapping[str, Any]) -> list[list[str]]:
    return [json.loads(bytes(tags)) for tags in rows["tags"]]
