"""The language model's head: exact statistics of a text, continuations that depend on the text alone, and trained weights that tell."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from ml.backbones import BACKBONES
from ml.contracts import Batch
from ml.heads import HEADS
from ml.modalities import MODALITIES
from ml.ragged import Ragged

TEXTS = ["the sun and the moon", "the moon", "a sun", "the sea and the sun and the moon and the sea", "moon and sea"]


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
    return modality.encode(torch.from_numpy(modality.collate(rows["tokens"], spec)), spec)


@torch.no_grad()
def test_the_statistics_of_a_text_are_those_of_the_text_alone(spec_and_rows):
    modality, spec, rows = spec_and_rows
    backbone, head = built(spec)
    outputs = head.outputs(backbone, inputs_of(modality, spec, rows)).numpy()
    for row in range(len(TEXTS)):
        tokens = torch.from_numpy(modality.collate(rows["tokens"][[row]], spec)).long()
        logits = backbone.encode({"tokens": tokens, "mask": torch.ones_like(tokens, dtype=torch.bool)}).tokens_BTD[0, :-1] @ backbone.embedding.weight.T
        assert outputs[row, 0] == pytest.approx(float(F.cross_entropy(logits, tokens[0, 1:], reduction="sum")), rel=1e-4)
        assert outputs[row, 1] == tokens.shape[1] - 1
        assert outputs[row, 2] == int((logits.argmax(1) == tokens[0, 1:]).sum())


@torch.no_grad()
def test_bytes_are_those_that_were_read(spec_and_rows):
    modality, spec, rows = spec_and_rows
    backbone, head = built(spec)
    answers = head.answers(head.outputs(backbone, inputs_of(modality, spec, rows)).numpy(), rows, 1.0)
    assert answers[:3, 3].tolist() == [len(text) for text in TEXTS[:3]]
    assert 20 < answers[3, 3] < len(TEXTS[3])  # of the one that is cut


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
