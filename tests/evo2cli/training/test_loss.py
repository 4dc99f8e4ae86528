"""What a window teaches, against an oracle that goes byte by byte."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.training.loss import read_windows, target_weights, weighted_loss

LETTERS = b"ACGTacgtNnRy\0\1"
OPPOSITE = dict(zip("ACGTacgtNnRy\0\1", "TGCAtgcaNnYr\0\1", strict=True))


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[bytes], list[bool]]:
    """Windows of one length, and which are turned."""
    size = draw(st.integers(2, 12))
    letters = st.sampled_from(list(LETTERS))
    rows = draw(st.lists(st.lists(letters, min_size=size, max_size=size), min_size=1, max_size=4))
    turned = draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    return [bytes(row) for row in rows], turned


def oracle(window: bytes, turned: bool, lowercase: float) -> list[tuple[str, str, float]]:
    """Input, target and weight of each prediction in a window."""
    text = window.decode("ascii")
    if turned:
        text = "".join(OPPOSITE[letter] for letter in reversed(text))
    lessons = []
    for seen, following in pairwise(text):
        weight = 0.0
        if following in "ACGT\0":
            weight = 1.0
        elif following in "acgt":
            weight = lowercase
        lessons.append((seen.upper(), following.upper(), weight))
    return lessons


@given(batch=batches(), lowercase=st.sampled_from([0.0, 0.1, 1.0]))
def test_windows_read_as_the_oracle_reads_them(
    batch: tuple[list[bytes], list[bool]], lowercase: float
) -> None:
    rows, turned = batch
    stored = torch.tensor([list(row) for row in rows], dtype=torch.uint8)
    ids, targets, weights = read_windows(stored, torch.tensor(turned), target_weights(lowercase))
    for row, window in enumerate(rows):
        expected = oracle(window, turned[row], lowercase)
        assert [chr(i) for i in ids[row].tolist()] == [lesson[0] for lesson in expected]
        assert [chr(t) for t in targets[row].tolist()] == [lesson[1] for lesson in expected]
        assert weights[row].tolist() == pytest.approx([lesson[2] for lesson in expected])


@given(seed=st.integers(0, 1000))
def test_the_loss_is_the_weighted_sum_of_surprises(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    targets = torch.randint(7, (2, 5), generator=generator)
    weights = torch.rand(2, 5, generator=generator, dtype=torch.float64)
    expected = 0.0
    for row in range(2):
        for at in range(5):
            odds = [math.exp(value) for value in logits[row, at].tolist()]
            surprise = -math.log(odds[targets[row, at]] / sum(odds))
            expected += weights[row, at].item() * surprise
    assert weighted_loss(logits, targets, weights).item() == pytest.approx(expected)


def test_a_masked_target_has_no_gradient() -> None:
    logits = torch.randn(1, 3, 7, requires_grad=True)
    weighted_loss(logits, torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, 0.0, 1.0]])).backward()
    assert logits.grad is not None
    assert logits.grad[0, 1].abs().max() == 0
    assert logits.grad[0, 0].abs().max() > 0
