"""Backbones for texts: padding changes nothing, what reads forwards does not look ahead, and a given shape is checked."""

import inspect
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ml.backbones import BACKBONES
from ml.backbones.bert import Bert
from ml.backbones.gpt import Gpt
from ml.backbones.text_cnn import TextCnn
from ml.contracts import DataSpec, InputError

VOCABULARY, LENGTH = 50, 24
SPEC = DataSpec("text", {"vocabulary": VOCABULARY}, (LENGTH,), ("a", "b"), {"tokens": {"pad": 0, "unknown": 1, "begin": 2, "end": 3, "mask": 4}})
SMALL = {Bert: {"size": "tiny"}, Gpt: {"size": "nano"}, TextCnn: {"width": 16}}
VARIANTS = [*SMALL.items(), (Bert, {"size": "tiny", "pooling": "cls"}), (Gpt, {"size": "nano", "pooling": "mean"}), (TextCnn, {"width": 16, "depth": 0, "words": 3.0})]
BERT_JSON = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "torch_dtype": "float32",
}


def make(kind: type, options: dict, spec: DataSpec = SPEC):
    torch.manual_seed(0)
    return kind(kind.Options(**options), spec).eval()


def texts(lengths: list[int], padded: int) -> dict[str, torch.Tensor]:
    """Texts of these lengths, the same ones whatever they are padded to."""
    tokens, mask = torch.zeros(len(lengths), padded, dtype=torch.long), torch.zeros(len(lengths), padded, dtype=torch.bool)
    for row, length in enumerate(lengths):
        words = torch.randint(5, VOCABULARY, (length - 2,), generator=torch.Generator().manual_seed(row))
        tokens[row, :length], mask[row, :length] = torch.cat([torch.tensor([2]), words, torch.tensor([3])]), True
    return {"tokens": tokens, "mask": mask}


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_encodes_with_the_declared_traits(kind, options):
    backbone = make(kind, options)
    with torch.no_grad():
        features = backbone.encode(texts([9, 5, 2], 12))
    assert features.pooled_BD.shape == (3, backbone.width) and features.pooled_BD.isfinite().all()
    assert features.tokens_BTD.shape == (3, 12, backbone.embedding.embedding_dim)
    assert backbone.embedding.num_embeddings == VOCABULARY
    assert ("causal" in backbone.traits) != ("bidirectional" in backbone.traits)
    assert "text" in backbone.modalities


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_words_are_counted_and_weighed_beside_what_is_learnt(weight):
    rarity = [0.0] * 5 + [0.1 * place for place in range(VOCABULARY - 5)]
    spec = replace(SPEC, statistics={**SPEC.statistics, "rarity": rarity})
    tokens = torch.tensor([[2, 7, 7, 9, 3], [2, 30, 3, 0, 0]])
    inputs = {"tokens": tokens, "mask": tokens != 0}
    counted = make(TextCnn, {"width": 16, "depth": 0, "words": weight}, spec).encode(inputs)
    assert make(TextCnn, {"width": 16, "depth": 0}, spec).encode(inputs).wide_BW is None
    assert torch.allclose(counted.wide_BW.norm(dim=1), weight * counted.pooled_BD.norm(dim=1))
    assert [row.nonzero().flatten().tolist() for row in counted.wide_BW] == [[7, 9], [30]]
    assert counted.wide_BW[0, 9] / counted.wide_BW[0, 7] == pytest.approx(math.log(2) * rarity[9] / (math.log(3) * rarity[7]))


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_padding_changes_nothing(kind, options):
    backbone = make(kind, options)
    with torch.no_grad():
        alone = torch.cat([backbone.encode(texts([9, 5, 7], 9)).pooled_BD[1:2], backbone.encode(texts([9, 5, 7], LENGTH)).pooled_BD[1:2]])
        changed = texts([9, 5, 7], LENGTH)
        changed["tokens"][~changed["mask"]] = 17  # whatever stands there
        other = backbone.encode(changed).pooled_BD[1]
    torch.testing.assert_close(alone[0], alone[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(other, alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_a_text_does_not_see_its_neighbours_in_the_batch(kind, options):
    backbone, batch = make(kind, options), texts([9, 5, 7], 9)
    with torch.no_grad():
        together = backbone.encode(batch).pooled_BD
        single = torch.cat([backbone.encode({name: value[row : row + 1] for name, value in batch.items()}).pooled_BD for row in range(3)])
    torch.testing.assert_close(together, single, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_who_sees_whom(kind, options):
    """A changed token leaves the states before it as they are exactly where the backbone is causal."""
    backbone, batch = make(kind, options), texts([12], 12)
    other = batch["tokens"].clone()
    other[0, 6] = 5 + (other[0, 6] - 4) % (VOCABULARY - 5)
    with torch.no_grad():
        before, after = (backbone.encode({**batch, "tokens": tokens}).tokens_BTD[0] for tokens in (batch["tokens"], other))
    same = torch.isclose(before, after, atol=1e-6).all(1)
    assert not same[6]
    assert same[:6].all() == ("causal" in backbone.traits)


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_layers_hold_every_parameter_once(kind, options):
    backbone = make(kind, options)
    listed = [id(parameter) for layer in backbone.layers() for parameter in layer.parameters()]
    assert sorted(listed) == sorted(id(parameter) for parameter in backbone.parameters())


@pytest.mark.parametrize(("kind", "options"), SMALL.items())
def test_layers_come_in_depth_order(kind, options):
    backbone = make(kind, options)
    seen: list[int] = []
    for index, layer in enumerate(backbone.layers()):
        for module in layer.modules():
            if any(True for _ in module.parameters(recurse=False)):
                module.register_forward_pre_hook(lambda *_, index=index: seen.append(index))
    with torch.no_grad():
        backbone.encode(texts([5], 5))
    assert seen == sorted(seen) and len(backbone.layers()) >= 3


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_every_weight_learns_from_the_pooled_vector_or_the_tokens(kind, options):
    features = make(kind, options).train()
    encoded = features.encode(texts([9, 5, 7], 9))
    (encoded.pooled_BD.square().sum() + encoded.tokens_BTD.square().sum()).backward()
    assert not [name for name, parameter in features.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize(("kind", "positions"), [(Bert, "position_embeddings"), (Gpt, "wpe")])
def test_long_texts_get_their_positions(kind, positions):
    spec = DataSpec("text", SPEC.options, (600,), SPEC.classes, SPEC.statistics)
    state = make(kind, SMALL[kind], spec).state_dict()
    assert [len(value) for name, value in state.items() if positions in name] == [600]


def test_bert_takes_a_given_shape_and_keeps_it_without_the_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BERT_JSON))
    options = Bert.Options(config=str(tmp_path))
    (tmp_path / "config.json").unlink()
    again = Bert.Options.model_validate(options.model_dump(mode="json", exclude_unset=True))
    backbone = Bert(again, SPEC)
    assert (backbone.width, len(backbone.layers())) == (24, 4)
    assert backbone.net.embeddings.position_embeddings.num_embeddings == 32


def test_gpt_takes_a_given_shape(tmp_path):
    content = {"model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 40, "n_inner": None}
    (tmp_path / "config.json").write_text(json.dumps(content))
    backbone = make(Gpt, {"config": str(tmp_path / "config.json")})
    assert (backbone.width, backbone.net.wpe.num_embeddings) == (24, 40)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 51}, "vocabulary of 51 tokens and the data one of 50"),
        ({"max_position_embeddings": 20}, "up to 24 tokens"),
        ({"model_type": "roberta"}, "type 'roberta', expected 'bert'"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"num_attention_heads": 5}, "no BERT can be built"),
        ({"hidden_act": "nonsense"}, "no BERT can be built"),
    ],
)
def test_a_shape_that_does_not_fit(change, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BERT_JSON | change))
    with pytest.raises(ValueError, match=message):
        make(Bert, {"config": str(tmp_path)})


@pytest.mark.parametrize(("content", "message"), [(None, "cannot read"), ("{", "not JSON"), ("[]", "type None")])
def test_a_folder_without_a_shape(content, message, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Bert.Options(config=str(tmp_path))


def test_a_published_shape_error_is_an_input_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BERT_JSON | {"vocab_size": 51}))
    with pytest.raises(InputError):
        make(Bert, {"config": str(tmp_path)})


@pytest.mark.parametrize("kind", BACKBONES.values(), ids=BACKBONES)
def test_what_it_imports_is_among_a_served_models_requirements(kind):
    source = Path(inspect.getfile(kind)).read_text(encoding="utf-8")
    for package in ("transformers", "timm"):
        assert (f"import {package}" in source or f"from {package}" in source) == (package in getattr(kind, "requires", ()))
