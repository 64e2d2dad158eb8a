"""Recipes differ where their values do, models are compared on the same rows alone, and the page is one file without markup of the data."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from ml.comparison import Measured, aligned, apart, differences, differing
from ml.comparison_page import render
from ml.comparison_pictures import whiskers
from ml.comparison_words import points, shown
from ml.evaluation import plain
from ml.evidence import paired
from ml.metrics import CLASSIFICATION
from ml.pictures import png

HOSTILE = ("$x_{", "<script>alert(1)</script>", "犬\n\t\x00", '"><img src=x onerror=alert(1)>')
VALUES = some.none() | some.booleans() | some.integers() | some.floats() | some.text("abyz: ", max_size=5) | some.lists(some.integers(), max_size=3)
RECIPES = some.recursive(VALUES, lambda inner: some.dictionaries(some.text("abc.", min_size=1, max_size=3), inner, max_size=4), max_leaves=8)
MAPPINGS = some.dictionaries(some.text("abc.", min_size=1, max_size=3), RECIPES, max_size=4)


def leaves(content, above=()):
    found = {}
    for name, value in content.items():
        found |= leaves(value, (*above, name)) if isinstance(value, dict) else {} if value is None else {(*above, name): value}
    return found


@given(MAPPINGS)
def test_a_recipe_does_not_differ_from_itself(recipe):
    assert differing([recipe, recipe, dict(reversed(recipe.items()))]) == []


@given(MAPPINGS, MAPPINGS)
def test_what_differs_is_told_and_nothing_else(a, b):
    one, other = leaves(a), leaves(b)
    told = [(row["path"], row["values"]) for row in differing([a, b])]
    expected = sorted(path for path in one.keys() | other.keys() if repr(one.get(path)) != repr(other.get(path)) and not (one.get(path) == other.get(path) == 0.0 and type(one[path]) is type(other[path])))
    assert [path for path, _ in told] == [".".join(path) for path in expected]
    assert repr([values for _, values in told]) == repr([[one.get(path), other.get(path)] for path in expected])


@given(MAPPINGS, MAPPINGS)
def test_the_order_of_the_recipes_is_that_of_the_values(a, b):
    mirrored = [{"path": row["path"], "values": row["values"][::-1]} for row in differing([b, a])]
    assert repr(differing([a, b])) == repr(mirrored)


def test_differences_of_recipes():
    a = {"seed": 0, "fit": {"epochs": None, "rate": 0.1}, "head": {"name": "x", "options": {}}, "on": True}
    b = {"seed": 1, "fit": {"epochs": 3, "rate": 0.1}, "head": {"name": "x", "options": {"hidden": 8}}, "on": 1}
    assert differing([a, b, a]) == [
        {"path": "fit.epochs", "values": [None, 3, None]},
        {"path": "head.options.hidden", "values": [None, 8, None]},
        {"path": "on", "values": [True, 1, True]},
        {"path": "seed", "values": [0, 1, 0]},
    ]
    secret = differing([{"path": "s3://me:hunter2@host/a"}, {"path": "s3://me:hunter2@host/b"}])
    assert secret == [{"path": "path", "values": ["s3://***@host/a", "s3://***@host/b"]}]


@pytest.fixture
def measured() -> Measured:
    generator = np.random.default_rng(0)
    scores_NS = generator.dirichlet(np.ones(3), 60)
    return Measured(np.array([f"r{row}" for row in range(60)]), scores_NS, generator.integers(0, 3, 60), np.repeat(np.arange(20), 3), "classification", True, ("a", "b", "c"), "s1")


def test_a_paired_difference_is_that_of_the_evidence(measured):
    other = replace(measured, scores_NS=np.random.default_rng(1).dirichlet(np.ones(3), 60))
    options = {"resamples": 200, "confidence": 0.9, "seed": 3}
    [itself, found] = differences(measured, [measured, other], CLASSIFICATION, **options)
    for name, metric in CLASSIFICATION.items():
        assert found[name] == paired(metric, measured.targets_N, other.scores_NS, measured.scores_NS, groups_N=measured.groups_N, **options)
        assert (itself[name].value, itself[name].low, itself[name].high, itself[name].n) == (0, 0, 0, 60)


def test_rows_in_another_order_are_the_same_rows(measured):
    order = np.random.default_rng(2).permutation(60)
    shuffled = replace(
        measured, ids=measured.ids[order], scores_NS=measured.scores_NS[order], targets_N=measured.targets_N[order], groups_N=measured.groups_N[order], store="s2"
    )
    assert apart(measured, shuffled) == ""
    assert np.array_equal(aligned(measured, shuffled).scores_NS, measured.scores_NS)
    [found] = differences(measured, [shuffled], CLASSIFICATION, resamples=50, confidence=0.95, seed=0)
    assert all((one.low, one.value, one.high) == (0, 0, 0) for one in found.values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head": "multi-label"}, "different purposes"),
        ({"classes": ("a", "b")}, "different classes"),
        ({"ids": np.array([f"r{row + 1}" for row in range(60)])}, "different test rows (59 in common, of 60 and 60)"),
        ({"targets_N": np.zeros(60, int)}, "the labels of their test rows differ"),
        ({"store": "s2", "labelled": False}, "prepared differently"),
    ],
)
def test_what_cannot_be_compared_says_why(measured, changes, words):
    other = replace(measured, **changes)
    assert words in apart(replace(measured, labelled=other.labelled), other)


def test_repeated_rows_of_one_store_are_compared_in_their_order(measured):
    twice = replace(measured, ids=np.array(["r0"] * 60))
    assert apart(twice, twice) == ""


def compared() -> dict:
    estimate = {"value": 0.5, "low": 0.4, "high": None, "n": 9}
    run = {
        "run_id": "1", "experiment": HOSTILE[1], "started": HOSTILE[3], "status": "finished", "error": HOSTILE[1], "seed": HOSTILE[1], "link": "javascript:alert(1)",
        "model": {"uri": HOSTILE[3]}, "passed": None, "confidence": 0.95, "metrics": {"accuracy": estimate, HOSTILE[1]: estimate | {"value": None}},
        "data": {"store": HOSTILE[3], "rows": 1000, "test rows": None}, "stages": [{"name": HOSTILE[1], "run_id": "2", "reused": True, "seconds": None}],
        "missing": {HOSTILE[1]: HOSTILE[3]},
    }  # fmt: skip
    parameters = [{"path": HOSTILE[1], "values": [HOSTILE[3], None, True]}]
    plainly = {"run_id": "1", "against": "1", "why_not": "", "metrics": {"accuracy": estimate}}
    return {"runs": [run, run | {"link": "https://host/#/x", "metrics": {}}, run], "parameters": parameters, "differences": [plainly, plainly | {"why_not": HOSTILE[1], "metrics": {}}]}


def test_the_page_stands_alone_and_escapes_what_it_shows():
    page = render(compared(), HOSTILE[:3], {HOSTILE[0]: {HOSTILE[1]: ([1, 2], [1.0, 0.5]), HOSTILE[2]: ([1], [float("nan")])}}, "now")
    assert "<script" not in page and "<img src=x" not in page and "javascript:" not in page
    assert "&lt;script&gt;" in page and 'href="https://host/#/x"' in page and "unset" in page
    assert page.count("<img src=\"data:image/png;base64,") == 2 == page.count("<img ")
    bare = render({"runs": [one | {"metrics": {}, "stages": [], "data": {}} for one in compared()["runs"][:2]], "parameters": [], "differences": [compared()["differences"][1]]}, ["a", "b"], {}, "now")
    assert "None of the runs was evaluated" in bare and "the recipes are equal" in bare and "<img" not in bare


def test_whiskers_draw_what_there_is():
    assert whiskers([{}, {"accuracy": {"value": None}}], ["a", "b"]) is None
    assert png(whiskers([run["metrics"] for run in compared()["runs"]], HOSTILE[:3]))


def test_values_and_differences_in_words():
    assert [shown(value) for value in (None, True, 0.1, "x")] == ["unset", "true", "0.1", "x"]
    assert points({"value": 0.012, "low": -0.5, "high": 0.5, "n": 3}, "accuracy") == "+1.2 points [−50.0, +50.0]"
    assert points({"value": None, "low": None, "high": None, "n": 3}, "accuracy") == "could not be compared"
    assert plain({"a": float("inf")}) == {"a": None} and points(None, "accuracy") == ""
