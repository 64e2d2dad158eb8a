import pytest
import yaml

from ml.contracts import InputError
from ml.recipe import Recipe, load, parse

SMALL = {"name": "tiny", "data": {"source": "sklearn-digits"}, "backbone": "small-cnn"}


def write(path, content):
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_bare_name_stands_for_a_choice():
    recipe = parse(SMALL)
    assert recipe.data.source.name.value == "sklearn-digits"
    assert recipe.backbone.chosen.__name__ and recipe.pretraining.objective.name.value


def test_overrides_are_yaml_and_reach_anywhere(tmp_path):
    path = write(tmp_path / "r.yaml", SMALL)
    recipe = load(path, ["seed=3", "pretraining.fit.epochs=2", "finetuning.baseline=false", "splitting.labels_per_class=null"])
    assert (recipe.seed, recipe.pretraining.fit.epochs, recipe.finetuning.baseline, recipe.splitting.labels_per_class) == (3, 2, False, None)


def test_a_path_is_text_even_where_yaml_sees_more(tmp_path):
    path = write(tmp_path / "r.yaml", {**SMALL, "data": {"source": "image-folder"}})
    recipe = load(path, ["data.source.options.path=2024"])
    assert recipe.data.source.parsed().path == "2024"


def test_another_name_drops_the_former_ones_options(tmp_path):
    path = write(tmp_path / "r.yaml", {**SMALL, "data": {"source": {"name": "image-folder", "options": {"path": "x"}}}})
    assert load(path, ["data.source.name=sklearn-digits"]).data.source.options == {}


def test_an_argument_after_a_colon_fills_the_option():
    assert parse({**SMALL, "backbone": "timm:resnet10t"}).backbone.parsed().model == "resnet10t"


def test_a_recipe_survives_a_round_trip():
    recipe = parse(SMALL)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sead": 1}, ["sead", "Did you mean 'seed'", "pretraining"]),
        ({"backbone": "resnet19"}, ["unknown backbone 'resnet19'", "resnet18"]),
        ({"seed": "many"}, ["seed", "integer", "'many'"]),
        ({"data": {"source": {"name": "image-folder", "options": {"pat": "x"}}}}, ["'pat'", "path"]),
        ({"data": {"source": "sklearn-digits", "test_fraction": 1.5}}, ["data.test_fraction", "less than 1", "1.5"]),
        ({"splitting": {"labels_per_class": 5, "label_fraction": 0.1}}, ["exclude each other"]),
        ({"finetuning": {"metric": "acuracy"}}, ["unknown metric", "accuracy"]),
        ({"finetuning": {"augmentation": {"preset": "strong"}}}, ["preset", "contrastive"]),
        ({"finetuning": {"augmentation": {"flop": 1}}}, ["flop", "flip"]),
        ({"pretraining": {"fit": {"epochs": 0}}}, ["pretraining.fit.epochs", "0"]),
        ({"compute": {"workers": 2}}, ["'local'", "workers=2", "torchrun"]),
        ({"compute": {"devices_per_worker": 2}}, ["'local'", "devices_per_worker=2", "torchrun"]),
        ({"compute": {"address": "auto", "engine": "torchrun"}}, ["'torchrun'", "address=auto", "HOST:PORT"]),
        ({"compute": {"address": "here:1"}}, ["'local'", "address=here:1", "ray"]),
        ({"compute": {"strategy": "fsdp"}}, ["'fsdp'", "workers=1", "torchrun or ray", "ddp"]),
        ({"compute": {"strategy": "fsdp", "engine": "torchrun", "workers": 2, "compile": "always"}}, ["'fsdp'", "compile", "ddp"]),
        ({"compute": {"engine": "horovod"}}, ["compute.engine", "torchrun", "'horovod'"]),
        ({"registration": {"int8": True}}, ["registration", "int8", "registration.onnx=true"]),
        ({"name": "a/b"}, ["name"]),
        (
            {"data": {"source": "text-table", "modality": "text"}, "backbone": "gpt", "pretraining": {"enabled": False}, "finetuning": {"head": "language-model"}, "registration": {"onnx": True}},
            ["registration.onnx", "'language-model'", "classification, multi-label"],
        ),
        ({"data": {}}, ["data.source", "required"]),
    ],
    ids=str,
)
def test_problems_name_the_key_what_was_found_and_what_is_valid(change, words):
    with pytest.raises(InputError) as caught:
        parse({**SMALL, **change})
    for word in words:
        assert word in str(caught.value)


PAIRS = {"name": "pairs", "data": {"source": "text-pairs", "modality": "text-pair"}, "pretraining": {"objective": "pairs"}, "finetuning": {"head": "embedding"}}


@pytest.mark.parametrize("backbone", ["bert", "text-cnn", "gpt", "bart"])
def test_pairs_of_texts_are_read_by_any_network_for_texts(backbone):
    assert parse({**PAIRS, "backbone": backbone}).finetuning.head.name.value == "embedding"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"finetuning": {"head": "translation"}}, ["head 'translation' needs sequence-to-sequence", "'bert' does not give", "work with it: bart."]),
        ({"data": {"source": "text-table", "modality": "text"}}, ["objective 'pairs' learns from text-pair data, not from text data", "masked-language"]),
        ({"data": {"source": "text-table", "modality": "text"}, "pretraining": {"enabled": False}}, ["head 'embedding' learns from text-pair data, not from text"]),
        ({"pretraining": {"objective": "span-corruption"}}, ["objective 'span-corruption' needs sequence-to-sequence", "masked-language, pairs."]),
    ],
    ids=str,
)
def test_what_does_not_suit_pairs_of_texts_is_refused(change, words):
    with pytest.raises(InputError) as caught:
        parse({**PAIRS, "backbone": "bert", **change})
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a", "a: [", "\x00"])
def test_files_that_are_no_recipe(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError):
        load(path)


def test_a_yaml_tag_makes_no_object(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("name: !!python/object/apply:os.system ['touch canary']\n")
    with pytest.raises(InputError):
        load(path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("override", ["seed", "=3", "seed.x=3"])
def test_overrides_that_cannot_be_applied(tmp_path, override):
    with pytest.raises(InputError):
        load(write(tmp_path / "r.yaml", {**SMALL, "seed": 1}), [override])


def test_a_missing_recipe_says_where_to_look(tmp_path):
    with pytest.raises(InputError, match="warmstart recipes"):
        load(tmp_path / "none.yaml")
