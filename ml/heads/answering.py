"""Extractive question answering: the span of a context that answers a question, or that none does (Devlin et al. 2018, arXiv:1810.04805).

B batch, C tokens of the context, D features, F features of overlap, N rows, T tokens of a row, V vocabulary, W windows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ml import answer_metrics
from ml.answer_spans import whole_words, window_index, window_starts
from ml.contracts import Batch, DataSpec, InputError, Options, StepResult
from ml.metrics import Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_ASKED = -100
"""The target of a row that counts for nothing."""
WINDOWS = 64
"""Windows that are read at a time."""
REACHES = (0, 3, 12)
"""Tokens on either side among which the question's words are looked for, for each feature of overlap."""
SCALE = 10.0
"""What overlap is multiplied by, so that its few weights grow as fast as what the many of the backbone's features say together."""
FIRST_WORDS = 4
"""Words of the context that the trivial way answers with, where that beats answering nothing."""
NONE = "(no answer)"
"""How no answer is written in lists."""
SHOWN = 400
"""Characters of a context in a list of mistakes."""


class AnsweringOptions(Options):
    unanswerable: bool = Field(True, description="Some questions have no answer in their context (SQuAD v2); false always answers (v1.1).")
    max_answer: int = Field(30, ge=1, le=512, description="Most tokens of an answer.")
    null_threshold: float = Field(0.0, ge=-100, le=100, description="An answer's log-odds against no answer must exceed this.")
    hidden: int = Field(0, ge=0, le=65_536, description="Features of a hidden layer over each token beside the question's mean; 0 reads tokens linearly.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of the hidden layer's features dropped in training.")
    overlap: bool = Field(True, description="Also reads how many of the question's words stand near a token, rare ones counting more.")


class Answering(nn.Module):
    """The span of the context that answers a question: its first and its last token, each by a softmax over the context."""

    Options = AnsweringOptions
    needs: ClassVar[frozenset[str]] = frozenset({"tokens", "bidirectional"})
    reads: ClassVar[frozenset[str]] = frozenset({"question"})
    labels: ClassVar[bool] = False
    several: ClassVar[bool] = False
    packed: ClassVar[bool] = False
    whole: ClassVar[bool] = True
    augmentation: ClassVar[str] = "none"
    primary: ClassVar[str] = "f1"
    metrics: ClassVar[Mapping[str, Metric]] = answer_metrics.ANSWERS
    trivial: ClassVar[str] = "no answer or the context's first words, whichever suits the training part"

    def __init__(self, options: AnsweringOptions, width: int, spec: DataSpec):
        super().__init__()
        if spec.modality not in self.reads:
            raise InputError(f"the head answering reads questions with contexts, found {spec.modality} data: set data.modality to question")
        self.options, self.limit = options, spec.shape[0]
        self.stride = int(spec.options.get("stride", self.limit // 2))
        counted = len(REACHES) * options.overlap
        if options.hidden:
            self.hidden = nn.Sequential(nn.Linear(2 * width + counted, options.hidden), nn.GELU(), nn.Dropout(options.dropout))
        self.linear = nn.Linear((options.hidden or width) + counted, 2)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        rarity_V = torch.tensor(spec.statistics["rarity"] if options.overlap else [], dtype=torch.float32)
        if options.overlap:
            rarity_V[[token for token in spec.statistics["tokens"].values() if token is not None]] = 0  # marks are no words
        self.register_buffer("rarity_V", rarity_V, persistent=False)

    def step(self, backbone: nn.Module, batch: Batch) -> StepResult:
        """Cross-entropy of the first and the last token, the batch's rows being no longer than a model reads."""
        logits_BT2 = self._logits(backbone, batch.inputs).float()
        start_B, end_B = batch.inputs["start"], batch.inputs["end"]
        if not self.options.unanswerable:
            start_B, end_B = (place_B.masked_fill(start_B == 0, NOT_ASKED) for place_B in (start_B, end_B))
        asked = (start_B >= 0).sum()
        rows = asked.clamp(min=1)
        losses = [F.cross_entropy(logits_BT2[..., n], place_B, ignore_index=NOT_ASKED, reduction="sum") for n, place_B in enumerate((start_B, end_B))]
        guess_B2 = logits_BT2.detach().argmax(1)
        right = ((guess_B2[:, 0] == start_B) & (guess_B2[:, 1] == end_B)).sum() / rows
        return StepResult(sum(losses) / (2 * rows), {"accuracy": right}, asked)

    def outputs(self, backbone: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, 4): the first and the last token of the best span, which count from the row's first; its score, and what that is measured against.

        Rows of any length, read in windows. Scores are log-probabilities within a window, against that of no answer in the window that
        says so least. Where there always is an answer they are logits, against those of all spans of a window, the largest of such sums.
        """
        found_W4, owner_W = self._windows(backbone, inputs)
        rows = len(inputs["tokens"])
        outputs_B4 = found_W4.new_zeros(rows, 4)
        for row, own_W4 in enumerate(found_W4[order] for order in _by_owner(owner_W, rows)):
            outputs_B4[row, :3] = own_W4[own_W4[:, 2].argmax(), :3]
            outputs_B4[row, 3] = own_W4[:, 3].min() if self.options.unanswerable else own_W4[:, 3].max()
        return outputs_B4

    def answers(self, outputs_NS: np.ndarray, rows: Mapping[str, Any], temperature: float = 1.0) -> list[dict[str, Any]]:
        """{"answer", "score", "start", "end"} of each row: the text, "" for none, how sure the model is of it (0 to 1), and its characters."""
        found = []
        margins_N = (outputs_NS[:, 2].astype(np.float64) - outputs_NS[:, 3]) / temperature
        sure_N = 1 / (1 + np.exp(-np.clip(margins_N, -50, 50))) if self.options.unanswerable else np.exp(np.minimum(margins_N, 0))
        for row, (first, last) in enumerate(outputs_NS[:, :2].astype(np.int64).tolist()):
            offsets_C2 = np.asarray(rows["offsets"][row]).reshape(-1, 2)
            before = len(rows["tokens"][row]) - 1 - len(offsets_C2)
            sure = float(sure_N[row])
            said = len(offsets_C2) > 0 and first >= before
            if said and self.options.unanswerable and margins_N[row] * temperature <= self.options.null_threshold:
                said = False
            text = _decoded(rows["text"], row)
            start, end = whole_words(text, int(offsets_C2[first - before, 0]), int(offsets_C2[last - before, 1])) if said else (0, 0)
            found.append({"answer": text[start:end], "score": sure if said else 1 - sure, "start": start, "end": end})
        return found

    def scores(self, answers: Sequence[Mapping[str, Any]], rows: Mapping[str, Any]) -> np.ndarray:
        """(N, 3) float64 with the columns of answer_metrics.STATISTICS."""
        return answer_metrics.statistics([one["answer"] for one in answers], _truths(rows))

    def trivial_answers(self, train_rows: Mapping[str, Any], rows: Mapping[str, Any]) -> list[dict[str, Any]]:
        """No answer, or the context's first words, whichever has the better F1 on the training rows."""
        ways = (_nothing, _first_words) if self.options.unanswerable else (_first_words,)
        measured = {way: self.metrics["f1"](np.zeros(0), self.scores(way(train_rows), train_rows)) for way in ways}
        return max(measured, key=measured.get)(rows)

    def frame(self, answers: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """Columns answer, score, start and end; an empty answer is none."""
        kinds = {"answer": str, "score": np.float64, "start": np.int64, "end": np.int64}
        return pd.DataFrame({name: pd.Series([one[name] for one in answers], dtype=kind if kind is not str else object) for name, kind in kinds.items()})

    def details(
        self, table: pd.DataFrame, answers: Sequence[Mapping[str, Any]], before: Any, rows: Mapping[str, Any], *, mistakes: int, **options: Any
    ) -> tuple[dict[str, Any], pd.DataFrame]:
        """The wrong answers that the model is surest of, and what `pictures` draws; and each answer with its truths and scores."""
        scores_NS, truths = self.scores(answers, rows), _truths(rows)
        facts = {name: scores_NS[:, column] for column, name in enumerate(answer_metrics.STATISTICS)}
        columns = {"question": [_decoded(rows["question"], row) for row in range(len(answers))]}
        columns["truth"] = [" | ".join(dict.fromkeys(accepted)) or NONE for accepted in truths]
        found = self.frame(answers)
        predictions = pd.concat([table[["row_id", "key"]].reset_index(drop=True), pd.DataFrame(columns), found, pd.DataFrame(facts)], axis=1)
        worst = predictions[facts["exact"] == 0].sort_values("score", ascending=False, kind="stable").head(mistakes)
        worst = worst.assign(answer=worst["answer"].where(worst["answer"] != "", NONE), context=[_decoded(rows["text"], row)[:SHOWN] for row in worst.index])
        shown = worst[["key", "question", "truth", "answer", "score", "f1", "context"]].to_dict("records")
        lists = {name: column.tolist() for name, column in facts.items()} | {"lengths": (rows["offsets"].lengths // 2).tolist()}
        return {
            "mistakes": [{"row": int(row)} | one for row, one in zip(worst.index, shown, strict=True)],
            "mistakes_title": "The wrong answers that the model was surest of",
            "rows": lists | {"words": [answer_metrics.question_word(question) for question in columns["question"]]},
        }, predictions

    def pictures(self, facts: Mapping[str, Any]) -> dict[str, Figure]:
        """F1 by the length of the context, and by the question's word."""
        from ml import answer_pictures  # imported where it is used: a served model draws nothing

        return answer_pictures.pictures(facts["rows"])

    def _logits(self, backbone: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, T, 2) of the first and the last token, −inf where an answer cannot be; the first place stands for no answer."""
        features_BTD = backbone.encode({name: inputs[name] for name in ("tokens", "mask")}).tokens_BTD
        counted = [self._overlap(inputs).to(features_BTD.dtype)] if self.options.overlap else []
        if self.options.hidden:
            weight_BT1 = _question(inputs)[:, :, None].to(features_BTD.dtype)
            question_B1D = (features_BTD * weight_BT1).sum(1, keepdim=True) / weight_BT1.sum(1, keepdim=True)
            features_BTD = self.hidden(torch.cat([features_BTD, question_B1D.expand_as(features_BTD), *counted], 2))
        features_BTD = torch.cat([features_BTD, *counted], 2)
        allowed_BT = _context(inputs)
        allowed_BT[:, 0] = self.options.unanswerable | ~allowed_BT.any(1)
        return self.linear(features_BTD).masked_fill(~allowed_BT[:, :, None], -torch.inf)

    def _overlap(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, T, F) which share of the question's words, weighed by rarity, stands within each reach of a token (an aligned match as in Chen et
        al. 2017, arXiv:1704.00051); in the first place the most that any token has."""
        tokens_BT, context_BT = inputs["tokens"], _context(inputs)
        question_BT = _question(inputs)
        asked_BV = torch.zeros(len(tokens_BT), len(self.rarity_V), device=tokens_BT.device)
        asked_BV.scatter_(1, tokens_BT.where(question_BT, tokens_BT[:, :1]), 1.0)
        weight_BT = asked_BV.gather(1, tokens_BT) * self.rarity_V[tokens_BT] * context_BT
        whole_B1 = (asked_BV @ self.rarity_V).clamp(min=1e-3)[:, None]
        found = [F.avg_pool1d(weight_BT[:, None], 2 * reach + 1, 1, reach)[:, 0] * (2 * reach + 1) / whole_B1 * context_BT for reach in REACHES]
        overlap_BTF = SCALE * torch.stack(found, 2)
        return torch.cat([overlap_BTF.amax(1, keepdim=True), overlap_BTF[:, 1:]], 1)

    def _windows(self, backbone: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, np.ndarray]:
        """(W, 4) float32 as `outputs`, of each window, and the row that it belongs to (W,)."""
        lengths = inputs["mask"].sum(1).tolist()
        questions = _question(inputs).sum(1).tolist()
        windows = [
            (row, window_index(length, question, self.limit, start))
            for row, (length, question) in enumerate(zip(lengths, questions, strict=True))
            for start in window_starts(length, question, self.limit, self.stride)
        ]
        windows.sort(key=lambda one: len(one[1]))  # so that little of a batch is padding
        device, parts = inputs["tokens"].device, []
        for begin in range(0, len(windows), WINDOWS):
            some = windows[begin : begin + WINDOWS]
            place = np.full((len(some), len(some[-1][1])), -1)
            for number, (_, index) in enumerate(some):
                place[number, : len(index)] = index
            place_WT = torch.from_numpy(place).to(device)
            row_W1 = torch.tensor([[row] for row, _ in some], device=device)
            inside_WT = place_WT >= 0
            read = {name: inputs[name][row_W1, place_WT.clamp(min=0)] for name in ("tokens", "segments")}
            read = {"tokens": read["tokens"], "segments": read["segments"] * inside_WT, "mask": inside_WT}
            parts.append(self._best(self._logits(backbone, read).float(), place_WT))
        return torch.cat(parts), np.array([row for row, _ in windows])

    def _best(self, logits_WT2: Tensor, place_WT: Tensor) -> Tensor:
        """(W, 4) of each window, the places told as those in the row."""
        scores_WT2 = logits_WT2.log_softmax(1) if self.options.unanswerable else logits_WT2
        start_WT, end_WT = scores_WT2[:, 1:].unbind(2)  # without the place of no answer
        length = min(self.options.max_answer, start_WT.shape[1])
        ends_WTM = F.pad(end_WT, (0, length - 1), value=-torch.inf).unfold(1, length, 1)
        best_WT, more_WT = ends_WTM.max(2)
        score_W, start_W = (start_WT + best_WT).max(1)
        end_W = start_W + more_WT.gather(1, start_W[:, None])[:, 0]
        places = [place_WT.gather(1, (one + 1)[:, None])[:, 0] for one in (start_W, end_W)]
        none_W, all_W = scores_WT2[:, 0].sum(1), (start_WT[:, :, None] + ends_WTM).flatten(1).logsumexp(1)
        against_W = none_W if self.options.unanswerable else all_W
        places = [place.where(score_W.isfinite(), 0) for place in places]  # a context without any token has no span
        return torch.stack([*places, score_W.clamp(min=-1e4), against_W.clamp(min=-1e4)], 1)


def _context(inputs: Mapping[str, Tensor]) -> Tensor:
    """(B, T) where the context's tokens are: all of the second segment but its last, the mark."""
    segments_BT = inputs["segments"].bool() & inputs["mask"]
    return segments_BT & F.pad(segments_BT[:, 1:], (0, 1))


def _question(inputs: Mapping[str, Tensor]) -> Tensor:
    """(B, T) where the question is, with its marks."""
    return inputs["mask"] & (inputs["segments"] == 0)


def _by_owner(owner_W: np.ndarray, rows: int) -> Iterable[np.ndarray]:
    """The windows of each row."""
    order = np.argsort(owner_W, kind="stable")
    return np.split(order, np.searchsorted(owner_W[order], np.arange(1, rows)))


def _decoded(texts: Any, row: int) -> str:
    return bytes(texts[row]).decode()


def _truths(rows: Mapping[str, Any]) -> list[list[str]]:
    return [json.loads(bytes(one)) for one in rows["answers"]]


def _nothing(rows: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"answer": "", "score": 1.0, "start": 0, "end": 0}] * len(rows["answers"])


def _first_words(rows: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = [" ".join(_decoded(rows["text"], row).split(" ")[:FIRST_WORDS]) for row in range(len(rows["answers"]))]
    return [{"answer": text, "score": 1.0, "start": 0, "end": len(text)} for text in found]
