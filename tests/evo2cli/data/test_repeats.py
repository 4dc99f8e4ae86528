"""Copies put into windows: where they stand, how often, and that nothing else changes."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from evo2cli.data.documents import END_OF_DOCUMENT, ArrayDocuments
from evo2cli.data.loader import WindowLoader
from evo2cli.data.repeats import MIN_LENGTH, MIN_SIZE, Repeats, log_uniform
from evo2cli.genome.alphabet import reverse_complement

Bytes = npt.NDArray[np.uint8]


def random_windows(count: int, length: int, seed: int = 0) -> Bytes:
    letters = list(b"ACGTacgt")
    return np.random.default_rng(seed).choice(letters, (count, length)).astype(np.uint8)


def repeated(before: Bytes, **rules: Any) -> Bytes:
    after = before.copy()
    samples = np.arange(len(before)) + 1000
    Repeats(**{"number": 1.0, "inverted": 0.0, "seed": 7, **rules}).insert(
        after, np.zeros(before.shape, np.bool_), samples
    )
    return after


def find_copies(before: Bytes, after: Bytes, *, inverted: bool) -> list[tuple[int, int, int]]:
    """Start, distance and size of the copy of each changed window, found by search alone.

    A few bases at its ends may be what stood there before; they are not counted.
    """
    found = []
    for old, new in zip(before, after, strict=True):
        changed = np.flatnonzero(old != new)
        first, last = int(changed[0]), int(changed[-1])
        core = new[first : last + 1].tobytes()
        if inverted:
            core = reverse_complement(core)
        at = old.tobytes().find(core)
        assert 0 <= at < first
        found.append((at, first - at, len(core)))
    return found


def test_a_copy_is_an_earlier_piece_and_the_rest_stays() -> None:
    before = random_windows(300, 600)
    for start, distance, size in find_copies(before, repeated(before), inverted=False):
        assert size <= distance
        assert start + distance + size <= 600
        assert size >= MIN_SIZE // 2  # see find_copies


def test_an_inverted_copy_is_the_reverse_complement_of_an_earlier_piece() -> None:
    before = random_windows(300, 600)
    after = repeated(before, inverted=1.0)
    for start, distance, size in find_copies(before, after, inverted=True):
        assert size <= distance
        assert start + distance + size <= 600


@pytest.mark.parametrize(("share", "inverted"), [(0.1, 0.25), (0.5, 0.9)])
def test_copies_and_strands_have_their_shares(share: float, inverted: float) -> None:
    before = random_windows(4000, 64)
    direct = repeated(before, number=share)
    mixed = repeated(before, number=share, inverted=inverted)
    got = (before != direct).any(axis=1)
    turned = (mixed != direct).any(axis=1)
    assert got.mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 4000))
    error = np.sqrt(inverted * (1 - inverted) / got.sum())
    assert turned[got].mean() == pytest.approx(inverted, abs=4 * error)
    assert not turned[~got].any()


def test_sizes_and_distances_reach_every_scale() -> None:
    before = random_windows(2000, 2048)
    found = np.array(find_copies(before, repeated(before), inverted=False))
    _, distances, sizes = found.T
    expected = np.log2((1024 + 1) / 16)  # octaves of sizes
    for octave in (16, 32, 64, 128, 256, 512):
        share = ((sizes >= octave) & (sizes < 2 * octave)).mean()
        assert share == pytest.approx(1 / expected, abs=0.04)
    assert (distances > 1536).mean() > 0.03
    assert (distances[sizes < 32] < 64).mean() > 0.15


def test_each_further_repeat_copies_from_what_is_there() -> None:
    windows = random_windows(200, 600)
    for number in range(1, 5):
        more = repeated(random_windows(200, 600), number=number, longest=64)
        differs = (windows != more).any(axis=1)  # not if the same bases stood there
        assert differs.mean() > 0.95
        for _, distance, size in find_copies(windows[differs], more[differs], inverted=False):
            assert size <= min(distance, 64)
        windows = more
    mixed = repeated(random_windows(200, 600), number=3.5, longest=64)
    assert {
        (row == three).all() or (row == four).all()
        for row, three, four in zip(
            mixed, repeated(random_windows(200, 600), number=3, longest=64), windows, strict=True
        )
    } == {True}
    share = (mixed == windows).all(axis=1).mean()
    assert 0.35 < share < 0.65


@pytest.mark.parametrize(("low", "high"), [(1, 1), (3, 4), (16, 1024), (7, 2**40)])
def test_a_log_uniform_number_has_the_distribution_that_is_stated(low: int, high: int) -> None:
    assert log_uniform(low, high, 0.0) == low
    assert log_uniform(low, high, 1 - 2**-53) == high
    uniform = np.linspace(0, 1, 20_001)[:-1]
    drawn = np.array([log_uniform(low, high, u) for u in uniform.tolist()])
    for n in {low, (low + high) // 2, high - 1} - {low - 1}:
        expected = np.log((n + 1) / low) / np.log((high + 1) / low)
        assert (drawn <= n).mean() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("letter", [ord("N"), END_OF_DOCUMENT, ord("|"), ord("R")])
def test_nothing_is_copied_from_or_onto_what_is_not_a_base(letter: int) -> None:
    before = random_windows(500, 128)
    before[:, 60:68] = letter
    after = repeated(before)
    changed = before != after
    assert changed.any()
    assert not changed[:, 60:68].any()
    np.testing.assert_array_equal((after == letter).sum(axis=1), 8)
    half = changed[:, :60].any(axis=1) & changed[:, 68:].any(axis=1)
    assert not half.any()


def test_a_tag_made_of_bases_is_kept() -> None:
    before = random_windows(500, 128)
    after, masked = before.copy(), np.zeros(before.shape, np.bool_)
    masked[:, 40:80] = True
    Repeats(1.0, 0.5, 1).insert(after, masked, np.arange(500))
    assert (before != after).any()
    np.testing.assert_array_equal(after[:, 40:80], before[:, 40:80])


def make_loader(
    seed: int = 0, length: int = 64, number: float = 0.0, inverted: float = 0.25
) -> WindowLoader:
    text = np.append(random_windows(1, 5000)[0], END_OF_DOCUMENT).astype(np.uint8)
    repeats = Repeats(number, inverted, seed) if number else None
    source = ArrayDocuments("s", text, np.array([0, len(text)]))
    return WindowLoader([source], length=length, sequences=8, seed=seed, repeats=repeats)


def test_windows_depend_on_seed_and_step_alone() -> None:
    loader = make_loader(number=2.6, inverted=0.5)
    steps = [loader.windows(step).tokens for step in range(6)]
    again = make_loader(number=2.6, inverted=0.5)
    for step in (5, 0, 3):
        np.testing.assert_array_equal(again.windows(step).tokens, steps[step])
        parts = [again.windows(step, slice(rank, None, 2)).tokens for rank in (0, 1)]
        np.testing.assert_array_equal(parts[0], steps[step][0::2])
        np.testing.assert_array_equal(parts[1], steps[step][1::2])
    assert not np.array_equal(
        make_loader(seed=1, number=2.6, inverted=0.5).windows(0).tokens, steps[0]
    )


def test_repeats_change_windows_and_keep_their_strands() -> None:
    plain, on = make_loader(), make_loader(number=1.0)
    for step in range(4):
        windows = plain.windows(step)
        np.testing.assert_array_equal(on.windows(step).reverse, windows.reverse)
        assert (on.windows(step).tokens != windows.tokens).any(axis=1).mean() > 0.8


def test_a_window_that_is_too_short_is_refused() -> None:
    make_loader(length=MIN_LENGTH, number=1.0).windows(0)
    with pytest.raises(ValueError, match=f"a window of {MIN_LENGTH - 1} is too short for repeats"):
        make_loader(length=MIN_LENGTH - 1, number=1.0)
