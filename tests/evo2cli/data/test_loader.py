"""The windows of a step: every base once an epoch, and step k without the steps before it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.data.loader import Bytes, WindowLoader, fixed_windows


def numbered(sizes: list[int]) -> list[Bytes]:
    """Arrays whose windows tell where they come from: no two places hold the same few bytes."""
    random = np.random.default_rng(7)
    return [random.integers(0, 256, size, np.uint8) for size in sizes]


def make_loader(arrays: list[Bytes], *, length: int, batch: int, seed: int = 3) -> WindowLoader:
    return WindowLoader(arrays, length=length, batch=batch, seed=seed, reverse_complement=True)


def place(window: Bytes, arrays: list[Bytes]) -> tuple[int, int]:
    """Array and offset that hold this window."""
    for source, array in enumerate(arrays):
        offset = array.tobytes().find(window.tobytes())
        if offset >= 0:
            return source, offset
    raise AssertionError("a window that no array holds")


@given(
    sizes=st.lists(st.integers(40, 200), min_size=1, max_size=3),
    length=st.integers(8, 39),
    seed=st.integers(0, 2**63 - 1),
)
def test_an_epoch_sees_every_window_once_and_none_overlaps(
    sizes: list[int], length: int, seed: int
) -> None:
    arrays = numbered(sizes)
    loader = make_loader(arrays, length=length, batch=1, seed=seed)
    windows = [loader.step(step)[0][0] for step in range(loader.windows_per_epoch)]
    seen = [place(window, arrays) for window in windows]
    predicted = [(s, start + 1 + n) for s, start in seen for n in range(length)]
    assert len(set(predicted)) == len(predicted)
    assert {source for source, _ in seen} == set(range(len(sizes)))
    # A phase costs at most one window at the start and a part of one at the end.
    assert len(predicted) > sum(sizes) - len(sizes) * (2 * length + 1)


def test_a_step_does_not_depend_on_the_steps_before_it() -> None:
    arrays = numbered([500, 300])
    running = make_loader(arrays, length=16, batch=5)
    for step in range(40):
        windows, reverse = running.step(step)
        alone_windows, alone_reverse = make_loader(arrays, length=16, batch=5).step(step)
        np.testing.assert_array_equal(windows, alone_windows)
        np.testing.assert_array_equal(reverse, alone_reverse)


def test_the_batch_size_does_not_change_the_order() -> None:
    arrays = numbered([700])
    one, many = (make_loader(arrays, length=16, batch=batch) for batch in (1, 12))
    for step in range(10):
        windows, reverse = many.step(step)
        for row in range(12):
            single, turned = one.step(step * 12 + row)
            np.testing.assert_array_equal(windows[row], single[0])
            assert reverse[row] == turned[0]


def test_epochs_and_seeds_differ_in_order_and_phase() -> None:
    arrays = numbered([4000])

    def epoch(number: int, seed: int) -> list[int]:
        loader = make_loader(arrays, length=32, batch=1, seed=seed)
        total = loader.windows_per_epoch
        steps = range(number * total, (number + 1) * total)
        return [place(loader.step(step)[0][0], arrays)[1] for step in steps]

    first, second, other = epoch(0, seed=3), epoch(1, seed=3), epoch(0, seed=4)
    assert len({start % 32 for start in first}) == 1
    assert first != sorted(first)
    assert set(first) != set(second)
    assert set(first) != set(other)


def test_strands_are_even_and_can_be_kept() -> None:
    arrays = numbered([40_000])
    both = make_loader(arrays, length=8, batch=4000)
    assert 0.45 < both.step(0)[1].mean() < 0.55
    one = WindowLoader(arrays, length=8, batch=4000, seed=3, reverse_complement=False)
    assert not one.step(0)[1].any()
    np.testing.assert_array_equal(one.step(0)[0], both.step(0)[0])


def test_what_holds_no_window_is_left_out_or_refused() -> None:
    short, long = numbered([16, 17])
    loader = make_loader([short, long], length=16, batch=3)
    assert loader.windows_per_epoch == 1
    np.testing.assert_array_equal(loader.step(0)[0], np.stack([long] * 3))
    with pytest.raises(ValueError, match=r"16 tokens hold no window of 16 \+ 1"):
        make_loader([short], length=16, batch=1)


@given(sizes=st.lists(st.integers(0, 90), max_size=4), limit=st.integers(1, 20))
def test_validation_windows_are_whole_apart_and_as_many_as_asked(
    sizes: list[int], limit: int
) -> None:
    arrays = numbered(sizes)
    windows = fixed_windows(arrays, length=16, limit=limit)
    assert windows.shape == (min(limit, sum(max(0, size - 1) // 16 for size in sizes)), 17)
    places = [place(window, arrays) for window in windows]
    assert places == sorted(set(places))
    assert all(offset % 16 == 0 for _, offset in places)
