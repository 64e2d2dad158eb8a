"""The documentation stays true: links, recipes and options that it names are there, and its example works."""

import re
import types
from pathlib import Path

import pytest
import torch
import typer.main
import yaml

from flows.cli import app
from flows.deploy import ENVIRONMENT
from ml.backbones import BACKBONES
from ml.choice import choice
from ml.contracts import Batch, DataSpec
from ml.modalities import MODALITIES
from ml.objectives import OBJECTIVES
from ml.recipe import Recipe, load

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
COMMANDS = typer.main.get_command(app).commands
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def words(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def commands(page: Path) -> list[list[str]]:
    """The words of each `warmstart COMMAND ...` that stands in code, a line or an inline piece each."""
    text = words(page)
    code = re.findall(r"```.*?\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
    lines = [line.split("#")[0].strip() for piece in code for line in piece.splitlines()]
    return [line.removeprefix(".venv/bin/").split()[1:] for line in lines if re.match(r"(\.venv/bin/)?warmstart [a-z-]", line)]


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pages
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", words(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        aim = (page.parent / name).resolve() if name else page
        assert aim.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in {slug(heading) for heading in re.findall(r"^#+ (.*)$", words(aim), re.MULTILINE)}, (
                f"{page.name} links to {target}"
            )


@pages
def test_recipes_are_there(page):
    for name in re.findall(r"conf/[\w/.-]+\.yaml", words(page)):
        assert (ROOT / name).is_file(), f"{page.name} names {name}"


@pages
def test_commands_and_options_are_there(page):
    for name, *rest in commands(page):
        if name.startswith("-"):
            name, rest = "", [name, *rest]
        assert not name or name in COMMANDS, f"{page.name} names `warmstart {name}`"
        known = {"--help"} | {option for one in COMMANDS[name].params for option in one.opts} if name else {"--help"}
        for word in rest:
            if word.startswith("--"):
                assert word.split("=")[0] in known, f"{page.name} names {word} of `warmstart {name}`"


@pages
def test_overrides_hold(page):
    """KEY=VALUE after a recipe is one that the recipe takes; words in capitals stand for what the reader has."""
    for name, *rest in commands(page):
        if name in ("run", "check") and rest and rest[0].startswith("conf/"):
            overrides = [word for word in rest[1:] if re.fullmatch(r"[a-z_.]+=[^\s'{$]+", word) and word != "..."]
            load(ROOT / rest[0], overrides)


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "decisions").glob("*.md")), ids=lambda page: page.stem)
def test_a_decision_says_context_choice_and_consequence(page):
    text = words(page)
    places = [text.find(f"**{part}.**") for part in ("Context", "Choice", "Consequence")]
    assert places == sorted(places) and places[0] > 0


def test_recipes_in_the_guide_hold():
    recipes = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", words(ROOT / "docs" / "guide.md"), re.DOTALL)]
    assert recipes
    for recipe in recipes:
        Recipe.model_validate(recipe)


def test_the_deployment_runs_the_demo():
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    recipes = [one["parameters"]["recipe"] for one in deployments if one["name"] == "digits"]
    assert [Recipe.model_validate(one) for one in recipes] == [load(ROOT / "conf" / "image" / "digits.yaml")] * 2
    for one in deployments:
        file, name = one["entrypoint"].split(":")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")
        assert not any(schedule.get("active", True) for schedule in one.get("schedules", []))
        assert one["work_pool"]["job_variables"]["env"] == ENVIRONMENT, "as `warmstart deploy` has it"


@pytest.fixture(scope="module")
def example() -> types.ModuleType:
    """The module that developing.md shows, as a file of its own."""
    source = re.search(r"<!-- example: rotation -->\n```python\n(.*?)```", words(ROOT / "docs" / "developing.md"), re.DOTALL)
    module = types.ModuleType("rotation")
    exec(compile(source[1], "ml/objectives/rotation.py", "exec"), module.__dict__)
    return module


def test_the_example_is_one_line_away_from_a_recipe(example):
    line = re.search(r"```python\n\s+(\"rotation\": \w+),\n```", words(ROOT / "docs" / "developing.md"))
    table = OBJECTIVES | eval("{" + line[1] + "}", vars(example))
    made = choice("objective", table)(name="rotation", options={"label_smoothing": 0.1})
    assert made.chosen is example.Rotation and made.chosen.augmentation in MODALITIES["image"].presets
    with pytest.raises(ValueError, match="label_smoothing"):
        choice("objective", table)(name="rotation", options={"smoothing": 0.1})


def test_the_example_learns(example):
    torch.manual_seed(0)
    spec = DataSpec("image", {}, (1, 16, 16), ("a", "b"), {"mean": [0.5], "std": [0.25]})
    backbone = choice("backbone", BACKBONES)(name="small-cnn").make(spec)
    objective = example.Rotation(example.RotationOptions(), backbone, spec)
    image_BCHW = torch.linspace(-1, 1, 16).expand(8, 1, 16, 16) + 0.1 * torch.randn(8, 1, 16, 16)
    optimizer = torch.optim.AdamW(objective.parameters(), 2e-3)
    losses = []
    for _ in range(15):
        result = objective.step(Batch({"image": image_BCHW}, torch.zeros(8, dtype=torch.long)))
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        losses.append(float(result.loss.detach()))
    assert losses[-1] < 0.5 * losses[0] and float(result.extras["accuracy"]) > 0.9


def test_every_test_that_the_pages_name_is_there():
    for page in PAGES:
        for path, test in re.findall(r"`((?:[\w]+/)+test_\w+\.py)(?:::(\w+))?`", words(page)):
            file = ROOT / "tests" / path.removeprefix("tests/")
            assert file.is_file(), f"{page.name} names {path}"
            assert not test or f"def {test}(" in file.read_text(encoding="utf-8"), f"{page.name} names {path}::{test}"
