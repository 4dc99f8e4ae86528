"""What a window teaches, against an oracle that goes byte by byte."""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.data.documents import PAD
from evo2cli.training.loss import read_windows, target_weights, weighted_loss

LETTERS = b"ACGTacgtNnRyd_|@\0\1"
OPPOSITE = dict(zip("ACGTacgtNnRyd_|@\0\1", "TGCAtgcaNnYrh_|@\0\1", strict=True))


@dataclass(frozen=True)
class Window:
    """A stored window, which of its bytes are masked, and whether it is turned."""

    text: str
    masked: list[bool]
    turned: bool


@st.composite
def batches(draw: st.DrawFn) -> list[Window]:
    """Windows of one length, some padded."""
    size = draw(st.integers(2, 12))
    windows = []
    for _ in range(draw(st.integers(1, 4))):
        filled = draw(st.integers(0, size))
        letters = draw(st.lists(st.sampled_from(list(LETTERS)), min_size=filled, max_size=filled))
        text = bytes(letters).decode().ljust(size, "\1")
        masked = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        windows.append(Window(text, masked, draw(st.booleans())))
    return windows


def oracle(window: Window, lowercase: float, end: float) -> list[tuple[str, str, float]]:
    """Input, target and weight of each prediction in a window."""
    letters = [*zip(window.text, window.masked, strict=True)]
    filled = len(window.text.rstrip("\1"))
    if window.turned:
        turned = [(OPPOSITE[letter], masked) for letter, masked in reversed(letters[:filled])]
        letters = turned + letters[filled:]
    lessons = []
    for (seen, _), (following, masked) in pairwise(letters):
        weight = 0.0
        if following in "ACGT":
            weight = 1.0
        elif following in "acgt":
            weight = lowercase
        elif following == "\0":
            weight = end
        weight *= not masked
        lessons.append((seen.upper(), following.upper(), weight))
    return lessons


shares = st.sampled_from([0.0, 0.1, 1.0])


@given(windows=batches(), lowercase=shares, end=shares)
def test_windows_read_as_the_oracle_reads_them(
    windows: list[Window], lowercase: float, end: float
) -> None:
    ids, targets, weights = read_windows(
        torch.tensor([list(window.text.encode()) for window in windows], dtype=torch.uint8),
        torch.tensor([window.turned for window in windows]),
        torch.tensor([window.masked for window in windows]),
        target_weights(lowercase, end),
    )
    for row, window in enumerate(windows):
        expected = oracle(window, lowercase, end)
        seen, following, weighed = zip(*expected, strict=True)
        assert tuple(map(chr, ids[row].tolist())) == seen
        assert tuple(map(chr, targets[row].tolist())) == following
        assert weights[row].tolist() == pytest.approx(weighed)


def test_everything_but_bases_and_ends_weighs_nothing() -> None:
    weights = target_weights(0.25, 0.5)
    expected = {**dict.fromkeys(b"ACGT", 1.0), **dict.fromkeys(b"acgt", 0.25), 0: 0.5}
    assert weights.tolist() == [expected.get(byte, 0.0) for byte in range(256)]
    assert weights[PAD] == 0


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
