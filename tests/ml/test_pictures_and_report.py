"""Pictures draw whatever the names are, and the report is one file in which nothing of the data is markup."""

import io
import json
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image as Pillow

from ml import image_pictures, pictures
from ml.class_details import details
from ml.evaluation import evaluate
from ml.metrics import CLASSIFICATION
from ml.report import duration, number, render

HOSTILE = ("$x_{", "<script>alert(1)</script>", "犬\n\t\x00", "a" * 300, '"><img src=x onerror=alert(1)>')


def evaluated(classes: tuple[str, ...], rows: int = 240):
    generator = np.random.default_rng(0)
    targets_N = generator.integers(0, len(classes), rows)
    model_NK = generator.dirichlet(np.ones(len(classes)), rows)
    model_NK[np.arange(rows), targets_N] += 0.5
    model_NK /= model_NK.sum(1, keepdims=True)
    table = pd.DataFrame({"row_id": [str(row) for row in range(rows)], "key": [f"{classes[row % len(classes)]}/{row}" for row in range(rows)]})
    table["slice"] = ["<i>ward</i>", None] * (rows // 2)
    arms = {"model": model_NK, "trivial": np.full_like(model_NK, 1 / len(classes))}

    def facts(options):
        return details(table, targets_N, model_NK, model_NK, classes, temperature=1.0, mistakes=7, options=options)

    return evaluate(table, targets_N, arms, CLASSIFICATION, "accuracy", facts, trivial="always naming the commonest class", resamples=100)


@pytest.fixture(scope="module")
def content() -> dict:
    return json.loads(json.dumps(evaluated(HOSTILE).to_dict()))


def drawn(figure) -> Pillow.Image:
    return Pillow.open(io.BytesIO(pictures.png(figure)))


def test_every_picture_draws_hostile_names(content):
    arrays = np.random.default_rng(0).integers(0, 256, (len(content["mistakes"]), 16, 16, 3), dtype=np.uint8)
    figures = [
        pictures.confusion(content["confusion"], HOSTILE),
        pictures.reliability(content["calibration"]),
        pictures.per_class(content["per_class"]),
        pictures.arms(content["metrics"], "accuracy"),
        pictures.arms(content["metrics"], "log_loss"),
        image_pictures.mistakes(content["mistakes"], arrays),
        image_pictures.mistakes(content["mistakes"], arrays[..., :1]),
        image_pictures.mistakes([], arrays[:0]),
        pictures.curves({"loss $": {"a$b": ([1, 2, 3], [3.0, 2.0, 1.0]), "other": ([1], [2.0])}, "probe": {"p": ([1, 2], [0.1, 0.2])}}),
        pictures.curves({}),
    ]
    for figure in figures:
        assert min(drawn(figure).size) > 100


@pytest.mark.parametrize("classes", [2, 21, 150])
def test_confusions_of_few_and_many_classes_stay_of_a_readable_size(classes):
    names = tuple(f"class {k}" for k in range(classes))
    result = evaluated(names)
    for figure in (pictures.confusion(result.details["confusion"], names), pictures.per_class(result.details["per_class"])):
        width, height = drawn(figure).size
        assert 300 < width < 2000 and 200 < height < 2600


def test_the_same_picture_has_the_same_bytes(content):
    once, again = (pictures.png(pictures.confusion(content["confusion"], HOSTILE)) for _ in range(2))
    assert once == again


class Outline(HTMLParser):
    """Collects tags and attributes as a browser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def outline(html: str) -> Outline:
    parser = Outline()
    parser.feed(html)
    return parser


def full(content: dict) -> dict:
    return {
        "title": HOSTILE[1],
        "subtitle": HOSTILE[4],
        "evaluation": content,
        "verdict": {"passed": False, "reasons": [HOSTILE[4]]},
        "model": {"name": HOSTILE[1], "version": "3", "uri": "models:/x/3", "aliases": ["champion"]},
        "leakage": {"seen": 0, "of": 240},
        "data": {HOSTILE[1]: HOSTILE[4]},
        "quarantine": {HOSTILE[4]: 3},
        "stages": [
            {"name": "pretrain", "seconds": 75.2, "cached": True, "why": HOSTILE[1], "run_id": "a", "link": "http://localhost/#/runs/a"},
            {"name": "split", "seconds": 0.2, "cached": False, "why": "", "run_id": "b", "link": "javascript:alert(1)"},
        ],
        "pictures": [{"title": HOSTILE[4], "png": pictures.png(pictures.arms(content["metrics"], "auroc")), "section": "evaluation"}],
        "notes": [HOSTILE[1]],
        "recipe": "name: </pre><script>",
        "created": "today",
    }


def test_nothing_of_the_data_becomes_markup(content):
    seen = outline(render(full(content)))
    assert "script" not in seen.tags and seen.tags.count("img") == 1
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    assert [value for name, value in seen.attributes if name == "href"] == ["http://localhost/#/runs/a"]


def test_the_report_holds_everything_and_asks_no_network(content):
    html = render(full(content))
    seen = outline(html)
    assert all(value.startswith("data:image/png;base64,") for name, value in seen.attributes if name == "src")
    assert "link" not in seen.tags and "@import" not in html and "url(" not in html
    for text in ("The gate is not passed", "Test rows seen in pretraining: 0 of 240", "1 min 15 s", "&lt;i&gt;ward&lt;/i&gt;", "models:/x/3"):
        assert text in html


def test_a_bare_evaluation_is_enough(content):
    html = render({"title": "bare", "evaluation": content})
    assert "By class" in html and "The gate" not in html and "Cost" not in html


def test_numbers_as_people_read_them():
    assert number(0.9144) == "91.4 %" and number(0.5, "log_loss") == "0.500" and number(None) == number(float("nan")) == "–"
    assert [duration(seconds) for seconds in (0.24, 59.9, 60, 3599, 7260)] == ["0.2 s", "59.9 s", "1 min 00 s", "59 min 59 s", "2 h 01 min"]
