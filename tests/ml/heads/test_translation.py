"""Translation: its loss is torch's, it learns pairs by heart and writes them, and says what it got wrong."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from sacrebleu.metrics import BLEU
from torch.nn import functional as F

from ml.backbones.bart import Bart
from ml.contracts import Batch, DataSpec, InputError, Raw
from ml.heads.translation import Translation
from ml.modalities.text_pair import TextPair
from ml.ragged import Ragged

PAIRS = [
    ("two dogs run on the grass.", "Zwei Hunde rennen auf dem Gras."),
    ("a man sleeps on the sofa.", "Ein Mann schläft auf dem Sofa."),
    ("two men sit.", "Zwei Männer sitzen."),
    ("the dog sleeps.", "Der Hund schläft."),
]


class Made:
    """A network, its head, and pairs as they are stored."""

    def __init__(self, **options):
        torch.manual_seed(0)
        self.modality = TextPair(TextPair.Options(max_length=24, vocabulary=340))
        rows = Ragged.of([self.modality.decode(Raw(json.dumps({"source": a, "target": b}).encode())).array for a, b in PAIRS], np.uint8)
        self.spec = self.modality.spec((), self.modality.statistics([rows]))
        self.rows = self.modality.pack(rows, self.spec)
        self.backbone = Bart(Bart.Options(size="nano", dropout=0.0), self.spec)
        self.head = Translation(Translation.Options(**options), self.backbone.width, self.spec)

    def inputs(self, rows=None):
        tokens = (self.rows if rows is None else rows)["tokens"]
        return self.modality.encode(torch.from_numpy(self.modality.collate(tokens, self.spec)), self.spec)

    def batch(self):
        return Batch(self.inputs(), torch.full((len(PAIRS),), -1))

    def answers(self, rows=None):
        with torch.inference_mode():
            outputs = self.head.outputs(self.backbone, self.inputs(rows))
        assert outputs.shape == (len((rows or self.rows)["tokens"]), 24) and outputs.dtype == torch.float32
        return self.head.answers(outputs.numpy(), rows or self.rows, 1.0)


@pytest.fixture(scope="module")
def trained():
    made = Made(label_smoothing=0.0)
    optimizer = torch.optim.AdamW(made.backbone.parameters(), 2e-3)
    made.backbone.train()
    for _ in range(60):
        result = made.head.step(made.backbone, made.batch())
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
    assert result.loss < 0.1 and float(result.extras["accuracy"]) == 1
    made.backbone.eval()
    return made


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_that_of_torch_over_the_targets_tokens(smoothing):
    made = Made(label_smoothing=smoothing)
    made.backbone.eval()
    batch = made.batch()
    result, logits = made.head.step(made.backbone, batch), made.backbone.logits(batch.inputs)
    mask = batch.inputs["target_mask"][:, 1:]
    expected = F.cross_entropy(logits[mask], batch.inputs["target"][:, 1:][mask], label_smoothing=smoothing)
    torch.testing.assert_close(result.loss, expected)
    assert result.loss.requires_grad and not result.extras["accuracy"].requires_grad


def test_a_batch_without_targets_gives_a_finite_loss():
    made = Made()
    rows = made.modality.pack(Ragged.of([made.modality.decode(Raw(b"two dogs")).array], np.uint8), made.spec)
    loss = made.head.step(made.backbone, Batch(made.inputs(rows), torch.tensor([-1]))).loss
    loss.backward()
    assert float(loss.detach()) == 0


def test_writes_what_it_learnt_and_scores_it(trained):
    answers = trained.answers()
    assert answers == [target for _, target in PAIRS]
    scores = trained.head.scores(answers, trained.rows)
    assert {name: metric(None, scores) for name, metric in trained.head.metrics.items()} == pytest.approx({"bleu": 1, "chrf": 1})
    assert trained.head.primary in trained.head.metrics


def test_a_source_alone_is_answered_as_with_its_target(trained):
    rows = trained.modality.pack(Ragged.of([trained.modality.decode(trained.modality.serve(PAIRS[1][0])).array], np.uint8), trained.spec)
    assert trained.answers(rows) == [PAIRS[1][1]]


def test_a_beam_search_writes_too():
    made = Made(beams=3)
    assert len(made.answers()) == 4 and all(isinstance(answer, str) for answer in made.answers())


def test_answers_end_at_the_mark():
    made = Made()
    marks = made.spec.statistics["tokens"]
    ids = made.rows["tokens"][0]
    ids = -2 - ids[ids < -1]
    outputs = np.full((2, 24), marks["pad"], np.float32)
    outputs[0, : len(ids) - 1], outputs[0, len(ids) :] = ids[1:], 9
    assert made.head.answers(outputs, made.rows) == [PAIRS[0][1], ""]


def test_the_trivial_way_copies_the_source():
    made = Made()
    copied = made.head.trivial_answers(made.rows, made.rows)
    assert copied == [source for source, _ in PAIRS]
    expected = BLEU(force=True).corpus_score(copied, [[target for _, target in PAIRS]]).score / 100
    assert made.head.metrics["bleu"](None, made.head.scores(copied, made.rows)) == pytest.approx(expected)


def test_the_frame_has_no_gaps():
    made = Made()
    frame = made.head.frame(["Ein Hund", ""])
    assert frame["translation"].tolist() == ["Ein Hund", ""] and list(frame) == ["translation"]
    assert len(made.head.frame([])) == 0 and list(made.head.frame([])) == ["translation"]


def test_details_are_plain_and_name_the_worst_first():
    made = Made()
    table = pd.DataFrame({"row_id": list("abcd"), "key": [f"x:{row}" for row in range(4)]}, index=[7, 5, 3, 1])
    answers = [PAIRS[0][1], "Ganz anders", PAIRS[2][1], "Der Hund rennt."]
    facts, predictions = made.head.details(table, answers, answers, made.rows, temperature=1.0, mistakes=2, options={})
    assert [one["row"] for one in facts["mistakes"]] == [1, 3]
    assert facts["mistakes"][0] | {"chrf": 0} == {"row": 1, "key": "x:1", "source": PAIRS[1][0], "truth": PAIRS[1][1], "answer": "Ganz anders", "chrf": 0}
    assert list(predictions) == ["row_id", "key", "source", "reference", "translation", "chrf"] and predictions["chrf"].tolist()[0] == 1
    drawn = made.head.pictures(json.loads(json.dumps(facts)))
    assert drawn and all(isinstance(figure, Figure) for figure in drawn.values())


def test_other_data_are_refused():
    with pytest.raises(InputError, match=r"found text data: set data\.modality to text-pair"):
        Translation(Translation.Options(), 8, DataSpec("text", {"vocabulary": 9}, (8,), (), {"tokens": {}, "tokenizer": ""}))
