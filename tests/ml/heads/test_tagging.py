"""Tagging: its loss is torch's over first tokens, windows agree with the whole, and users are told words, tags and spans."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from ml.backbones import BACKBONES
from ml.contracts import Batch, DataSpec, Features, InputError, Raw
from ml.evaluation import plain
from ml.heads.tagging import Tagging, _last
from ml.losses import NOT_ASKED
from ml.modalities.tagged import Tagged
from ml.ragged import Ragged
from ml.tag_metrics import STATISTICS

ROWS = [
    ("Ann Lee lives in Rome .", "B-PER I-PER O O B-LOC O"),
    ("Rome is old .", "B-LOC O O O"),
    (" ".join(["so", "Ann", "said"] * 20), " ".join(["O", "B-PER", "O"] * 20)),
    ("Lee", "B-PER"),
]
LENGTH = 16


class Made:
    """Tagged rows as they are stored, a letter-perfect network for them, and a head."""

    def __init__(self, rows=ROWS, **options):
        self.modality = Tagged(Tagged.Options(max_length=LENGTH, vocabulary=120, lowercase=False))
        raws = [Raw(json.dumps({"words": words.split(), "tags": tags.split()}).encode()) for words, tags in rows]
        self.decoded = Ragged.of([self.modality.decode(raw).array for raw in raws], np.uint8)
        self.spec = self.modality.spec((), self.modality.statistics([self.decoded]))
        self.rows = self.modality.pack(self.decoded, self.spec)
        torch.manual_seed(0)
        self.head = Tagging(Tagging.Options(dropout=0.0, **options), 8, self.spec).eval()

    def inputs(self, whole=True, rows=slice(None)):
        return self.modality.encode(torch.from_numpy(self.modality.collate(self.rows["tokens"][rows], self.spec, whole=whole)), self.spec)

    def batch(self):
        inputs = self.inputs(whole=False)
        return Batch(inputs, torch.full((len(inputs["tokens"]),), -1))

    def some(self, *rows):
        return {name: array[list(rows)] for name, array in self.rows.items()}


class Mixing(nn.Module):
    """Each token's vector and the mean of its two neighbours'; it refuses more tokens than are read at once."""

    width, traits = 8, frozenset({"tokens"})

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(200, 8)

    def encode(self, inputs):
        assert inputs["tokens"].shape[1] <= LENGTH and set(inputs) == {"tokens", "mask"}
        own_BTD = self.embedding(inputs["tokens"]) * inputs["mask"][:, :, None]
        padded = F.pad(own_BTD, (0, 0, 1, 1))
        return Features(own_BTD.mean(1), tokens_BTD=own_BTD + (padded[:, :-2] + padded[:, 2:]) / 2)


@pytest.fixture(scope="module")
def made():
    return Made()


def test_the_loss_is_that_of_first_tokens(made):
    batch, backbone = made.batch(), Mixing()
    result = made.head.step(backbone, batch)
    logits, tags = made.head._logits(backbone, batch.inputs), batch.inputs["tags"]
    asked = tags != NOT_ASKED
    assert asked.sum() < batch.inputs["mask"].sum() - 2 * len(ROWS)  # some words have several tokens
    torch.testing.assert_close(result.loss, F.cross_entropy(logits[asked], tags[asked]))
    assert float(result.extras["accuracy"]) == pytest.approx(float((logits[asked].argmax(1) == tags[asked]).float().mean()))


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_rare_tags_may_count_more(balance):
    made, backbone = Made(balance=balance), Mixing()
    counts = torch.tensor(made.spec.statistics["tag_counts"], dtype=torch.float32)
    weights = (counts.mean() / counts) ** balance
    batch = made.batch()
    asked = batch.inputs["tags"] != NOT_ASKED
    expected = F.cross_entropy(made.head._logits(backbone, batch.inputs)[asked], batch.inputs["tags"][asked], weights)
    torch.testing.assert_close(made.head.step(backbone, batch).loss, expected)
    assert weights.argmax() == counts.argmin() and "weights_K" not in made.head.state_dict()


def test_a_batch_may_have_nothing_to_learn(made):
    inputs = made.inputs(whole=False)
    inputs["tags"] = torch.full_like(inputs["tags"], NOT_ASKED)
    assert made.head.step(Mixing(), Batch(inputs, torch.full((len(ROWS),), -1))).loss.item() == 0


@torch.no_grad()
def test_windows_tell_what_the_whole_row_would(made):
    """The network sees one token to each side, so that no window's edge shows, except at those of the row."""
    backbone, inputs = Mixing(), made.inputs()
    assert inputs["tokens"].shape[1] > 3 * LENGTH
    outputs = made.head.outputs(backbone, inputs).numpy()
    own = backbone.embedding(inputs["tokens"]) * inputs["mask"][:, :, None]
    padded = F.pad(own, (0, 0, 1, 1))
    sure, tag = made.head.linear(own + (padded[:, :-2] + padded[:, 2:]) / 2).softmax(2).max(2)
    for row, (words, _) in enumerate(ROWS):
        first, count = inputs["first"][row], len(words.split())
        told = outputs[row].reshape(-1, 2)
        np.testing.assert_array_equal(told[:count, 0], tag[row][first])
        np.testing.assert_allclose(told[:count, 1], sure[row][first], rtol=1e-5)
        assert np.isnan(told[count:]).all()
        alone = made.head.outputs(backbone, made.inputs(rows=[row])).numpy()[0]
        np.testing.assert_allclose(alone, outputs[row][: len(alone)], rtol=1e-5)


def test_what_reads_forwards_is_asked_at_a_words_last_token():
    first, mask = torch.tensor([[0, 1, 0, 0, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0, 0]]).bool(), torch.tensor([[1] * 8 + [0], [1] * 4 + [0] * 5]).bool()
    assert _last(first, mask)[0, :7].tolist() == [0, 3, 3, 3, 4, 6, 6] and _last(first, mask)[1, :3].tolist() == [0, 2, 2]


@pytest.mark.parametrize(("name", "options"), [("bert", {"size": "tiny", "dropout": 0}), ("text-cnn", {"width": 32, "dropout": 0}), ("gpt", {"dropout": 0})])
def test_it_learns_its_rows_by_heart(made, name, options):
    torch.manual_seed(0)
    backbone = BACKBONES[name](BACKBONES[name].Options(**options), made.spec)
    head = Tagging(Tagging.Options(dropout=0.0), backbone.width, made.spec)
    optimizer = torch.optim.Adam([*backbone.parameters(), *head.parameters()], 3e-3)
    for _ in range(60):
        loss = head.step(backbone, made.batch()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        answers = head.eval().answers(head.outputs(backbone.eval(), made.inputs()).numpy(), made.rows)
    scores = head.scores(answers, made.rows)
    least = 0.8 if name == "gpt" else 0.99  # which does not see what follows
    assert head.metrics["accuracy"](np.zeros(4), scores) > least


def told(made, *tags, scores=None):
    """Answers with these tags for the first rows."""
    found = np.full((len(tags), 2 * 60), np.nan)
    for row, one in enumerate(tags):
        for place, tag in enumerate(one.split()):
            found[row, 2 * place : 2 * place + 2] = made.head.tags.index(tag), scores[row][place] if scores else 0.75
    return made.head.answers(found, made.some(*range(len(tags))))


def test_users_are_told_words_tags_and_spans(made):
    answers = told(made, "B-PER I-PER O O B-LOC O", "O O O B-PER", scores=[[0.9, 0.8, 1, 1, 0.99949, 1], [1, 1, 1, 0.5]])
    assert answers[0]["entities"] == [
        {"type": "PER", "text": "Ann Lee", "start": 0, "end": 7, "score": 0.8},
        {"type": "LOC", "text": "Rome", "start": 17, "end": 21, "score": 0.999},
    ]
    frame = made.head.frame(answers)
    assert list(frame) == ["words", "tags", "entities", "score"] == list(made.head.frame([]))
    assert json.loads(frame["words"][0]) == ROWS[0][0].split() and json.loads(frame["tags"][0]) == ROWS[0][1].split()
    assert frame["score"].tolist() == pytest.approx([0.8, 0.5]) and made.head.frame([])["score"].dtype == float


def test_parts_of_speech_have_no_spans():
    made = Made([("dogs run", "NN VB"), ("a dog", "DT NN")])
    answers = told(made, "NN NN", "DT NN")
    assert list(made.head.frame(answers)) == ["words", "tags", "score"] and answers[0]["entities"] == []
    scores = made.head.scores(answers, made.rows)
    assert {name: measure(np.zeros(2), scores) for name, measure in made.head.metrics.items()} == {"f1": 0.75, "precision": 0.75, "recall": 0.75, "accuracy": 0.75}


def test_the_trivial_way_is_each_words_commonest_tag(made):
    train = Made([("Ann runs", "B-PER O"), ("Ann sits", "B-PER O"), ("Ann x", "O B-LOC"), ("Lee y", "B-PER B-LOC")])
    answers = train.head.trivial_answers(train.rows, Made([("Ann runs in z", "B-PER O O B-LOC")]).rows)
    assert answers[0]["tags"] == ["B-PER", "O", "O", "O"]  # of what occurs once, O comes first among equals
    assert answers[0]["scores"][0] == pytest.approx(2 / 3)


def test_details_name_types_confusion_and_sure_mistakes(made):
    answers = told(made, "B-PER I-PER O O B-PER O", "B-LOC O O O", scores=[[1, 1, 1, 1, 0.9, 1], [1] * 4])
    table = pd.DataFrame({"row_id": list("ab"), "key": ["x:1", "x:2"], "group": [0, 1]})
    facts, predictions = made.head.details(table, answers, answers, made.some(0, 1), temperature=1.0, mistakes=5, options={"resamples": 100, "confidence": 0.95, "seed": 0})
    by = {one["class"]: one for one in facts["per_class"]}
    assert (by["PER"]["support"], by["LOC"]["support"]) == (1, 2)
    assert by["PER"]["precision"].value == 0.5 and by["LOC"]["recall"].value == 0.5 and by["LOC"]["precision"].value == 1
    assert facts["types"] == ["LOC", "PER", "O"] and facts["confusion"].tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 6]]
    assert facts["mistakes"] == [{"row": 0, "key": "x:1", "text": "Ann Lee lives in [Rome] .", "truth": "B-LOC", "predicted": "B-PER", "probability": 0.9}]
    assert [f"n_{name}" for name in STATISTICS] == list(predictions)[-5:] and predictions["n_right"].tolist() == [5, 4]
    drawn = made.head.pictures(plain(facts))
    assert set(drawn) == {"f1_by_type", "confusion"} and all(isinstance(figure, Figure) for figure in drawn.values())
    for figure in drawn.values():
        figure.canvas.draw()


def test_rows_without_spans_can_be_told_and_drawn():
    made = Made([("all is old", "O O O"), ("B", "B-X")])
    answers, table = told(made, "O O O"), pd.DataFrame({"row_id": ["a"], "key": ["x"]})
    facts, _ = made.head.details(table, answers, answers, made.some(0), temperature=1.0, mistakes=5, options={"resamples": 100, "confidence": 0.95, "seed": 0})
    assert facts["per_class"] == [] and facts["mistakes"] == [] and set(made.head.pictures(plain(facts))) == {"confusion"}


def test_other_data_are_refused():
    with pytest.raises(InputError, match="found text data: set data"):
        Tagging(Tagging.Options(), 8, DataSpec("text", {}, (16,), (), {}))
