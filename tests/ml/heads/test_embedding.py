"""Embeddings: they are learnt, of length 1, measured by what is found among the targets, and told as lists of numbers."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from matplotlib.figure import Figure

from ml.backbones.bert import Bert
from ml.backbones.text_cnn import TextCnn
from ml.contracts import Batch, DataSpec, InputError, Raw
from ml.heads.embedding import Embedding
from ml.modalities.text_pair import TextPair
from ml.ragged import Ragged

PAIRS = [
    ("two dogs run on the grass.", "Zwei Hunde rennen auf dem Gras."),
    ("a man sleeps on the sofa.", "Ein Mann schläft auf dem Sofa."),
    ("two men sit.", "Zwei Männer sitzen."),
    ("the dog sleeps.", "Der Hund schläft."),
    ("a dog is asleep.", "Der Hund schläft."),
]


class Made:
    """A network, its head, and pairs as they are stored."""

    def __init__(self, backbone=TextCnn, more=None, **options):
        torch.manual_seed(0)
        self.modality = TextPair(TextPair.Options(max_length=24, vocabulary=340))
        rows = self.decoded([json.dumps({"source": a, "target": b}) for a, b in PAIRS])
        self.spec = self.modality.spec((), self.modality.statistics([rows]))
        self.rows = self.modality.pack(rows, self.spec)
        self.backbone = backbone(backbone.Options(**(more or {"width": 16, "depth": 0}), dropout=0.0), self.spec)
        self.head = Embedding(Embedding.Options(**options), self.backbone.width + getattr(self.backbone, "wide", 0), self.spec)

    def decoded(self, values):
        return Ragged.of([self.modality.decode(self.modality.serve(value)).array for value in values], np.uint8)

    def inputs(self, rows=None):
        tokens = (self.rows if rows is None else rows)["tokens"]
        return self.modality.encode(torch.from_numpy(self.modality.collate(tokens, self.spec)), self.spec)

    def answers(self):
        with torch.inference_mode():
            return self.head.answers(self.head.outputs(self.backbone.eval(), self.inputs()).numpy(), self.rows)

    def train(self, steps=30):
        batch = Batch(self.inputs(), torch.zeros(len(PAIRS), dtype=torch.long))
        optimizer = torch.optim.AdamW([*self.backbone.parameters(), *self.head.parameters()], 1e-2)
        for _ in range(steps):
            result = self.head.step(self.backbone.train(), batch)
            optimizer.zero_grad()
            result.loss.backward()
            optimizer.step()
        return result


@pytest.mark.parametrize(("backbone", "more"), [(TextCnn, {"width": 16, "depth": 0}), (TextCnn, {"width": 16, "depth": 1, "words": True}), (Bert, {"size": "tiny"})])
@pytest.mark.parametrize("width", [0, 8])
def test_outputs_are_both_sides_of_unit_length(backbone, more, width):
    made = Made(backbone, more, width=width)
    answers, size = made.answers(), made.head.size
    assert size == width or (not width and size == made.backbone.width + getattr(made.backbone, "wide", 0))
    assert answers.shape == (5, 2 * size) and answers.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(answers.reshape(5, 2, size), axis=2), 1, rtol=1e-5)
    with torch.inference_mode():
        alone = made.head.serve(made.backbone, made.inputs(made.modality.pack(made.decoded([a for a, _ in PAIRS]), made.spec)))
        turned = made.head.serve(made.backbone, made.inputs(made.modality.pack(made.decoded([b for _, b in PAIRS]), made.spec)))
    np.testing.assert_allclose(alone, answers[:, :size], atol=1e-5)  # a text alone, on either side, is embedded as it is in a pair
    np.testing.assert_allclose(turned, answers[:, size:], atol=1e-5)


def test_it_learns_to_find_every_target():
    made = Made()
    result = made.train()
    scores = made.head.scores(made.answers(), made.rows)
    assert float(result.loss.detach()) < 0.1 and made.head.metrics[made.head.primary](None, scores) == 1
    assert float(result.extras["contrastive_accuracy"]) == 1, "rows 3 and 4 have one target, which is not held against either"


def test_scores_are_as_wide_as_those_of_the_alternatives():
    made = Made()
    scores = made.head.scores(made.answers(), made.rows)
    trivial = made.head.scores(made.head.trivial_answers(made.rows, made.rows), made.rows)
    simple = made.head.alternative(made.rows, made.rows, made.rows, made.spec, 0)
    assert scores.shape == trivial.shape == made.head.scores(simple.answers, made.rows).shape == (5, 2)
    assert trivial[0].tolist() == [0, 3], "no word is shared: all targets are as near"
    assert "latent semantic indexing" in simple.note


def test_the_frame_holds_lists_of_float32_even_without_rows():
    made = Made()
    frame = made.head.frame(made.answers())
    for one in (frame, made.head.frame([]), frame.reindex([0, 7])):
        assert one.dtypes["embedding"] == pd.ArrowDtype(pa.list_(pa.float32())) and list(one) == ["embedding"]
    np.testing.assert_array_equal(np.array(frame["embedding"].tolist(), np.float32), made.answers()[:, :16])


def test_details_are_plain_and_name_the_nearest_wrong_ones():
    made = Made()
    table = pd.DataFrame({"row_id": list("abcde"), "key": [f"x:{row}" for row in range(5)]}, index=[7, 5, 3, 1, 0])
    axis = np.eye(8, dtype=np.float32)
    near = 0.8 * axis[1] + 0.6 * axis[2]
    answers = np.concatenate([np.stack([axis[0], near, axis[1], axis[3], axis[4]]), axis[[0, 2, 1, 3, 3]]], 1)
    facts, predictions = made.head.details(table, answers, answers, made.rows, temperature=1.0, mistakes=4, options={})
    assert [one["row"] for one in facts["mistakes"]] == [1], "rows 0, 2 and 3 are right, and row 4 is as near to all"
    expected = {"key": "x:1", "source": PAIRS[1][0], "truth": PAIRS[1][1], "answer": PAIRS[2][1], "similarity": "0.800 against 0.600", "rank": "2"}
    assert facts["mistakes"][0] == {"row": 1} | expected
    assert predictions["rank"].tolist() == [1, 2, 1, 1, 2.5] and predictions["found"].tolist()[:2] == [PAIRS[0][1], PAIRS[2][1]]
    assert facts["rows"]["candidates"] == 4
    drawn = made.head.pictures(json.loads(json.dumps(facts)))
    assert set(drawn) == {"ranks", "similarities"} and all(isinstance(figure, Figure) for figure in drawn.values())


def test_pictures_of_one_target_alone():
    made = Made()
    row = {name: array[:1] for name, array in made.rows.items()}
    facts, _ = made.head.details(pd.DataFrame({"row_id": ["a"], "key": ["x"]}), made.answers()[:1], None, row, mistakes=4)
    assert facts["mistakes"] == [] and facts["rows"]["other"] == [None]
    assert made.head.pictures(json.loads(json.dumps(facts, allow_nan=False)))


def test_other_data_are_refused():
    with pytest.raises(InputError, match=r"found text data: set data\.modality to text-pair"):
        Embedding(Embedding.Options(), 8, DataSpec("text", {"vocabulary": 9}, (8,), (), {"tokens": {}, "tokenizer": ""}))


def test_a_batch_without_targets_gives_a_finite_loss():
    made = Made()
    rows = made.modality.pack(Ragged.of([made.modality.decode(Raw(b"two dogs")).array] * 2, np.uint8), made.spec)
    loss = made.head.step(made.backbone, Batch(made.inputs(rows), torch.zeros(2, dtype=torch.long))).loss
    loss.backward()
    assert float(loss.detach()) == 0
