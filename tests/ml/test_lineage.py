"""A lineage in words and as a picture, whatever the names in it are and whatever is missing."""

import io

import pytest
from matplotlib.text import Text
from PIL import Image

from ml.lineage import estimate, head, lines, moves, title
from ml.lineage_picture import draw
from ml.pictures import png

HOSTILE = "$x_{ <b>犬\n\x1b[31m" * 9


def step(name, facts=None, **more):
    return {"name": name, "run_id": "0123456789abcdef", "reused": None, "missing": "", "facts": facts or {}, "weights": None} | more


def version(steps, **more):
    told = {"uri": "models:/letters/2", "name": "letters", "version": 2, "aliases": ["champion"], "created": "2026-01-02T03:04:05+00:00", "run_id": "a" * 32, "missing": ""}
    told |= {"experiment": "letters", "started": "2026-01-02T03:00:05+00:00", "user": "ann", "code": {"version": "1", "commit": "c" * 40, "dirty": True}}
    return told | {"steps": steps, "history": [], "notes": []} | more


SCORE = {"value": 0.9, "low": 0.85, "high": None, "n": 1200}
FACTS = {
    "preprocess": {"source": HOSTILE, "path": HOSTILE, "fingerprint": "f" * 64, "store": "e" * 64, "rows": 1300, "parts": {"test": 1200}, "classes": 2},
    "pretrain": {"backbone": "small-cnn", "weights": HOSTILE, "objective": "simclr", "rows": 100, "epochs": 3, "samples": 300, "seconds": 61.2, "seed": "0"},
    "split": {"rows": {"train": 80, "test": 1200}},
    "finetune": {"head": "classification", "method": "full", "validation": 0.91},
    "evaluate": {"metric": "accuracy", "score": SCORE, "seen in pretraining": 0, "conclusions": [HOSTILE] * 9},
    "register": {"passed": False, "against": "version 1", "reasons": [HOSTILE]},
}
STEPS = [step(name, facts) for name, facts in FACTS.items()]
BACKBONE = version(STEPS[:2], uri=HOSTILE, aliases=[])


def test_each_step_says_what_it_did():
    told = {title(one): list(lines(one)) for one in STEPS}
    assert list(told) == ["data", "pretraining", "split", "fine-tuning", "evaluation", "gate"]
    assert "store eeeeeeeeeeeeeeee" in told["data"] and "1,300 rows (test 1,200), 2 classes" in told["data"]
    assert "100 rows, 3 epochs: 300 samples in 61 s, seed 0" in told["pretraining"]
    assert told["evaluation"][0] == "accuracy 90.0 % on 1,200 test rows"
    assert told["gate"][0] == "not passed (against version 1)" and told["gate"][-1] == "run 01234567"
    assert [list(lines(step(name))) for name in FACTS] == [["run 01234567"]] * 6
    assert next(head(version([]))) == "registered 2026-01-02 03:04 UTC"


def test_what_is_reused_or_missing_is_told():
    doer = {"run_id": "b" * 32, "experiment": "first", "started": "2026-01-01T00:00:00+00:00"}
    assert list(lines(step("split", reused=doer))) == ["run 01234567, reused: done by pipeline run bbbbbbbb of first, 2026-01-01 00:00 UTC"]
    assert list(lines(step("split", reused=dict.fromkeys(doer)))) == ["run 01234567, reused of a pipeline run that was deleted"]
    assert list(lines(step("split", run_id=None, missing="gone"))) == ["missing: gone"]


def test_moves_say_who_when_in_place_of_what_and_why():
    entry = {"action": "promote", "time": "2026-01-02T03:04:05+00:00", "user": "ann", "from": 1, "to": 2, "done": True, "evidence": {"run": "d" * 32, "verdict": ["better"]}}
    entries = [entry, entry | {"from": None}, entry | {"action": "rollback", "from": 2, "to": 1, "evidence": {"reason": "slow"}, "done": False}]
    entries += [entry | {"action": "noticed", "to": None}, entry | {"action": "noticed", "from": None}]
    told = list(moves(version([], history=entries)))
    assert told[0] == ("promoted in place of version 1", ["2026-01-02 03:04 UTC by ann", "evidence: run dddddddd", "  better"])
    assert told[1][0] == "promoted: the first champion"
    assert told[2] == ("replaced by version 1 (rollback)", ["2026-01-02 03:04 UTC by ann, broken off before it was done", "evidence: slow"])
    assert [words for words, _ in told[3:]] == ["found moved by hand from version 1 to none", "found moved by hand from none to version 2"]


@pytest.mark.parametrize(("metric", "words"), [("accuracy", "90.0 % [85.0, 95.0]"), ("log_loss", "0.900 [0.850, 0.950]")])
def test_estimates(metric, words):
    assert estimate({"value": 0.9, "low": 0.85, "high": 0.95}, metric) == words
    assert estimate({"value": None, "low": None, "high": None}, metric) == "undefined"


@pytest.mark.parametrize(
    "lineage",
    [
        version(STEPS),
        version([], missing="the run was deleted", run_id=None, created=None),
        version([STEPS[0], step("pretrain", FACTS["pretrain"], weights=BACKBONE | {"steps": [STEPS[0], step("pretrain", weights=BACKBONE)]}), *STEPS[2:]]),
        version([step(name, run_id=None, missing="gone") for name in FACTS]),
    ],
)
def test_it_is_drawn(lineage):
    shown = Image.open(io.BytesIO(png(draw(lineage))))
    assert shown.width > 300 and len(shown.convert("L").getcolors()) > 50, "text is drawn"


def test_boxes_do_not_overlap():
    """Nor does text leave its box: what is wider is cut."""
    nested = version([STEPS[0], step("pretrain", weights=BACKBONE), *STEPS[2:]], notes=["W" * 400])
    figure = draw(nested)
    figure.canvas.draw()
    [axes] = figure.axes
    boxes = [one.get_window_extent() for one in axes.patches if one.__class__.__name__ == "FancyBboxPatch"]
    assert len(boxes) == 3 + 7
    assert not any(a.overlaps(b) for number, a in enumerate(boxes) for b in boxes[:number])
    for text in filter(Text.get_text, axes.texts):  # without text they are arrows
        room = text.get_clip_box()
        assert text.get_clip_on() and room.height > 0 and any(box.contains(*room.p0) and box.contains(*room.p1) for box in boxes)
        if not {"W", "□"} & set(text.get_text()):
            extent = text.get_window_extent()
            assert any(box.x0 <= extent.x0 and extent.x1 <= box.x1 and box.y0 <= extent.y0 and extent.y1 <= box.y1 for box in boxes), text.get_text()
