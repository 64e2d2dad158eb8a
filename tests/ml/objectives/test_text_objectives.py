"""Language modelling: it starts without a guess, learns a text by heart, and asks only what it should."""

import math

import pytest
import torch

from ml.backbones.bert import Bert
from ml.backbones.gpt import Gpt
from ml.backbones.text_cnn import TextCnn
from ml.contracts import Batch, DataSpec, InputError
from ml.objectives.causal_language import CausalLanguage
from ml.objectives.masked_language import LONGEST, MaskedLanguage
from ml.tokenizing import describe, encode, load, train

VOCABULARY, LENGTH = 50, 24
TOKENS = {"pad": 0, "unknown": 1, "begin": 2, "end": 3, "mask": 4}
SPEC = DataSpec("text", {"vocabulary": VOCABULARY}, (LENGTH,), (), {"tokens": TOKENS})
PAIRS = [
    (MaskedLanguage, Bert, {"size": "tiny", "dropout": 0}),
    (MaskedLanguage, TextCnn, {"width": 32, "dropout": 0}),
    (MaskedLanguage, TextCnn, {"depth": 0, "dropout": 0}),
    (CausalLanguage, Gpt, {"dropout": 0}),
]


def make(objective: type, backbone: type, options: dict, **own):
    torch.manual_seed(0)
    return objective(objective.Options(**own), backbone(backbone.Options(**options), SPEC), SPEC)


def batch(rows: int = 8) -> Batch:
    """Packed blocks: one short line again and again, each row from another place on."""
    line = torch.tensor([2, 10, 11, 12, 13, 14, 15, 3])
    tokens = torch.stack([line.repeat(5)[row : row + LENGTH] for row in range(rows)])
    return Batch({"tokens": tokens, "mask": torch.ones_like(tokens, dtype=torch.bool)}, torch.full((rows,), -1))


def padded() -> Batch:
    inputs = {name: value.clone() for name, value in batch().inputs.items()}
    for row in range(8):
        inputs["tokens"][row, row + 2 :], inputs["mask"][row, row + 2 :] = 0, False
    return Batch(inputs, torch.full((8,), -1))


def decode(ids) -> str:
    return " ".join(str(one) for one in ids if one not in TOKENS.values())  # as tokenizers do: special tokens are dropped


@pytest.mark.parametrize(("objective", "backbone", "options"), PAIRS)
def test_starts_without_a_guess(objective, backbone, options):
    assert objective.needs <= backbone.traits and objective.packed
    assert float(make(objective, backbone, options).step(batch()).loss.detach()) == pytest.approx(math.log(VOCABULARY), abs=0.4)


@pytest.mark.parametrize(("objective", "backbone", "options"), PAIRS)
def test_learns_a_repeated_line(objective, backbone, options):
    made = make(objective, backbone, options)
    optimizer = torch.optim.AdamW(made.parameters(), 5e-3)
    made.train()
    losses = []
    for step in range(40):
        torch.manual_seed(step)
        loss = made.step(batch()).loss
        optimizer.zero_grad()
        loss.backward()
        assert step or not [name for name, parameter in made.named_parameters() if parameter.grad is None]
        optimizer.step()
        losses.append(float(loss.detach()))
    # A bag of words cannot know the order: it can only learn which words there are.
    assert sum(losses[-5:]) / 5 < (2.2 if options.get("depth") == 0 else 0.6 * losses[0])


@pytest.mark.parametrize(("objective", "backbone", "options"), PAIRS)
def test_a_seed_repeats_a_step(objective, backbone, options):
    made, found = make(objective, backbone, {**options, "dropout": 0.1}).train(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(float(made.step(batch()).loss.detach()))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(("objective", "backbone", "options"), PAIRS)
def test_bfloat16_gives_nearly_the_same_loss(objective, backbone, options):
    made, found = make(objective, backbone, options), []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            result = made.step(batch())
        result.loss.backward()
        assert result.loss.dtype == torch.float32 and not any(value.requires_grad for value in result.extras.values())
        found.append(float(result.loss.detach()))
    assert found[1] == pytest.approx(found[0], rel=0.1)


@pytest.mark.parametrize(("objective", "backbone", "options"), PAIRS)
def test_padding_is_never_a_target(objective, backbone, options):
    _compare_padding(make(objective, backbone, options))


def test_padding_is_no_candidate():
    _compare_padding(make(*PAIRS[1], sampled=True))


def _compare_padding(made):
    """However likely the output layer finds the padding token, and whatever stands there, the loss is that of the texts."""
    made, data, found = made.eval(), padded(), []
    for token in (0, 20):
        tokens = data.inputs["tokens"].masked_fill(~data.inputs["mask"], token)
        torch.manual_seed(0)
        found.append(made.step(Batch({**data.inputs, "tokens": tokens}, data.targets_B)).loss)
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("data", [batch(), padded()], ids=["packed", "padded"])
def test_hides_the_asked_share_and_no_special_tokens(data):
    made = make(*PAIRS[1], rate=0.25)
    tokens, mask = data.inputs["tokens"], data.inputs["mask"]
    index, asked = made._hidden(tokens, mask)
    hidden = torch.zeros_like(mask).scatter(1, index, asked)
    usable = mask & (tokens > 4)
    assert not (hidden & ~usable).any()
    expected = [min(count, max(1, round(0.25 * count))) for count in usable.sum(1).tolist()]
    assert hidden.sum(1).tolist() == expected


def test_masks_differ_from_step_to_step_and_are_mostly_masks():
    made = make(*PAIRS[1])
    torch.manual_seed(0)
    assert not torch.equal(made._hidden(*batch().inputs.values())[0], made._hidden(*batch().inputs.values())[0])
    replaced = made._replaced(torch.full((100, 100), 30))
    shares = [(replaced == token).float().mean().item() for token in (4, 30)]
    assert shares == pytest.approx([0.8 + 0.1 / VOCABULARY, 0.1 + 0.1 / VOCABULARY], abs=0.02)


def test_logits_are_made_at_hidden_places_alone(monkeypatch):
    made, made_of = make(*PAIRS[0]), []
    linear = torch.nn.functional.linear

    def counted(inputs, weight, bias=None):
        if weight is made.backbone.embedding.weight:
            made_of.append(inputs.shape)
        return linear(inputs, weight, bias)

    monkeypatch.setattr("ml.objectives.masked_language.F.linear", counted)
    made.step(batch())
    assert made_of == [(8, round(0.15 * LENGTH), 128)]


def test_sampled_makes_logits_of_the_hidden_tokens_alone(monkeypatch):
    made, rows, linear = make(*PAIRS[1], sampled=True), [], torch.nn.functional.linear

    def counted(inputs, weight, bias=None):
        rows.append(len(weight))
        return linear(inputs, weight, bias)

    monkeypatch.setattr("ml.objectives.masked_language.F.linear", counted)
    made.step(batch())
    assert rows[-1] <= 7  # six words of the line; what is not asked stands under the mask token


def test_sampled_learns_to_guess_out_of_the_whole_vocabulary():
    made = make(*PAIRS[1], sampled=True).train()
    optimizer = torch.optim.AdamW(made.parameters(), 5e-3)
    for step in range(60):
        torch.manual_seed(step)
        optimizer.zero_grad()
        made.step(batch()).loss.backward()
        optimizer.step()
    assert made.asked_V.nonzero().flatten().tolist() == [10, 11, 12, 13, 14, 15]
    torch.manual_seed(0)
    filled = [part for line in made.eval().examples(batch(), decode) for part in line.split(" -> ")[1].split(", ")]
    right = [part.split(" (")[0] == part.split(" (")[1].rstrip(")") for part in filled]
    assert sum(right) > 0.9 * len(right)


@pytest.mark.parametrize("sampled", [False, True])
def test_a_batch_without_words_gives_a_finite_loss(sampled):
    tokens = torch.full((2, 8), 2)
    result = make(*PAIRS[0], sampled=sampled).step(Batch({"tokens": tokens, "mask": torch.ones_like(tokens, dtype=torch.bool)}, torch.full((2,), -1)))
    result.loss.backward()
    assert float(result.loss.detach()) == 0


def test_masked_needs_a_mask_token():
    spec = DataSpec("text", SPEC.options, SPEC.shape, (), {"tokens": TOKENS | {"mask": None}})
    with pytest.raises(InputError, match="no mask token"):
        MaskedLanguage(MaskedLanguage.Options(), TextCnn(TextCnn.Options(), spec), spec)


@pytest.mark.parametrize("data", [batch(), padded()], ids=["packed", "padded"])
def test_masked_examples_show_text_guess_and_truth(data):
    made = make(*PAIRS[1]).eval()
    torch.manual_seed(0)
    examples = made.examples(data, decode)
    assert len(examples) == 8
    text, filled = examples[-1].split(" -> ")
    truths = [int(part.split("(")[1].rstrip(")")) for part in filled.split(", ")]
    assert text.count("[MASK]") == len(truths) >= 1
    words = iter(truths)
    restored = " ".join(str(next(words)) if word == "[MASK]" else word for word in text.split())
    inputs = data.inputs
    assert restored == decode(inputs["tokens"][7][inputs["mask"][7]].tolist())


@pytest.mark.parametrize("data", [batch(), padded()], ids=["packed", "padded"])
def test_causal_examples_repeat_themselves_and_draw(data):
    made = make(*PAIRS[3]).eval()
    examples = made.examples(data, decode)
    assert examples == made.examples(data, decode) and len(examples) == 8
    given = min(16, int(data.inputs["mask"].sum(1).min()))
    assert examples[0].split(" -> ")[0] == decode(data.inputs["tokens"][0, :given].tolist())
    assert made.examples(data, decode) != make(*PAIRS[3], temperature=0).eval().examples(data, decode)


STORY = "the film was a long and rather slow story of two brothers who leave home to find gold in the far north but find only snow"


@pytest.fixture(scope="module", params=["wordpiece", "bpe", "unigram", "characters"])
def whole(request):
    """The objective with whole words over a tokenizer of few pieces, blocks of a stream, and padded texts."""
    words = STORY.split()
    lines = [" ".join(words[(i * j) % len(words)] for j in range(1, 12)) + "." for i in range(60)]
    json = train(lines, request.param, 300 if request.param == "bpe" else 60, True)
    spec = DataSpec("text", {"vocabulary": describe(json).vocabulary}, (64,), (), {"tokens": TOKENS, "tokenizer": json})
    rows = [torch.tensor([2, *ids, 3]) for ids in encode(load(json), lines * 2)]
    stream = torch.cat(rows)
    packed = stream[: len(stream) // 64 * 64].view(-1, 64)
    padded = torch.nn.utils.rnn.pad_sequence([row[:64] for row in rows], batch_first=True)
    torch.manual_seed(0)
    made = MaskedLanguage(MaskedLanguage.Options(whole_words=True), TextCnn(TextCnn.Options(width=16, depth=0), spec), spec)
    return made, {"packed": (packed, torch.ones_like(packed, dtype=torch.bool)), "padded": (padded, padded != 0)}


@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_words_are_hidden_whole_and_in_the_same_share(whole, kind):
    made, (tokens, mask) = whole[0], whole[1][kind]
    within = (tokens > 4) & mask
    joined = within[:, 1:] & within[:, :-1] & made.joins_V[tokens[:, 1:]] & made.open_V[tokens[:, :-1]]
    torch.manual_seed(0)
    shares, several = [], 0
    for _ in range(20):
        index, asked = made._hidden(tokens, mask)
        assert index.shape == (len(tokens), min(tokens.shape[1], round(0.15 * tokens.shape[1]) + LONGEST - 1))
        hidden = torch.zeros_like(mask).scatter(1, index, asked)
        assert not (hidden & ~within).any()
        assert torch.equal(hidden[:, 1:][joined], hidden[:, :-1][joined])
        several += int(hidden[:, 1:][joined].sum())
        shares.append(hidden.sum() / (0.15 * within.sum(1)).round().clamp(min=1).sum())
    assert several > 100
    assert float(torch.stack(shares).mean()) == pytest.approx(1, abs=0.06)


def test_long_words_are_hidden_in_parts(whole):
    made = whole[0]
    inner = int((made.joins_V & made.open_V).nonzero()[0])
    tokens = torch.tensor([[2, *[inner] * 41, 3]] * 300)
    torch.manual_seed(0)
    index, asked = made._hidden(tokens, torch.ones_like(tokens, dtype=torch.bool))
    hidden = torch.zeros_like(tokens, dtype=torch.bool).scatter(1, index, asked)[:, 1:-1]
    parts = hidden[:, :32].view(300, 2, LONGEST)
    assert torch.equal(parts.any(2), parts.all(2)) and parts.any()
    assert float(hidden.float().mean()) == pytest.approx(6 / 41, abs=0.03)


def test_whole_words_learn_too(whole):
    made, (tokens, mask) = whole[0], whole[1]["packed"]
    result = made.step(Batch({"tokens": tokens, "mask": mask}, torch.full((len(tokens),), -1)))
    result.loss.backward()
    assert result.loss.isfinite() and not [name for name, parameter in made.named_parameters() if parameter.grad is None]
