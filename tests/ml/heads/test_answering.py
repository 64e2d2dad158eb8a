"""Extractive answering: its loss, spans over windows, what users are told, and the trivial way."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from ml.answer_spans import whole_words, window_index, window_starts
from ml.backbones.bert import Bert
from ml.contracts import Batch, DataSpec, Features, InputError, Raw
from ml.heads.answering import SCALE, Answering
from ml.modalities.question import Question
from ml.ragged import Ragged

WORDS = " ".join(f"w{number}" for number in range(200))
LENGTH = 32


def raw(question, context, *answers):
    return Raw(json.dumps({"question": question, "context": context, "answers": [{"text": text, "start": context.find(text)} for text in answers]}).encode())


RAWS = [
    raw("which is it?", "w0 w1 w2 target w3 w4.", "target", "w2 target"),
    raw("which is it?", "w0 w1 w2 w3 w4.", ),
    raw("which is it?", f"{WORDS} target", "target"),
    raw("which is it?", f"{WORDS} target {WORDS}", "target"),
    raw("which is it?", WORDS),
]


def vocabulary(folder):
    words = ["which", "is", "it", "?", ".", "target", *(f"w{number}" for number in range(200))]
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    return str(folder)


@pytest.fixture
def data(tmp_path):
    """The modality, the spec and the stored rows of RAWS, a word a token."""
    one = Question(Question.Options(max_length=LENGTH, stride=8, vocabulary=300, tokenizer_path=vocabulary(tmp_path)))
    rows = Ragged.of([one.decode(row).array for row in RAWS], np.uint8)
    spec = one.spec((), one.statistics([rows]))
    return one, spec, one.pack(rows, spec)


def whole(data):
    one, spec, packed = data
    return one.encode(torch.from_numpy(one.collate(packed["tokens"], spec, whole=True)), spec)


class Rigged(nn.Module):
    """Its features say whether a token is the target, and whether it is the first; it refuses more than LENGTH."""

    width = 2

    def __init__(self, target: int):
        super().__init__()
        self.target, self.read = target, []

    def encode(self, inputs):
        tokens = inputs["tokens"]
        assert tokens.shape[1] <= LENGTH and set(inputs) == {"tokens", "mask"}
        self.read.append(tokens.shape)
        first = torch.zeros_like(tokens)
        first[:, 0] = 1
        return Features(torch.zeros(len(tokens), 2), tokens_BTD=torch.stack([tokens == self.target, first], 2).float())


def rigged(data, **options):
    """A head that answers with the target where it is, and with nothing elsewhere."""
    _, spec, _ = data
    head = Answering(Answering.Options(overlap=False, **options), 2, spec)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[20.0, 10.0], [20.0, 10.0]]))
    return head.requires_grad_(False), Rigged(10)


def test_an_answer_in_any_window_is_found(data):
    head, backbone = rigged(data)
    outputs = head.outputs(backbone, whole(data))
    assert outputs.shape == (len(RAWS), 4)
    answers = head.answers(outputs.numpy(), data[2], 1.0)
    assert [one["answer"] for one in answers] == ["target", "", "target", "target", ""]
    for row, one in enumerate(answers):
        assert bytes(data[2]["text"][row]).decode()[one["start"] : one["end"]] == one["answer"]
        assert 0.9 < one["score"] <= 1
    assert head.scores(answers, data[2])[:, :2].tolist() == [[1, 1]] * len(RAWS)
    alone = [head.outputs(backbone, {name: value[row : row + 1] for name, value in whole(data).items()}) for row in range(len(RAWS))]
    torch.testing.assert_close(torch.cat(alone), outputs)  # whatever the batch


def test_windows_cover_the_context_and_repeat_the_question():
    for length, question, limit, stride in [(20, 5, 32, 8), (33, 5, 32, 8), (400, 5, 32, 8), (400, 5, 32, 500), (100, 60, 32, 8), (70, 60, 32, 3), (3, 2, 32, 8)]:
        seen = []
        for start in window_starts(length, question, limit, stride):
            index = window_index(length, question, limit, start)
            assert len(index) <= limit and (index[0], index[-1]) == (0, length - 1) and question - 1 in index
            assert index.tolist() == sorted(set(index.tolist()))
            seen += [place for place in index.tolist() if question <= place < length - 1]
        assert set(seen) == set(range(question, length - 1))
    assert window_starts(20, 5, 32, 8) == [0] and window_index(20, 5, 32, 0).tolist() == list(range(20))


def test_answers_cut_no_words():
    assert whole_words("The Normans, of Normandy", 6, 9) == (4, 11) and whole_words("a b", 0, 1) == (0, 1) and whole_words("word", 1, 2) == (0, 4)
    assert whole_words("这是一个中文", 1, 3) == (1, 3) and whole_words("90° or", 0, 2) == (0, 2)


def test_a_threshold_and_data_without_unanswerable_questions(data):
    head, backbone = rigged(data, null_threshold=100.0)
    assert [one["answer"] for one in head.answers(head.outputs(backbone, whole(data)).numpy(), data[2])] == [""] * len(RAWS)
    head, backbone = rigged(data, unanswerable=False)
    answers = head.answers(head.outputs(backbone, whole(data)).numpy(), data[2])
    assert all(one["answer"] and 0 <= one["score"] <= 1 for one in answers)
    assert answers[3]["answer"] == "target" and answers[3]["score"] > 0.9 > 0.5 > answers[4]["score"]


def test_spans_are_no_longer_than_allowed_and_do_not_run_backwards(data):
    torch.manual_seed(0)
    for length in (1, 3):
        head = Answering(Answering.Options(overlap=False, max_answer=length, unanswerable=False), 2, data[1])
        nn.init.normal_(head.linear.weight, std=5)
        outputs = head.outputs(_Noise(), whole(data))
        extent = outputs[:, 1] - outputs[:, 0]
        assert ((extent >= 0) & (extent < length)).all()


class _Noise(nn.Module):
    def encode(self, inputs):
        random = torch.randn(*inputs["tokens"].shape, 2, generator=torch.Generator().manual_seed(1))
        return Features(random[:, 0], tokens_BTD=random)


@pytest.mark.parametrize("options", [{"overlap": False}, {}, {"hidden": 8, "dropout": 0.0}, {"hidden": 8, "dropout": 0.0, "overlap": False}])
def test_the_loss_is_that_of_two_softmaxes(data, options):
    one, spec, packed = data
    head = Answering(Answering.Options(**options), 2, spec)
    inputs = one.encode(torch.from_numpy(one.collate(packed["tokens"][:2], spec)), spec)
    result = head.step(_Noise(), Batch(inputs, torch.full((2,), -1)))
    logits = head._logits(_Noise(), inputs)
    allowed = torch.isfinite(logits[..., 0])
    assert allowed.sum(1).tolist() == [1 + 7, 1 + 6] and not allowed[:, 1:6].any()
    expected = (F.cross_entropy(logits[..., 0], inputs["start"]) + F.cross_entropy(logits[..., 1], inputs["end"])) / 2
    torch.testing.assert_close(result.loss, expected)
    assert result.loss.requires_grad and not result.extras["accuracy"].requires_grad


def test_without_unanswerable_rows_a_batch_may_have_nothing_to_learn(data):
    one, spec, packed = data
    head = Answering(Answering.Options(unanswerable=False), 2, spec)
    inputs = one.encode(torch.from_numpy(one.collate(packed["tokens"][[1, 1]], spec)), spec)
    assert head.step(_Noise(), Batch(inputs, torch.full((2,), -1))).loss.item() == 0


def test_overlap_counts_the_question_s_words_nearby(tmp_path):
    one = Question(Question.Options(max_length=LENGTH, vocabulary=300, tokenizer_path=vocabulary(tmp_path)))
    rows = Ragged.of([one.decode(raw("w5 target", "w9 w9 w9 w9 w9 w9 w5 w9 w8 target", "w8")).array], np.uint8)
    spec = one.spec((), {**one.statistics([rows]), "rarity": [1.0] * 300})
    inputs = one.encode(torch.from_numpy(one.collate(one.pack(rows, spec)["tokens"], spec)), spec)
    found = Answering(Answering.Options(), 2, spec)._overlap(inputs)[0] / SCALE
    assert found[4:14, 0].tolist() == [0, 0, 0, 0, 0, 0, 0.5, 0, 0, 0.5]
    torch.testing.assert_close(found[4:14, 1], torch.tensor([0, 0, 0, 0.5, 0.5, 0.5, 1, 1, 1, 1]))
    assert found[0].tolist() == pytest.approx([0.5, 1, 1]) and not found[1:4].any() and not found[14:].any()


def test_a_few_steps_learn_and_a_row_without_context_does_no_harm(data):
    one, spec, packed = data
    torch.manual_seed(0)
    backbone = Bert(Bert.Options(size="tiny", dropout=0.0), spec)
    head = Answering(Answering.Options(), backbone.width, spec)
    optimizer = torch.optim.Adam([*backbone.parameters(), *head.parameters()], 3e-3)
    random, losses = torch.Generator().manual_seed(0), []
    for _ in range(30):
        array = torch.from_numpy(one.collate(packed["tokens"], spec, None, random))
        result = head.step(backbone, Batch(one.encode(array, spec), torch.full((len(RAWS),), -1)))
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        losses.append(result.loss.item())
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    marks = spec.statistics["tokens"]
    bare = {"tokens": torch.tensor([[marks["begin"], 5, marks["end"], marks["end"]]]), "mask": torch.ones(1, 4, dtype=torch.bool)}
    bare["segments"] = torch.tensor([[0, 0, 0, 1]])
    rows = {"tokens": Ragged.of([np.zeros(4)], np.int32), "offsets": Ragged.of([np.zeros(0)], np.int32), "text": Ragged.of([np.zeros(0)], np.uint8)}
    for unanswerable in (True, False):
        own = Answering(Answering.Options(unanswerable=unanswerable), backbone.width, spec)
        with torch.no_grad():
            outputs = own.outputs(backbone, bare)
        assert torch.isfinite(outputs).all() and own.answers(outputs.numpy(), rows)[0]["answer"] == ""


def test_the_trivial_way_is_the_better_of_two_on_the_training_part(data):
    head, _ = rigged(data)
    packed = data[2]
    none, some = ({name: value[rows] for name, value in packed.items()} for rows in ([1, 4], [0, 2]))
    assert [one["answer"] for one in head.trivial_answers(none, packed)] == [""] * len(RAWS)
    first = head.trivial_answers(some, packed)
    assert first[0] == {"answer": "w0 w1 w2 target", "score": 1.0, "start": 0, "end": 15}


def test_answers_are_told_in_columns_lists_and_pictures(data):
    head, backbone = rigged(data)
    packed = data[2]
    answers = head.answers(head.outputs(backbone, whole(data)).numpy(), packed)
    frame = head.frame(answers)
    assert list(frame.columns) == ["answer", "score", "start", "end"] and not frame.isna().any().any() and len(head.frame([])) == 0
    table = pd.DataFrame({"row_id": list("vwxyz"), "key": list("abcde"), "group": 0})

    def details(told, mistakes=5):
        some = {name: value[: len(told)] for name, value in packed.items()}
        return head.details(table[: len(told)], told, told, some, temperature=1.0, mistakes=mistakes, options={})

    facts, predictions = details(answers)
    assert facts["mistakes"] == [] and not predictions.isna().any().any()
    assert predictions.iloc[1][["row_id", "key", "truth", "answer", "f1"]].tolist() == ["w", "b", "(no answer)", "", 1.0]
    wrong = [*answers[:2], {"answer": "w1", "score": 0.7, "start": 3, "end": 5}, {"answer": "", "score": 0.9, "start": 0, "end": 0}, answers[4]]
    found = details(wrong)[0]["mistakes"]
    assert [one["row"] for one in found] == [3, 2] and found[0]["context"].startswith("w0 w1")
    assert (found[0]["question"], found[0]["truth"], found[0]["answer"]) == ("which is it?", "target", "(no answer)")
    assert details(wrong, 1)[0]["mistakes"] == found[:1]
    for count in (1, len(RAWS)):
        drawn = head.pictures(json.loads(json.dumps(details(wrong[:count])[0])))
        assert set(drawn) == {"f1_by_length", "f1_by_question"} and all(isinstance(figure, Figure) for figure in drawn.values())


def test_other_data_are_refused():
    with pytest.raises(InputError, match="found image data"):
        Answering(Answering.Options(), 8, DataSpec("image", {}, (1, 8, 8), ("a", "b"), {}))
