"""Drawing a token: the likeliest at temperature 0, never one outside the nucleus, the shares those of the softmax."""

import torch

from ml.sampling import draw

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]])


def drawn(temperature: float, top_p: float, times: int = 20_000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.bincount(draw(LOGITS.repeat(times, 1), temperature, top_p, generator)[:, 0], minlength=4) / times


def test_without_a_temperature_the_likeliest_is_taken():
    assert drawn(0, 0.5).tolist() == [1, 0, 0, 0]


def test_all_are_drawn_by_their_probability():
    torch.testing.assert_close(drawn(1.0, 1.0), LOGITS[0].softmax(0), atol=0.02, rtol=0)
    torch.testing.assert_close(drawn(2.0, 1.0), (LOGITS[0] / 2).softmax(0), atol=0.02, rtol=0)


def test_what_lies_outside_the_nucleus_is_never_drawn():
    shares = drawn(1.0, 0.7)  # 0.64, 0.24, ...: two are needed
    assert shares[2:].sum() == 0
    torch.testing.assert_close(shares[:2], LOGITS[0].softmax(0)[:2] / LOGITS[0].softmax(0)[:2].sum(), atol=0.02, rtol=0)
