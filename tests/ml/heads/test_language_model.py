"""The language model's head: exact statistics of a text, continuations that depend on the text alone, and trained weights that tell."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from ml.backbones import BACKBONES
from ml.contracts import Batch
from ml.heads import HEADS
from ml.heads.language_model import windows
from ml.modalities import MODALITIES
from ml.ragged import Ragged

TEXTS = ["the sun and the moon", "the moon", "a sun", "the sea and the sun and the moon and the sea and the sun", "moon and sea"]


@pytest.fixture(scope="module")
def spec_and_rows():
    Text = MODALITIES["text"]
    modality = Text(Text.Options(max_length=24, tokenizer="characters", vocabulary=100))
    stored = Ragged.of([np.frombuffer(text.encode(), np.uint8) for text in TEXTS], np.uint8)
    spec = modality.spec((), modality.statistics([stored]))
    rows = modality.pack(stored, spec)
    return modality, spec, rows


def built(spec, **options):
    torch.manual_seed(0)
    backbone = BACKBONES["gpt"](BACKBONES["gpt"].Options(dropout=0.0), spec).eval()
    return backbone, HEADS["language-model"](HEADS["language-model"].Options(**options), backbone.width, spec)


def inputs_of(modality, spec, rows):
    return modality.encode(torch.from_numpy(modality.collate(rows["tokens"], spec, whole=True)), spec)


def expected(backbone, tokens_T, limit):
    """Nats and whether it was guessed, of each token but the first: each from the first window, in steps of half a one, that reaches it."""
    last, found = max(0, len(tokens_T) - limit), []
    starts = sorted({*range(0, last, limit // 2), last})
    for place in range(1, len(tokens_T)):
        start = next(one for one in starts if place < one + limit)
        given = torch.from_numpy(tokens_T[start:place])[None].long()
        states_D = backbone.encode({"tokens": given, "mask": torch.ones_like(given, dtype=torch.bool)}).tokens_BTD[0, -1]
        logits_V = backbone.embedding.weight @ states_D
        found.append((float(F.cross_entropy(logits_V, torch.tensor(int(tokens_T[place])))), int(logits_V.argmax()) == tokens_T[place]))
    return np.array(found)


@torch.no_grad()
def test_the_statistics_of_a_text_are_those_of_the_text_alone(spec_and_rows):
    modality, spec, rows = spec_and_rows
    backbone, head = built(spec)
    outputs = head.outputs(backbone, inputs_of(modality, spec, rows)).numpy()
    for row, tokens_T in enumerate(rows["tokens"]):
        told = expected(backbone, tokens_T, spec.shape[0])
        assert outputs[row] == pytest.approx([told[:, 0].sum(), len(tokens_T) - 1, told[:, 1].sum()], rel=1e-4)
    assert rows["tokens"].lengths.max() > 2 * spec.shape[0] > 2 * rows["tokens"].lengths.min()


@torch.no_grad()
def test_every_token_and_every_byte_counts_once_whatever_is_read_at_once(spec_and_rows):
    modality, spec, rows = spec_and_rows
    for length in (4, 7, 24, 64):
        shorter = dataclasses.replace(spec, shape=(length,))
        backbone, head = built(shorter)
        answers = head.answers(head.outputs(backbone, inputs_of(modality, shorter, rows)).numpy(), rows, 1.0)
        assert answers[:, 1].tolist() == (rows["tokens"].lengths - 1).tolist() and answers[:, 3].tolist() == [len(text) for text in TEXTS]
        trivial = head.trivial_answers(rows, rows)
        assert (trivial[:, [1, 3]] == answers[:, [1, 3]]).all()


@given(length=st.integers(1, 400), limit=st.integers(4, 64))
def test_windows_ask_for_each_token_once_from_half_a_window_before_it(length, limit):
    asked = []
    for first, end, fresh in windows(length, limit):
        assert 0 <= first < end <= length and end - first <= limit
        asked += range(fresh, end)
        assert all(place - first >= min(place, limit // 2) for place in range(fresh, end))
    assert asked == list(range(1, length))


@torch.no_grad()
def test_what_is_written_depends_on_the_text_alone(spec_and_rows):
    modality, spec, rows = spec_and_rows
    backbone, head = built(spec, written=8)
    together = head.serve(backbone, inputs_of(modality, spec, rows)).numpy()
    for row in range(len(TEXTS)):
        alone = {name: array[[row]] for name, array in rows.items()}
        np.testing.assert_array_equal(head.serve(backbone, inputs_of(modality, spec, alone)).numpy()[0, 3:], together[row, 3:])
    frame = head.frame(head.answers(together, rows, 1.0))
    assert list(frame) == ["continuation", "loss", "perplexity"] and frame["continuation"].map(len).max() <= 8
    np.testing.assert_allclose(frame["perplexity"], np.exp(frame["loss"]))


@torch.no_grad()
def test_the_cache_changes_nothing_in_what_is_written(spec_and_rows):
    _, spec, rows = spec_and_rows
    backbone, _ = built(spec)
    given = torch.from_numpy(rows["tokens"][0]).long()[:6]
    fast = backbone.write(given, 10, lambda state: int((backbone.embedding.weight @ state).argmax()))
    slow = given.tolist()
    for _ in range(10):
        tokens = torch.tensor([slow])
        states = backbone.encode({"tokens": tokens, "mask": torch.ones_like(tokens, dtype=torch.bool)}).tokens_BTD
        slow.append(int((backbone.embedding.weight @ states[0, -1]).argmax()))
    assert fast == slow[6:]


def test_nothing_to_tell_has_the_same_columns(spec_and_rows):
    _, spec, _ = spec_and_rows
    assert list(built(spec)[1].frame([])) == ["continuation", "loss", "perplexity"]


def test_training_beats_knowing_how_often_each_token_occurs(spec_and_rows):
    modality, spec, rows = spec_and_rows
    backbone, head = built(spec)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=3e-3)
    inputs = inputs_of(modality, spec, rows)
    for _ in range(60):
        optimizer.zero_grad()
        head.step(backbone, Batch(inputs, torch.zeros(len(TEXTS)))).loss.backward()
        optimizer.step()
    with torch.no_grad():
        scores = head.scores(head.answers(head.outputs(backbone, inputs).numpy(), rows, 1.0), rows)
    trivial = head.scores(head.trivial_answers(rows, rows), rows)
    metric = head.metrics["bits_per_byte"]
    assert metric(None, scores) < 0.5 * metric(None, trivial)
    table = pd.DataFrame({"row_id": list("abcde"), "key": list("abcde")})
    facts, predictions = head.details(table, scores, scores, rows, mistakes=2)
    assert len(facts["mistakes"]) == 2 and facts["mistakes"][0]["loss"] >= facts["mistakes"][1]["loss"]
    assert len(predictions) == len(TEXTS) and head.pictures(facts)
