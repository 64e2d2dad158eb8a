"""Language modelling: how likely each text is, and how it goes on.

B batch, D features, I windows, N rows, S statistics, T tokens, V vocabulary, W written tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ml import tokenizing
from ml.contracts import Batch, DataSpec, Options, StepResult
from ml.language_metrics import LANGUAGE, LANGUAGE_SCORES
from ml.losses import NOT_ASKED
from ml.metrics import Metric
from ml.sampling import draw

NOTHING = -1  # stands behind the last written token
WINDOWS = 64  # windows that are read at a time


class LanguageModelOptions(Options):
    written: int = Field(64, ge=0, le=4096, description="Most tokens that a registered model writes after a text.")
    temperature: float = Field(0.8, ge=0, le=10, description="Of what it writes: lower keeps to what is likely, 0 always takes the likeliest token.")
    top_p: float = Field(0.95, gt=0, le=1, description="Draws among the likeliest tokens that together have this probability.")


class LanguageModel(nn.Module):
    """Guesses each next token of a text. Trained on all texts as one stream; measured on whole texts, each token counted once.

    A text of more than `max_length` tokens is read in windows, each half a window further on: so every token is guessed from half a window
    before it at least, where the text has that many.
    """

    Options = LanguageModelOptions
    needs: ClassVar[frozenset[str]] = frozenset({"tokens", "vocabulary", "causal"})
    reads: ClassVar[frozenset[str]] = frozenset({"text"})
    labels: ClassVar[bool] = False
    several: ClassVar[bool] = False
    packed: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    trivial: ClassVar[str] = "knowing only how often each token occurs"
    augmentation: ClassVar[str] = "none"
    primary: ClassVar[str] = "bits_per_byte"
    metrics: ClassVar[Mapping[str, Metric]] = LANGUAGE

    def __init__(self, options: LanguageModelOptions, width: int, spec: DataSpec):
        super().__init__()
        self.options, self.length, self.vocabulary = options, spec.shape[0], int(spec.options["vocabulary"])
        self.end, self.json = spec.statistics["tokens"]["end"], spec.statistics["tokenizer"]

    def step(self, backbone: nn.Module, batch: Batch) -> StepResult:
        """Mean cross-entropy of a token in nats, and the share of tokens guessed right."""
        loss_BT, right_BT = self._guesses(backbone, batch.inputs, batch.inputs["mask"])
        tokens = batch.inputs["mask"][:, 1:].sum()
        asked = tokens.clamp(min=1)
        return StepResult(loss_BT.sum() / asked, {"accuracy": right_BT.sum() / asked}, tokens)

    def outputs(self, backbone: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, 3): nats, tokens, and tokens guessed right, of rows of any length."""
        lengths = inputs["mask"].sum(1).tolist()
        found = [(row, *one) for row, length in enumerate(lengths) for one in windows(length, self.length)]
        found.sort(key=lambda one: one[2] - one[1])  # so that little of a batch is padding
        device, totals_B3 = inputs["tokens"].device, torch.zeros(len(lengths), 3, device=inputs["tokens"].device)
        for begin in range(0, len(found), WINDOWS):
            row_I, first_I, end_I, fresh_I = torch.tensor(found[begin : begin + WINDOWS], device=device).T
            place_IT = first_I[:, None] + torch.arange(int((end_I - first_I).max()), device=device)
            inside_IT = place_IT < end_I[:, None]
            tokens_IT = inputs["tokens"][row_I[:, None], place_IT.where(inside_IT, first_I[:, None])]
            asked_IT = inside_IT & (place_IT >= fresh_I[:, None])
            guesses = self._guesses(backbone, {"tokens": tokens_IT, "mask": inside_IT}, asked_IT)
            found_I3 = torch.stack([one_IT.float().sum(1) for one_IT in (guesses[0], asked_IT, guesses[1])], 1)
            totals_B3.index_add_(0, row_I, found_I3)
        return totals_B3

    def serve(self, backbone: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, 3 + W): as `outputs`, and the tokens that are written after each text.

        Drawn from a seed that depends on the text alone, so that whoever asks, alone or among others, gets the same.
        """
        written_BW = torch.full((len(inputs["tokens"]), self.options.written), NOTHING)
        for row, (tokens_T, mask_T) in enumerate(zip(inputs["tokens"], inputs["mask"], strict=True)):
            found = self._write(backbone, tokens_T[mask_T][:-1])  # without the mark of its end
            written_BW[row, : len(found)] = torch.tensor(found, dtype=torch.long)
        return torch.cat([self.outputs(backbone, inputs).cpu(), written_BW.float()], 1)

    def answers(self, outputs_NS: np.ndarray, rows: Mapping[str, Any], temperature: float) -> np.ndarray:
        """(N, 4 + W) float64: what LANGUAGE_SCORES names, and what is written."""
        return np.column_stack([outputs_NS[:, :3], rows["text"].lengths, outputs_NS[:, 3:]]).astype(np.float64)

    def scores(self, answers_NS: np.ndarray, rows: Mapping[str, Any]) -> np.ndarray:
        return answers_NS[:, : len(LANGUAGE_SCORES)]

    def trivial_answers(self, train_rows: Mapping[str, Any], rows: Mapping[str, Any]) -> np.ndarray:
        """Each token's share among the training texts, one added to each."""
        counts_V = np.bincount(np.asarray(train_rows["tokens"].values), minlength=self.vocabulary) + 1.0
        nats_V, likeliest = -np.log(counts_V / counts_V.sum()), counts_V.argmax()
        found = [one[1:] for one in rows["tokens"]]
        outputs_NS = np.array([[nats_V[one].sum(), len(one), (one == likeliest).sum()] for one in found])
        return self.answers(outputs_NS, rows, 1.0)

    def frame(self, answers_NS: np.ndarray) -> pd.DataFrame:
        """continuation: what is written after the text; loss (nats a token) and perplexity of the text itself."""
        if len(answers_NS) == 0:
            return pd.DataFrame({"continuation": pd.Series(dtype=object), "loss": pd.Series(dtype=float), "perplexity": pd.Series(dtype=float)})
        tokenizer = tokenizing.load(self.json)
        written = [[int(token) for token in row if token != NOTHING] for row in answers_NS[:, len(LANGUAGE_SCORES) :]]
        loss_N = answers_NS[:, 0] / np.maximum(answers_NS[:, 1], 1)
        texts = pd.Series([tokenizing.decode(tokenizer, row) for row in written], dtype=object)
        return pd.DataFrame({"continuation": texts, "loss": loss_N, "perplexity": np.exp(loss_N)})

    def details(
        self, table: pd.DataFrame, answers_NS: np.ndarray, before_NS: np.ndarray, rows: Mapping[str, Any], *, mistakes: int, **options: Any
    ) -> tuple[dict[str, Any], pd.DataFrame]:
        """The texts that were guessed worst, each text's length and loss; and its statistics."""
        facts = pd.DataFrame(self.scores(answers_NS, rows), columns=list(LANGUAGE_SCORES))
        loss_N = (facts["nats"] / facts["tokens"].clip(lower=1)).to_numpy()
        predictions = pd.concat([table[["row_id", "key"]].reset_index(drop=True), facts, pd.Series(loss_N, name="loss")], axis=1)
        worst = [
            {"row": int(row), "key": str(predictions["key"][row]), "loss": float(loss_N[row]), "text": bytes(rows["text"][int(row)]).decode()[:200]}
            for row in np.argsort(-loss_N, kind="stable")[:mistakes]
        ]
        return {"mistakes": worst, "mistakes_title": "The texts guessed worst", "lengths": facts["tokens"].tolist(), "losses": loss_N.tolist()}, predictions

    def pictures(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        from ml import pictures  # imported where it is used: a served model draws nothing

        return {"length_and_loss": pictures.scatter(facts["lengths"], facts["losses"], "tokens of a text", "loss of a token, nats")}

    def _guesses(self, backbone: nn.Module, inputs: Mapping[str, Tensor], asked_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Of each token but the first (B, T − 1): its loss, 0 where it is not asked for, and whether it was guessed."""
        logits_BTV = self._logits(backbone, backbone.encode(inputs).tokens_BTD[:, :-1])
        target_BT = inputs["tokens"][:, 1:].masked_fill(~asked_BT[:, 1:], NOT_ASKED)
        loss_BT = F.cross_entropy(logits_BTV.flatten(0, 1), target_BT.flatten(), ignore_index=NOT_ASKED, reduction="none").view_as(target_BT)
        return loss_BT, logits_BTV.detach().argmax(2) == target_BT

    def _write(self, backbone: nn.Module, given_T: Tensor) -> list[int]:
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(given_T.cpu().numpy().tobytes()).digest()[:7], "big"))
        given_T = given_T[-max(1, self.length - self.options.written) :]  # places beyond the length were never trained

        def choose(state_D: Tensor) -> int | None:
            token = int(draw(self._logits(backbone, state_D)[None].cpu(), self.options.temperature, self.options.top_p, generator))
            return None if token == self.end else token

        return backbone.write(given_T, min(self.options.written, self.length - len(given_T)), choose)

    def _logits(self, backbone: nn.Module, states_D: Tensor) -> Tensor:
        return F.linear(states_D, backbone.embedding.weight).float()


def windows(length: int, limit: int) -> Iterator[tuple[int, int, int]]:
    """(first token, the one behind the last, first that no window before has asked for) of each window over a row of `length` tokens, the first
    of which is asked for by none. They overlap by half; the last ends with the row."""
    seen, last = 1, max(0, length - limit)
    for first in [*range(0, last, max(1, limit // 2)), last]:
        end = min(first + limit, length)
        yield first, end, seen
        seen = end
