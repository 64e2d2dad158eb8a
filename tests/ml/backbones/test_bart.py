"""BART reads and writes: padding changes nothing, the decoder does not look ahead, generation is greedy, and files hold what they must."""

import json

import pytest
import torch

from ml.backbones import BACKBONES
from ml.backbones.bart import Bart
from ml.choice import choice
from ml.contracts import DataSpec, InputError
from ml.model import save_backbone
from ml.predictor import Embedder
from ml.weights import load_weights

VOCABULARY, LENGTH = 50, 24
MARKS = {"pad": 0, "unknown": 1, "begin": 2, "end": 3, "mask": 4}
SPEC = DataSpec("text-pair", {"vocabulary": VOCABULARY}, (LENGTH,), (), {"tokens": MARKS})
SHAPE = {
    "model_type": "bart",
    "vocab_size": VOCABULARY,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 32,
    "scale_embedding": False,
}


def make(spec=SPEC, **options):
    torch.manual_seed(0)
    return Bart(Bart.Options(**({"size": "nano"} | options)), spec).eval()


def texts(lengths, padded):
    """Texts of these lengths, the same ones whatever they are padded to."""
    tokens, mask = torch.zeros(len(lengths), padded, dtype=torch.long), torch.zeros(len(lengths), padded, dtype=torch.bool)
    for row, length in enumerate(lengths):
        words = torch.randint(5, VOCABULARY, (length - 2,), generator=torch.Generator().manual_seed(row))
        tokens[row, :length], mask[row, :length] = torch.cat([torch.tensor([2]), words, torch.tensor([3])]), True
    return tokens, mask


def pairs(sources, targets, padded=None):
    tokens, mask = texts(sources, padded or max(sources))
    target, target_mask = texts([length + 1 for length in targets], padded or max(targets) + 1)
    return {"tokens": tokens, "mask": mask, "target": target, "target_mask": target_mask}


def test_encodes_with_the_declared_traits():
    backbone, batch = make(), pairs([9, 5, 2], [7, 4, 3])
    with torch.no_grad():
        features, logits = backbone.encode(batch), backbone.logits(batch)
    assert features.pooled_BD.shape == (3, backbone.width) and features.pooled_BD.isfinite().all()
    assert features.tokens_BTD.shape == (3, 9, backbone.width)
    assert logits.shape == (3, 7, VOCABULARY)
    assert backbone.traits == {"tokens", "vocabulary", "sequence-to-sequence"} and backbone.modalities == {"text", "text-pair"}


def test_padding_and_neighbours_change_nothing():
    backbone, batch, padded = make(), pairs([9, 5, 7], [6, 7, 3]), pairs([9, 5, 7], [6, 7, 3], LENGTH)
    padded["tokens"][~padded["mask"]] = 17  # whatever stands there
    padded["target"][~padded["target_mask"]] = 18
    with torch.no_grad():
        near, far = backbone.logits(batch), backbone.logits(padded)
        alone = backbone.logits({name: value[1:2] for name, value in batch.items()})
        pooled = [backbone.encode(one).pooled_BD for one in (batch, padded)]
    mask = batch["target_mask"][:, :-1]
    torch.testing.assert_close(near[mask], far[:, : near.shape[1]][mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(alone[0], near[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(*pooled, atol=1e-5, rtol=0)


def test_who_sees_whom():
    """A changed token of the target changes nothing before it; one of the source changes all."""
    backbone, batch = make(), pairs([9], [9])
    other, source = (batch["target"].clone(), batch["tokens"].clone())
    other[0, 5], source[0, 5] = 5 + (other[0, 5] - 4) % (VOCABULARY - 5), 5 + (source[0, 5] - 4) % (VOCABULARY - 5)
    with torch.no_grad():
        plain = backbone.logits(batch)[0]
        same = torch.isclose(plain, backbone.logits({**batch, "target": other})[0], atol=1e-6).all(1)
        assert same[:5].all() and not same[5]
        assert not torch.isclose(plain, backbone.logits({**batch, "tokens": source})[0], atol=1e-6).all(1).any()


@pytest.mark.parametrize("options", [{}, {"size": "tiny"}])
def test_layers_hold_every_parameter_once_in_depth_order(options):
    backbone = make(**options)
    listed = [id(parameter) for layer in backbone.layers() for parameter in layer.parameters()]
    assert sorted(listed) == sorted(id(parameter) for parameter in backbone.parameters())
    seen: list[int] = []
    for index, layer in enumerate(backbone.layers()):
        for module in layer.modules():
            if module is not backbone.embedding and any(True for _ in module.parameters(recurse=False)):  # which serves the decoder too
                module.register_forward_pre_hook(lambda *_, index=index: seen.append(index))
    with torch.no_grad():
        backbone.logits(pairs([5], [5]))
    assert seen == sorted(seen) and set(seen) == set(range(len(backbone.layers())))


def test_every_weight_learns_from_the_logits():
    backbone = make().train()
    backbone.logits(pairs([9, 5], [7, 4])).square().sum().backward()
    assert not [name for name, parameter in backbone.named_parameters() if parameter.grad is None]


def learnt(steps=120):
    """A network that has learnt to write a text backwards."""
    backbone = make(dropout=0.0).train()
    batch = pairs([7, 6, 5, 4], [7, 6, 5, 4])
    for row, length in enumerate((7, 6, 5, 4)):
        batch["target"][row], batch["target_mask"][row] = 0, False
        batch["target"][row, :length] = torch.cat([torch.tensor([2]), batch["tokens"][row, 1 : length - 1].flip(0), torch.tensor([3])])
        batch["target_mask"][row, :length] = True
    optimizer = torch.optim.AdamW(backbone.parameters(), 1e-3)
    for _ in range(steps):
        target = batch["target"][:, 1:].masked_fill(~batch["target_mask"][:, 1:], -100)
        loss = torch.nn.functional.cross_entropy(backbone.logits(batch).flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    return backbone.eval(), batch


@pytest.fixture(scope="module")
def reversing():
    return learnt()


@pytest.mark.parametrize("beams", [1, 3])
def test_writes_what_it_learnt(reversing, beams):
    backbone, batch = reversing
    with torch.inference_mode():
        written = backbone.generate(batch, 10, beams, MARKS)
    expected = torch.zeros(4, 10, dtype=torch.long)
    expected[:, :7] = batch["target"].masked_fill(~batch["target_mask"], 0)[:, 1:8]
    assert torch.equal(written, expected)


def test_greedy_writing_takes_the_likeliest_token(reversing):
    backbone, _ = reversing
    tokens, mask = texts([9, 6], 9)  # not seen before
    written = backbone.generate({"tokens": tokens, "mask": mask}, 12, 1, MARKS)
    again = backbone.generate({"tokens": tokens, "mask": mask}, 12, 1, MARKS)
    assert written.shape == (2, 12) and torch.equal(written, again)
    target = torch.cat([torch.full((2, 1), MARKS["begin"]), written], 1)
    with torch.no_grad():
        likeliest = backbone.logits({"tokens": tokens, "mask": mask, "target": target}).argmax(2)
    for row in range(2):
        ids = written[row].tolist()
        end = ids.index(MARKS["end"]) + 1 if MARKS["end"] in ids else len(ids)
        assert likeliest[row, :end].tolist() == ids[:end] and set(ids[end:]) <= {MARKS["pad"]}


def test_one_token_may_play_all_roles():
    marks = dict.fromkeys(MARKS, 3)
    spec = DataSpec("text-pair", SPEC.options, SPEC.shape, (), {"tokens": marks})
    batch = pairs([9, 5], [4, 4])
    assert make(spec).generate(batch, 6, 1, marks).shape == (2, 6)


def test_saved_weights_hold_each_tensor_once_and_come_back(tmp_path):
    backbone, chosen, batch = make(), choice("backbone", BACKBONES)(name="bart", options={"size": "nano"}), pairs([9, 5], [7, 4])
    assert len(backbone.state_dict()) == len(list(backbone.parameters()))
    save_backbone(backbone, tmp_path, chosen, SPEC)
    loaded = Embedder.load(tmp_path).backbone
    assert loaded.net.lm_head.weight is loaded.embedding.weight is loaded.net.model.decoder.embed_tokens.weight
    with torch.no_grad():
        assert torch.equal(loaded.logits(batch), backbone.logits(batch))


@pytest.mark.parametrize("part", ["whole", "without output layer"])
def test_published_files_are_taken_with_their_shape(part, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    chosen = choice("backbone", BACKBONES)(name="bart", options={"config": str(tmp_path)})
    own, other = chosen.make(SPEC).eval(), chosen.make(SPEC).eval()
    (own.net if part == "whole" else own.net.model).save_pretrained(tmp_path)
    facts = load_weights(other, tmp_path, chosen)
    assert facts["tensors"] == len(list(own.parameters())) and set(facts["ignored"]) <= {"final_logits_bias"}
    batch = pairs([9, 5], [7, 4])
    with torch.no_grad():
        assert torch.equal(own.logits(batch), other.logits(batch))
    assert (other.width, len(other.layers()), other.net.config.scale_embedding) == (24, 5, False)


def test_long_texts_get_their_positions():
    spec = DataSpec("text-pair", SPEC.options, (600,), (), SPEC.statistics)
    assert {len(value) for name, value in make(spec).state_dict().items() if "embed_positions" in name} == {602}  # two are never used


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 51}, "vocabulary of 51 tokens and the data one of 50"),
        ({"max_position_embeddings": 20}, "up to 24 tokens"),
        ({"model_type": "t5"}, "type 't5', expected 'bart'"),
        ({"decoder_attention_heads": 5}, "no BART can be built"),
        ({"activation_function": "nonsense"}, "no BART can be built"),
        ({"d_model": "wide"}, "no BART can be built"),
    ],
)
def test_a_shape_that_does_not_fit(change, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SHAPE | change))
    with pytest.raises((InputError, ValueError), match=message):
        make(config=str(tmp_path))
