"""Data whose rows have several labels, from a source to a store, its parts, and the simple alternative."""

import io
import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_digits

from ml.backbones import BACKBONES
from ml.choice import choice
from ml.contracts import UNLABELLED, InputError
from ml.feed import Feed
from ml.label_sets import NOTHING
from ml.modalities import MODALITIES
from ml.multi_label_metrics import MULTI_LABEL
from ml.objectives import OBJECTIVES
from ml.overview import overview
from ml.preprocess import preprocess, summary
from ml.probe import nearest_neighbours
from ml.recipe import Data, Splitting
from ml.splitting import split
from ml.store import Store

PROPERTIES = {"even": (0, 2, 4, 6, 8), "prime": (2, 3, 5, 7), "large": (6, 7, 8, 9)}  # 1 has none of them


def stored(folder, source: dict, modality="image", several=True, labelled=True, **data) -> Store:
    recipe = Data.model_validate({"source": source, "modality": modality, "workers": 1, **data})
    return preprocess(recipe.source.make(), recipe.modality.make(), recipe, folder / "work", folder / "stores", labelled, several)


def texts(folder, labels, contents=None, several=True, labelled=True, **data) -> Store:
    """A store of texts that have nothing in common, or of `contents`."""
    words = np.random.default_rng(0).permutation([f"{a}{b}" for a in "bcdfghjklmnp" for b in "aeiou"])
    made = [" ".join([f"word{row}", *np.random.default_rng(row).choice(words, 12)]) for row in range(len(labels))]
    pd.DataFrame({"text": contents or made, "label": pd.Series(labels, dtype=object)}).to_json(folder / "rows.jsonl", orient="records", lines=True)
    source = {"name": "text-table", "options": {"path": str(folder / "rows.jsonl")}}
    modality = {"name": "text", "options": {"max_length": 16, "vocabulary": 200}}
    return stored(folder, source, modality, several, labelled, **data)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Store:
    """scikit-learn's digits, each with the properties that it has."""
    folder, data, rows = tmp_path_factory.mktemp("digits"), load_digits(), []
    for pixels, digit in zip(data.images[:600], data.target[:600], strict=True):
        file = io.BytesIO()
        Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8)).save(file, "PNG")
        rows.append({"image": file.getvalue(), "label": [name for name, those in PROPERTIES.items() if digit in those]})
    pd.DataFrame(rows).to_parquet(folder / "rows.parquet")
    return stored(folder, {"name": "parquet", "options": {"path": str(folder / "rows.parquet")}})


def test_sets_are_stored_and_given_as_targets(digits):
    assert digits.spec.classes == ("even", "large", "prime") and NOTHING in digits.strata
    order = [int(key.rpartition("#")[2]) for key in digits.table["key"]]
    truth = np.array([[digit in PROPERTIES[name] for name in digits.spec.classes] for digit in load_digits().target[order]])
    np.testing.assert_array_equal(digits.targets(np.arange(len(order))), truth)
    some = np.array([5, 2, 2])
    np.testing.assert_array_equal(digits.rows(some)["label"], truth[some])
    counts = truth.sum(0)
    for row, one in enumerate(truth):
        assert digits.strata[digits.labels[row]] == (digits.spec.classes[min(np.flatnonzero(one), key=counts.__getitem__)] if one.any() else NOTHING)
    assert digits.named(some)[0] == (", ".join(np.array(digits.spec.classes)[truth[5]]) or NOTHING)
    again = Store.open(digits.path)
    again.verify()
    np.testing.assert_array_equal(again.targets(some), truth[some])
    assert "labels" not in again.table


def test_counts_go_by_class_and_shares_by_stratum(digits):
    facts = summary(digits)
    truth, part = digits.targets(np.arange(len(digits.table))), digits.table["part"]
    for k, name in enumerate(digits.spec.classes):
        assert facts["classes"][name] == {one: int(truth[part == one, k].sum()) for one in ("test", "train")}
    assert facts["of_no_class"] == (truth.sum(1) == 0).sum() and facts["labels_per_row"] == pytest.approx(truth.sum(1).mean())
    parts = split(digits.table, digits.strata, Splitting(), 0)
    for rows in (parts.train, parts.validation, parts.test):
        assert set(digits.labels[rows]) == set(range(len(digits.strata)))
        np.testing.assert_allclose(truth[rows].mean(0), truth.mean(0), atol=0.12)
    few = split(digits.table, digits.strata, Splitting(labels_per_class=5), 0)
    assert np.bincount(digits.labels[few.train]).tolist() == [5] * len(digits.strata)
    shares = split(digits.table, digits.strata, Splitting(label_fraction=0.1), 0)
    assert set(digits.labels[shares.train]) == set(range(len(digits.strata)))
    with pytest.raises(InputError, match="asks for 500 training labels"):
        split(digits.table, digits.strata, Splitting(labels_per_class=500), 0)


def test_figures_probe_and_batches(digits):
    modality = MODALITIES["image"](MODALITIES["image"].Options(size=16, channels=1))
    assert all(isinstance(figure, Figure) for figure in overview(digits, modality).values())
    backbone = choice("backbone", BACKBONES)(name="small-cnn", options={"width": 0.25}).make(digits.spec).eval()
    assert 0 <= nearest_neighbours(digits, modality, torch.device("cpu"), 0)(backbone) <= 1
    feed = Feed(digits, modality, np.arange(40), 8, 0, torch.device("cpu"), modality.presets["standard"](digits.spec))
    rows = feed.parts(0)[0]
    batch = feed.batch(rows, 0, 0)
    np.testing.assert_array_equal(batch.targets_B, digits.targets(rows))
    supervised = OBJECTIVES["supervised"]
    result = supervised(supervised.Options(), backbone.train(), digits.spec).step(batch)
    result.loss.backward()
    assert torch.isfinite(result.loss) and 0 <= result.extras["micro_f1"] <= 1


def test_the_simple_alternative_for_pictures(digits):
    parts = split(digits.table, digits.strata, Splitting(), 0)
    modality = MODALITIES["image"](MODALITIES["image"].Options(size=16, channels=1))
    found = modality.alternative(digits, parts.train, parts.validation, parts.test, 0)
    assert found.answers.shape == (len(parts.test), 2, 3)
    scores = found.answers.reshape(len(parts.test), -1)
    assert MULTI_LABEL["micro_f1"](digits.targets(parts.test), scores) > 0.9
    assert MULTI_LABEL["mean_average_precision"](digits.targets(parts.test), scores) > 0.95


def test_the_simple_alternative_for_texts_also_where_a_class_is_never_or_always_there(tmp_path):
    labels = [[name for name, there in (("a", row % 2), ("b", row % 3 == 0), ("always", True), ("once", row == 0)) if there] for row in range(120)]
    contents = [f"number{row} tells {'alpha' * ('a' in one)} and {'beta' * ('b' in one)} of {row * 7919 % 1000} things" for row, one in enumerate(labels)]
    store = texts(tmp_path, labels, contents, near_duplicates=False)
    parts = split(store.table, store.strata, Splitting(), 0)
    modality = MODALITIES["text"](MODALITIES["text"].Options())
    told = modality.alternative(store, parts.train, parts.validation, parts.test, 0).answers
    assert (told[:, 1, :3] == store.targets(parts.test)[:, :3]).mean() > 0.95 and ((told[:, 0] >= 0) & (told[:, 0] <= 1)).all()


def test_rows_of_no_class_are_labelled_and_rows_without_labels_are_not(tmp_path):
    store = texts(tmp_path, [["a"], [], None, ["b", "a"], ["a", "b"]] * 8)
    part = store.table["part"]
    assert (part == "unlabelled").sum() == 8 and ((store.labels == UNLABELLED) == (part == "unlabelled")).all()
    targets = store.targets(np.arange(len(part)))
    assert (targets[part == "unlabelled"] == UNLABELLED).all() and (targets[part != "unlabelled"] != UNLABELLED).all()
    assert store.manifest["of_no_class"] == 8 == (targets.sum(1) == 0).sum()
    assert [store.named(np.array([row]))[0] for row in range(3)] == ["a", NOTHING, ""]
    assert {one["part"] for _, one in store.table[store.labels == store.strata.index(NOTHING)].iterrows()} == {"train", "test"}


def test_labels_in_another_order_agree_and_other_sets_are_in_conflict(tmp_path):
    labels = [["a", "b"], ["b", "a"], ["a"], [], ["a"], ["a", "b"], ["b"], ["a"], ["b"]]
    contents = ["the first of all", "the first of all", "second thing here", "second thing here", "third", "fourth word", "fifth one", "sixth sense", "seventh seal"]
    store = texts(tmp_path, labels, contents, near_duplicates=False)
    assert store.manifest["duplicates"]["exact"] == 1 and "second" not in store.table.to_json()
    conflict = store.manifest["conflicts"]
    assert (conflict["items"], conflict["rows"], conflict["examples"][0]["labels"]) == (1, 2, [NOTHING, "a"])


def test_one_label_a_row_is_a_set_of_one_where_several_may_be(tmp_path):
    one = texts(tmp_path, ["a", "b", None] * 10)
    assert one.spec.classes == ("a", "b") == one.strata and one.manifest["of_no_class"] == 0
    assert one.targets(np.array([0, 1, 2])).tolist() == [[1, 0], [0, 1], [-1, -1]]
    single = texts(tmp_path, ["a", "b", None] * 10, several=False)
    assert single.sets is None and single.targets(np.array([0, 1, 2])).tolist() == [0, 1, -1] and single.named(np.arange(3)) == ["a", "b", ""]
    assert single.table.drop(columns="label").equals(one.table.drop(columns="label"))


def test_data_that_do_not_fit_the_head_say_which_would(tmp_path):
    with pytest.raises(InputError, match=r"several labels: set finetuning.head to one that tells them \(multi-label\)"):
        texts(tmp_path, [["a"], ["b"]] * 10, several=False)
    with pytest.raises(InputError, match="no label"):
        texts(tmp_path, [[]] * 10)
    with pytest.raises(InputError, match="no labelled row"):
        texts(tmp_path, [None] * 10)
    kept = texts(tmp_path, [["a"], []] * 10, several=False, labelled=False)  # a language model does not mind
    assert kept.spec.classes == ("a",)


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.sampled_from("abcd"), unique=True), min_size=30, max_size=60), st.integers(0, 3))
def test_every_class_is_learnt_whatever_the_sets(tmp_path, rows, seed):
    if not any(rows):
        return
    store = texts(tmp_path, rows, near_duplicates=False)
    parts = split(store.table, store.strata, Splitting(), seed)
    assert set(store.labels[np.concatenate([parts.train, parts.validation])]) == set(range(len(store.strata)))
    assert not set(parts.train) & set(parts.validation) and len(parts.test)
    everything = store.targets(np.arange(len(store.table)))
    assert everything.sum() == sum(map(len, rows)) and everything[store.table["part"] == "train"].any(0).all()


def test_real_pictures_of_several_things(shared_data, tmp_path):
    """COCO: the kinds of things in each picture, in a CSV file with semicolons between them."""
    found = []
    for part in ("train", "val"):
        content = json.loads((shared_data / "small" / "coco128" / "annotations" / f"{part}.json").read_text())
        kinds = {one["id"]: one["name"] for one in content["categories"]}
        inside = {image["id"]: [] for image in content["images"]}
        for one in content["annotations"]:
            inside[one["image_id"]].append(kinds[one["category_id"]])
        found += [(image["file_name"], inside[image["id"]]) for image in content["images"]]
    often = Counter(name for _, names in found for name in set(names))
    found = [(path, ";".join(name for name in names if often[name] >= 4)) for path, names in found]
    frame = pd.DataFrame(found, columns=["path", "label"])
    frame.to_csv(tmp_path / "rows.csv", index=False)
    root = str(shared_data / "small" / "coco128" / "images")
    store = stored(tmp_path, {"name": "csv", "options": {"path": str(tmp_path / "rows.csv"), "root": root, "label_separator": ";"}})
    expected = {path: sorted(set(label.split(";")) - {""}) for path, label in found}
    assert len(store.table) == len(frame) and store.manifest["of_no_class"] == sum(not one for one in expected.values())
    assert store.manifest["labels_per_row"] > 1
    for row, key in enumerate(store.table["key"]):
        assert [name for name, there in zip(store.spec.classes, store.targets(np.array([row]))[0], strict=True) if there] == expected[key]
