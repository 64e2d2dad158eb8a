"""F1 of spans: conlleval's rules on cases worked out by hand, against a transcript of conlleval's own, and sums that any rows make up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.tag_metrics import PER_TYPE, STATISTICS, TAGS, Scheme, by_type, statistics

IOB = Scheme.of(["O", "B-X", "I-X", "B-Y", "I-Y"])


def start_of_chunk(prev_tag, tag, prev_type, type_):
    """From conlleval's Python port, as seqeval has it."""
    start = tag in ("B", "S")
    start |= prev_tag in ("E", "S", "O") and tag in ("E", "I")
    return start or (tag != "O" and tag != "." and prev_type != type_)


def end_of_chunk(prev_tag, tag, prev_type, type_):
    end = prev_tag in ("E", "S")
    end |= prev_tag in ("B", "I") and tag in ("B", "S", "O")
    return end or (prev_tag not in ("O", ".") and prev_type != type_)


def conlleval(tags):
    found, prev_tag, prev_type, begin = [], "O", "", 0
    for i, one in enumerate([*tags, "O"]):
        tag, type_ = one[0], one.partition("-")[2]
        if end_of_chunk(prev_tag, tag, prev_type, type_):
            found.append((prev_type, begin, i))
        if start_of_chunk(prev_tag, tag, prev_type, type_):
            begin = i
        prev_tag, prev_type = tag, type_
    return found


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("", []),
        ("O O", []),
        ("B-X I-X O B-Y", [("X", 0, 2), ("Y", 3, 4)]),
        ("B-X B-X I-X", [("X", 0, 1), ("X", 1, 3)]),
        ("I-X I-X O I-Y", [("X", 0, 2), ("Y", 3, 4)]),  # IOB1, and a model's slip
        ("B-X I-Y I-Y", [("X", 0, 1), ("Y", 1, 3)]),
        ("S-X B-X I-X E-X I-X", [("X", 0, 1), ("X", 1, 4), ("X", 4, 5)]),
        ("U-X B-X L-X O L-Y", [("X", 0, 1), ("X", 1, 3), ("Y", 4, 5)]),
        ("B-A-B I-A-B", [("A-B", 0, 2)]),
        ("B-X X O", [("X", 0, 2)]),
    ],
)
def test_spans_with_letters(tags, spans):
    assert Scheme.of([*tags.split(), "O", "B-X"]).spans(tags.split()) == spans


@pytest.mark.parametrize(
    ("known", "tags", "spans"),
    [
        ("B M E S", "B M E S B E", [("", 0, 3), ("", 3, 4), ("", 4, 6)]),  # words of Chinese
        ("B I O", "B I O I", [("", 0, 2), ("", 3, 4)]),
        ("PER LOC O", "PER PER LOC O PER", [("PER", 0, 2), ("LOC", 2, 3), ("PER", 4, 5)]),
        ("NN VB DT", "DT NN NN", [("DT", 0, 1), ("NN", 1, 2), ("NN", 2, 3)]),
        ("NN S B", "S S", [("S", 0, 1), ("S", 1, 2)]),  # letters that are parts of speech
    ],
)
def test_the_tags_there_are_say_how_they_are_read(known, tags, spans):
    scheme = Scheme.of(known.split())
    assert scheme.spans(tags.split()) == spans and scheme.spans([]) == []
    assert scheme.has_spans == ("NN" not in known)


@given(st.lists(st.sampled_from(["O", *(f"{letter}-{kind}" for letter in "BIES" for kind in "XY")]), max_size=12))
def test_spans_are_those_of_conlleval(tags):
    assert IOB.spans(tags) == conlleval(tags)
    assert Scheme.of(["O", "B-X"]).spans([{"E": "L", "S": "U"}.get(tag[0], tag[0]) + tag[1:] for tag in tags]) == conlleval(tags)


TRUTH = [["B-X", "I-X", "O", "B-Y"], ["O", "O", "B-X"], ["O"]]
SAID = [["B-X", "I-X", "O", "B-X"], ["B-Y", "O", "B-X"], ["O"]]


def test_the_numbers_are_those_worked_out_by_hand():
    scores = statistics(SAID, TRUTH, IOB)
    assert dict(zip(STATISTICS, scores[0], strict=True)) == {"found": 1, "predicted": 2, "true": 2, "right": 3, "words": 4}
    told = {name: measure(np.zeros(3), scores) for name, measure in TAGS.items()}
    assert told == pytest.approx({"precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7, "accuracy": 6 / 8})
    types, counts = by_type(SAID, TRUTH, IOB)
    assert types == ["X", "Y"]
    assert PER_TYPE["precision"](np.zeros(3), counts).tolist() == pytest.approx([2 / 3, 0])
    assert PER_TYPE["recall"](np.zeros(3), counts).tolist() == [1, 0]
    assert PER_TYPE["f1"](np.zeros(3), counts).tolist() == pytest.approx([0.8, 0])


def test_where_there_is_nothing_to_find_the_value_is_0():
    scores = statistics([["O"]], [["O"]], IOB)
    assert {name: measure(np.zeros(1), scores) for name, measure in TAGS.items()} == {"f1": 0, "precision": 0, "recall": 0, "accuracy": 1}
    assert by_type([["O"]], [["O"]], IOB)[0] == []


def test_parts_of_speech_have_one_number():
    truth, said = [["DT", "NN", "NN"]], [["DT", "NN", "VB"]]
    scores = statistics(said, truth, Scheme.of(["DT", "NN", "VB"]))
    assert {measure(np.zeros(1), scores) for measure in TAGS.values()} == {2 / 3}


@given(st.lists(st.integers(0, 3), min_size=3, max_size=3).filter(sum))
def test_weights_count_rows_as_copies_do(weights):
    counted, rows = np.array(weights, float)[:, None], np.repeat(np.arange(3), weights)
    for metrics, scores in ((TAGS, statistics(SAID, TRUTH, IOB)), (PER_TYPE, by_type(SAID, TRUTH, IOB)[1])):
        for measure in metrics.values():
            np.testing.assert_allclose(measure(np.zeros(3), scores, counted)[0], measure(np.zeros(len(rows)), scores[rows]))


def test_types_are_what_stands_behind_the_letter():
    assert [IOB.type_of(tag) for tag in ("O", "B-X", "I-X")] == ["O", "X", "X"]
    assert Scheme.of(["NN", "X-Y"]).type_of("X-Y") == "X-Y"
