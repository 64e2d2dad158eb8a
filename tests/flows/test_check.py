"""`warmstart check`: what it finds in data, without training and without a trace."""

import numpy as np
import pytest
from PIL import Image


def found(done) -> dict:
    result = done.result
    assert result.keys() == {"recipe", "data", "expected", "warnings"}
    return result


def test_good_data(warmstart, tiny, tmp_path):
    result = found(warmstart(tmp_path, "check", tiny, "--json"))
    data, expected = result["data"], result["expected"]
    assert sum(data["rows"][part] for part in ("training", "validation", "test")) == 120
    assert data["classes"] == {"class0": 40, "class1": 40, "class2": 40}
    assert data["quarantined"] == 0 and data["imbalance"] < 2
    assert expected["parameters"] > 0 and expected["training bytes"] > 0 and expected["pretraining seconds"] > 0
    assert not any("left out" in line for line in result["warnings"])
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_dirty_and_imbalanced_data(warmstart, tiny, tmp_path, drawn):
    folder = drawn(tmp_path / "data", each=60, seed=3)
    for number in range(4, 60):
        (folder / "class2" / f"{number:03d}.png").unlink()
    (folder / "class0" / "broken.png").write_bytes(b"no picture")
    for number in range(3):  # copies within a class
        (folder / "class0" / f"copy{number}.png").write_bytes((folder / "class0" / f"{number:03d}.png").read_bytes())
    (folder / "class1" / "other.png").write_bytes((folder / "class0" / "010.png").read_bytes())  # the same picture with two labels
    result = found(warmstart(tmp_path, "check", tiny, "--json", f"data.source.options.path={folder}"))
    data, warnings = result["data"], " ".join(result["warnings"])
    assert data["quarantined"] == 1 and list(data["reasons"].values()) == [1]
    assert data["duplicates"]["exact"] >= 3 and data["one item, two labels"] == 1
    assert data["imbalance"] > 10
    for words in ("cannot be used", "two labels", "times the smallest"):
        assert words in warnings


def test_the_tables_fit_a_narrow_terminal(warmstart, tiny, tmp_path):
    done = warmstart(tmp_path, "check", tiny)
    assert done.code == 0, done.err
    assert all(len(line) <= 80 for line in done.out.splitlines() if line.startswith(("│", "┏", "└", "┌")))
    assert "the recipe and its data can be used" in done.out


@pytest.mark.parametrize(("key", "words"), [("data.source.options.path=nowhere", "nowhere"), ("splitting.labels_per_class=500", "at most")])
def test_what_cannot_be_used(warmstart, tiny, tmp_path, key, words):
    done = warmstart(tmp_path, "check", tiny, "--json", key)
    assert done.code == 2 and done.out == "" and words in done.err and "\nerror: " in f"\n{done.err}", done.err
    assert list(tmp_path.iterdir()) == []


def test_a_picture_of_30000_pixels_square_is_told_of(warmstart, tiny, tmp_path, drawn):
    folder = drawn(tmp_path / "data", each=20, seed=4)
    Image.fromarray(np.zeros((30_000, 30_000), dtype=bool)).save(folder / "class0" / "huge.png")
    result = found(warmstart(tmp_path, "check", tiny, "--json", f"data.source.options.path={folder}"))
    assert result["data"]["quarantined"] == 1 and "30000" in next(iter(result["data"]["reasons"])).replace(",", "")
