"""Weights from files: what fits is loaded, what does not is listed, and no code in a file runs."""

import os
import pickle
import urllib.error
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
import transformers

from ml.backbones import BACKBONES
from ml.backbones.bert import Bert
from ml.backbones.gpt import Gpt
from ml.choice import choice
from ml.contracts import DataSpec, InputError
from ml.heads import HEADS
from ml.modalities import MODALITIES
from ml.model import Model, save_backbone, save_model
from ml.ragged import Ragged
from ml.weights import load_weights, weights_digest

BackboneChoice, HeadChoice = choice("backbone", BACKBONES), choice("head", HEADS)


def spec(side: int = 32, channels: int = 3) -> DataSpec:
    return DataSpec("image", {}, (channels, side, side), ("a", "b"), {"mean": [0.5] * channels, "std": [0.25] * channels})


def make(name: str, side: int = 32, channels: int = 3, seed: int = 1, **options):
    torch.manual_seed(seed)
    chosen = BackboneChoice(name=name, options=options)
    return chosen.make(spec(side, channels)), chosen


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ["small-cnn", "resnet18", "vgg11", "vit-tiny"])
def test_our_own_folder(name, tmp_path):
    source, chosen = make(name, seed=0)
    save_backbone(source, tmp_path, chosen, spec())
    for where in (tmp_path, tmp_path / "backbone.safetensors"):
        backbone, _ = make(name)
        assert not same(backbone, source)
        report = load_weights(backbone, where, chosen)
        assert same(backbone, source)
        assert report["tensors"] == len(source.state_dict()) and report["adapted"] == report["ignored"] == []


def test_the_backbone_of_our_model(tmp_path):
    _, chosen = make("small-cnn")
    torch.manual_seed(0)
    model = Model.build(chosen, HeadChoice(name="classification"), spec())
    save_model(model, tmp_path, chosen, HeadChoice(name="classification"), spec())
    backbone, _ = make("small-cnn")
    load_weights(backbone, tmp_path, chosen)
    assert same(backbone, model.backbone)


def test_weights_of_another_backbone_of_ours(tmp_path):
    source, chosen = make("small-cnn")
    save_backbone(source, tmp_path, chosen, spec())
    backbone, other = make("resnet18")
    with pytest.raises(InputError, match=r"of backbone 'small-cnn'.*'resnet18'"):
        load_weights(backbone, tmp_path, other)


@pytest.mark.parametrize(("prefix", "suffix"), [("", ".pt"), ("module.", ".pth"), ("backbone.", ".safetensors"), ("module.model.", ".pt")])
def test_published_names_and_prefixes(prefix, suffix, tmp_path):
    torch.manual_seed(0)
    published = torchvision.models.resnet18(weights=None)
    tensors = {prefix + name: value for name, value in published.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    safetensors.torch.save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    backbone, chosen = make("resnet18", stem="standard")
    report = load_weights(backbone, path, chosen)
    assert torch.equal(backbone.net.layer4[1].conv2.weight, published.layer4[1].conv2.weight)
    assert report["ignored"] == ["fc.bias", "fc.weight"]


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_checkpoint_around_the_state(wrapper, tmp_path):
    source, chosen = make("small-cnn", seed=0)
    torch.save({wrapper: source.state_dict(), "epoch": 3}, tmp_path / "w.pt")
    backbone, _ = make("small-cnn")
    load_weights(backbone, tmp_path / "w.pt", chosen)
    assert same(backbone, source)


def test_colour_stem_on_gray_images(tmp_path):
    source, _ = make("resnet18", stem="standard")
    torch.save(source.state_dict(), tmp_path / "w.pt")
    backbone, chosen = make("resnet18", channels=1, stem="standard")
    assert load_weights(backbone, tmp_path / "w.pt", chosen)["adapted"] == ["conv1.weight"]
    gray = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        of_gray, of_colour = (net.eval().encode({"image": x}).pooled_BD for net, x in ((backbone, gray), (source, gray.expand(-1, 3, -1, -1))))
    torch.testing.assert_close(of_gray, of_colour)


def test_gray_stem_on_colour_images(tmp_path):
    source, _ = make("small-cnn", channels=1)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    backbone, chosen = make("small-cnn")
    load_weights(backbone, tmp_path / "w.pt", chosen)
    gray = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        of_colour, of_gray = (net.eval().encode({"image": x}).pooled_BD for net, x in ((backbone, gray.expand(-1, 3, -1, -1)), (source, gray)))
    torch.testing.assert_close(of_colour, of_gray)


def test_positions_are_interpolated(tmp_path):
    source, _ = make("vit-tiny", 32, patch=4)
    with torch.no_grad():  # positions that grow along the rows must still do so on the larger grid
        source.net.encoder.pos_embedding[:, 1:] = torch.arange(8.0).repeat_interleave(8)[None, :, None].expand(-1, -1, 192)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    backbone, chosen = make("vit-tiny", 48, patch=4)
    assert load_weights(backbone, tmp_path / "w.pt", chosen)["adapted"] == ["encoder.pos_embedding"]
    rows = backbone.net.encoder.pos_embedding[0, 1:, 0].detach().view(12, 12)
    assert (rows.diff(dim=0) > 0).all() and rows.diff(dim=1).abs().max() < 1e-4
    assert torch.equal(backbone.net.encoder.pos_embedding[:, :1], source.net.encoder.pos_embedding[:, :1])


def test_a_mismatch_lists_what_differs_and_changes_nothing(tmp_path):
    source, _ = make("resnet18", stem="standard")
    state = source.state_dict()
    state["net.layer1.0.conv1.weight"] = torch.zeros(64, 64, 1, 1)
    state["net.surplus"] = torch.zeros(3)
    del state["net.layer2.0.conv1.weight"]
    torch.save(state, tmp_path / "w.pt")
    backbone, chosen = make("resnet18", stem="standard", seed=2)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(InputError) as error:
        load_weights(backbone, tmp_path / "w.pt", chosen)
    message = str(error.value)
    assert "layer1.0.conv1.weight is 64x64x1x1 in the weights and 64x64x3x3 in the backbone" in message
    assert "missing layer2.0.conv1.weight 128x64x3x3" in message
    assert "unexpected surplus 3" in message
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_another_architecture_gets_a_short_list(tmp_path):
    source, _ = make("vgg11")
    torch.save(source.state_dict(), tmp_path / "w.pt")
    backbone, chosen = make("resnet18")
    with pytest.raises(InputError, match=r"and \d+ more") as error:
        load_weights(backbone, tmp_path / "w.pt", chosen)
    assert len(str(error.value).splitlines()) == 14


def test_a_standard_stem_into_a_small_one_says_what_to_set(tmp_path):
    source, _ = make("resnet18", stem="standard")
    torch.save(source.state_dict(), tmp_path / "w.pt")
    backbone, chosen = make("resnet18")
    with pytest.raises(InputError, match=r"backbone\.options\.stem=standard"):
        load_weights(backbone, tmp_path / "w.pt", chosen)


def test_other_patches_say_what_to_set(tmp_path):
    source, _ = make("vit-tiny", patch=8)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    backbone, chosen = make("vit-tiny", patch=4)
    with pytest.raises(InputError, match=r"backbone\.options\.patch=8"):
        load_weights(backbone, tmp_path / "w.pt", chosen)


def test_values_that_are_not_finite_are_refused(tmp_path):
    source, chosen = make("small-cnn")
    source.stem[0][0].weight.data[0, 0, 0, 0] = float("nan")
    torch.save(source.state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match="not finite"):
        load_weights(make("small-cnn")[0], tmp_path / "w.pt", chosen)


class Canary:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch", "pickle", "nested"])
def test_a_pickle_with_code_runs_nothing(how, tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "w.pth"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Canary(canary)))
    else:
        torch.save({"state_dict": Canary(canary)} if how == "nested" else Canary(canary), path)
    backbone, chosen = make("small-cnn")
    with pytest.raises(InputError, match="refused"):
        load_weights(backbone, path, chosen)
    assert not canary.exists()
    if how != "pickle":
        torch.load(path, weights_only=False)
        assert canary.exists(), "the canary does not sing at all: the test proves nothing"


def test_a_whole_pickled_module_is_refused(tmp_path):
    backbone, chosen = make("small-cnn")
    torch.save(backbone, tmp_path / "w.pt")
    with pytest.raises(InputError, match="refused"):
        load_weights(backbone, tmp_path / "w.pt", chosen)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello", b"\x80\x02."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files(suffix, content, tmp_path):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    backbone, chosen = make("small-cnn")
    with pytest.raises(InputError, match=r"damaged|refused"):
        load_weights(backbone, path, chosen)


def test_a_cut_file(tmp_path):
    backbone, chosen = make("small-cnn")
    torch.save(backbone.state_dict(), tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"damaged|refused"):
        load_weights(backbone, tmp_path / "w.pt", chosen)


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {"epoch": 3}])
def test_files_without_named_tensors(content, tmp_path):
    torch.save(content, tmp_path / "w.pt")
    backbone, chosen = make("small-cnn")
    with pytest.raises(InputError, match="state_dict"):
        load_weights(backbone, tmp_path / "w.pt", chosen)


@pytest.mark.parametrize(
    ("name", "where", "message"),
    [
        ("small-cnn", "IMAGENET1K_V1", "no published weights"),
        ("resnet18", "IMAGENET9", "Valid: IMAGENET1K_V1"),
        ("resnet18", "ResNet50_Weights.DEFAULT", "no weights 'ResNet50_Weights.DEFAULT' for resnet18"),
        ("resnet18", "missing/w.pt", "no weights file"),
        ("resnet18", "missing.safetensors", "no weights file"),
    ],
)
def test_names_that_lead_nowhere(name, where, message):
    backbone, chosen = make(name)
    with pytest.raises(InputError, match=message):
        load_weights(backbone, where, chosen)


def test_a_folder_of_something_else(tmp_path):
    backbone, chosen = make("small-cnn")
    with pytest.raises(InputError, match=r"neither backbone\.json nor model\.json"):
        load_weights(backbone, tmp_path, chosen)


TEXT_SPEC = DataSpec("text", {"vocabulary": 40}, (16,), ("a", "b"), {"tokens": {"pad": 0, "unknown": 1, "begin": 2, "end": 3, "mask": 4}})


class TextChoice:
    """A choice of a text backbone, whether or not the table has it."""

    def __init__(self, chosen: type, **options):
        self.chosen, self.options, self.name = chosen, options, SimpleNamespace(value=chosen.__name__.lower())

    def parsed(self):
        return self.chosen.Options(**self.options)

    def make(self):
        torch.manual_seed(1)
        return self.chosen(self.parsed(), TEXT_SPEC).eval()


def text_inputs() -> dict[str, torch.Tensor]:
    return {"tokens": torch.randint(5, 40, (2, 9), generator=torch.Generator().manual_seed(0)), "mask": torch.ones(2, 9, dtype=torch.bool)}


@pytest.mark.parametrize(("prefix", "old"), [("", False), ("bert.", True)])
def test_a_hugging_face_folder_of_bert(prefix, old, tmp_path):
    """As sentence-transformers and Google write it: with a pooler, an output layer, positions, and in old files other names."""
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=32, **shape)
    torch.manual_seed(0)
    published = transformers.BertModel(config).eval()
    tensors = {prefix + name: value for name, value in published.state_dict().items()} | {prefix + "embeddings.position_ids": torch.arange(32)[None]}
    if old:
        tensors = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value for name, value in tensors.items()}
        tensors |= {"cls.predictions.bias": torch.zeros(40)}
    config.save_pretrained(tmp_path)
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    chosen = TextChoice(Bert, config=str(tmp_path))
    for where in (tmp_path, tmp_path / "model.safetensors"):
        backbone = chosen.make()
        report = load_weights(backbone, where, chosen)
        assert report["tensors"] == len(backbone.state_dict()) and "pooler.dense.weight" in report["ignored"]
        with torch.no_grad():
            expected = published(text_inputs()["tokens"]).last_hidden_state
            torch.testing.assert_close(backbone.encode(text_inputs()).tokens_BTD, expected)
    other = TextChoice(Bert, size="tiny")
    with pytest.raises(InputError, match=r"Set backbone\.options\.config="):
        load_weights(other.make(), tmp_path, other)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_a_hugging_face_file_of_gpt2(prefix, tmp_path):
    config = transformers.GPT2Config(vocab_size=40, n_positions=32, n_embd=24, n_layer=2, n_head=3, bos_token_id=None, eos_token_id=None)
    torch.manual_seed(0)
    published = transformers.GPT2Model(config).eval()
    tensors = {prefix + name: value for name, value in published.state_dict().items()} | {prefix + "h.0.attn.bias": torch.ones(1, 1, 32, 32)}
    config.save_pretrained(tmp_path)
    safetensors.torch.save_file(tensors | {"lm_head.weight": torch.zeros(40, 24)}, tmp_path / "model.safetensors")
    chosen = TextChoice(Gpt, config=str(tmp_path))
    backbone = chosen.make()
    load_weights(backbone, tmp_path, chosen)
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode(text_inputs()).tokens_BTD, published(text_inputs()["tokens"]).last_hidden_state)


def text_spec(tmp_path, *words: str) -> DataSpec:
    """Of data whose tokenizer knows these words."""
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    modality = MODALITIES["text"](MODALITIES["text"].Options(max_length=16, tokenizer_path=str(tmp_path / "vocab.txt")))
    return modality.spec((), modality.statistics([Ragged.of([np.frombuffer(" ".join(words).encode(), np.uint8)], np.uint8)]))


@pytest.mark.parametrize("wanted", [["sail", "mast"], ["mast", "sail"], ["sail", "mast", "oven"]])
@pytest.mark.parametrize("kind", ["folder", "file", "model", "tokenizer.json", "vocab.txt", "nothing"])
def test_weights_and_data_have_one_tokenizer(tmp_path, kind, wanted):
    """Whatever holds it: our own description, or a file beside published weights; where nothing does, nothing is known."""
    data, folder = tmp_path / "data", tmp_path / "weights"
    data.mkdir(), folder.mkdir()
    spec, other = text_spec(data, *wanted), text_spec(folder, "sail", "mast")
    chosen = BackboneChoice(name="bert", options={"size": "tiny"})
    torch.manual_seed(0)
    where, source = folder, chosen.make(other)
    if kind in ("folder", "file"):
        save_backbone(source, folder, chosen, other)
        where = folder / "backbone.safetensors" if kind == "file" else folder
    elif kind == "model":
        save_model(Model.build(chosen, HeadChoice(name="language-model"), other), folder, chosen, HeadChoice(name="language-model"), other)
    else:
        safetensors.torch.save_file({name: value.clone() for name, value in source.net.state_dict().items()}, folder / "model.safetensors")
        if kind == "tokenizer.json":
            (folder / "tokenizer.json").write_text(other.statistics["tokenizer"])
    if kind != "vocab.txt":
        (folder / "vocab.txt").unlink()
    backbone = chosen.make(spec)
    if wanted == ["sail", "mast"] or (kind == "nothing" and len(wanted) == 2):
        load_weights(backbone, where, chosen, spec)
        return
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    message = "do not fit the backbone" if kind == "nothing" else rf"another tokenizer.* of \d ids mean another token.*tokenizer_path={folder}"
    with pytest.raises(InputError, match=message):
        load_weights(backbone, where, chosen, spec)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    if kind != "nothing":  # what the message says to do
        modality = MODALITIES["text"](MODALITIES["text"].Options(max_length=16, tokenizer_path=str(folder)))
        adopted = modality.spec((), modality.statistics([Ragged.of([np.frombuffer(b"mast", np.uint8)], np.uint8)]))
        load_weights(chosen.make(adopted), where, chosen, adopted)


@pytest.mark.parametrize("where", ["IMAGENET1K_V1", "DEFAULT", "ResNet18_Weights.IMAGENET1K_V1"])
def test_a_published_name_without_a_network(where, monkeypatch):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    backbone, chosen = make("resnet18", stem="standard")
    with pytest.raises(InputError, match="no route to host"):
        load_weights(backbone, where, chosen)


def test_a_published_name_out_of_the_local_cache(tmp_path, monkeypatch):
    """torchvision finds the file by its name in the hub's folder and checks the hash that the name holds."""
    torch.manual_seed(0)
    published = torchvision.models.resnet18(weights=None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    torch.save(published.state_dict(), tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1])
    backbone, chosen = make("resnet18", stem="standard")
    load_weights(backbone, "IMAGENET1K_V1", chosen)
    assert torch.equal(backbone.net.conv1.weight, published.conv1.weight)


def test_digest_follows_the_contents(tmp_path):
    source, chosen = make("small-cnn")
    for folder in ("a", "b"):
        save_backbone(source, tmp_path / folder, chosen, spec())
    assert weights_digest(tmp_path / "a") == weights_digest(tmp_path / "b")
    save_backbone(make("small-cnn", seed=5)[0], tmp_path / "b", chosen, spec())
    digests = [weights_digest(where) for where in (tmp_path / "a", tmp_path / "b", tmp_path / "a" / "backbone.safetensors", "DEFAULT", "IMAGENET1K_V1")]
    assert len(set(digests)) == 5
