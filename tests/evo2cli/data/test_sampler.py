"""The order of a run: a true bijection, the same from anywhere, with exact shares."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evo2cli.data.documents import Integers
from evo2cli.data.sampler import PERIOD, MixtureSampler, PooledSampler, hashed, shuffled

counts = st.lists(st.integers(1, 40), min_size=1, max_size=5)
weights = st.floats(1e-6, 1, allow_subnormal=False)
keys = st.integers(0, 2**64 - 1)


def order_of(size: int, key: int, places: Integers | None = None) -> Integers:
    places = np.arange(size) if places is None else places
    return shuffled(places, np.full_like(places, size), np.full(len(places), key, np.uint64))


@given(size=st.integers(1, 3000), key=keys)
def test_a_shuffled_order_is_a_bijection(size: int, key: int) -> None:
    np.testing.assert_array_equal(np.sort(order_of(size, key)), np.arange(size))


@given(size=st.integers(2**35, 2**40), start=st.integers(0, 2**34), key=keys)
def test_an_order_of_many_stays_inside_and_apart(size: int, start: int, key: int) -> None:
    places = start + np.arange(500)
    found = order_of(size, key, places)
    assert len(set(found.tolist())) == 500
    assert 0 <= found.min() < size // 2 < found.max() < size


@given(sizes=st.lists(st.integers(1, 2**40), min_size=1, max_size=20), seed=st.integers(0, 99))
def test_orders_side_by_side_are_as_alone(sizes: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    several = np.array(sizes)
    places, several_keys = random.integers(several), random.integers(2**63, size=len(sizes))
    together = shuffled(places, several, several_keys.astype(np.uint64))
    for row, size in enumerate(sizes):
        alone = order_of(size, int(several_keys[row]), places[row : row + 1])
        assert alone.tolist() == together[row : row + 1].tolist()


def test_a_shuffled_order_looks_like_chance() -> None:
    size = 10_000
    order, other = order_of(size, 1), order_of(size, 2)
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.05
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.05
    assert abs(np.corrcoef(order, other)[0, 1]) < 0.05
    # Every tenth of the order holds about a tenth of every tenth.
    table, *_ = np.histogram2d(np.arange(size), order, bins=10)
    assert ((table - 100) ** 2 / 100).sum() < 150  # chi-squared, 81 degrees of freedom


@pytest.mark.parametrize(("size", "least"), [(2, 1000), (3, 300), (4, 40), (5, 4)])
def test_small_orders_all_come_up(size: int, least: int) -> None:
    """Of four things, each of the 24 orders comes up about as often as the others."""
    tally = Counter(tuple(order_of(size, key).tolist()) for key in range(2400))
    assert len(tally) == math.factorial(size)
    assert min(tally.values()) > least


def test_the_order_is_this_one_for_ever() -> None:
    """A run that went on under another order would see windows twice: these numbers are frozen."""
    pool = PooledSampler([6, 4], seed=7)
    assert pool.locate(np.arange(10)).window.tolist() == [3, 0, 1, 2, 4, 5, 1, 0, 3, 2]
    mixture = MixtureSampler([6, 4], [0.6, 0.4], seed=7)
    assert mixture.locate(np.arange(10)).source.tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 1, 1]
    assert mixture.locate(np.arange(10)).window.tolist() == [0, 2, 1, 5, 2, 2, 2, 0, 1, 0]


@given(seed=keys)
def test_hashed_bits_are_fair_coins(seed: int) -> None:
    coins = hashed(np.uint64(seed), np.arange(20_000)) % 2 == 0
    assert 0.47 < coins.mean() < 0.53
    assert 0.47 < (coins[1:] == coins[:-1]).mean() < 0.53


@given(sizes=counts, seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 5))
def test_one_pool_has_every_window_once_an_epoch(sizes: list[int], seed: int, epoch: int) -> None:
    total = sum(sizes)
    pool = PooledSampler(sizes, seed)
    places = pool.locate(np.arange(epoch * total, (epoch + 1) * total))
    assert (places.epoch == epoch).all()
    found = sorted(zip(places.source.tolist(), places.window.tolist(), strict=True))
    assert found == [(source, one) for source, size in enumerate(sizes) for one in range(size)]
    assert pool.epochs(2 * total) == pytest.approx([2.0] * len(sizes))


@given(parts=st.lists(weights, min_size=1, max_size=6), period=st.integers(0, 2**24))
def test_shares_are_exact_in_every_period_and_over_time(parts: list[float], period: int) -> None:
    mixture = MixtureSampler([1] * len(parts), parts, seed=0)
    exact = [Fraction(part) * PERIOD / sum(map(Fraction, parts)) for part in parts]
    before, after = mixture.drawn(period), mixture.drawn(period + 1)
    here = [late - early for early, late in zip(before, after, strict=True)]
    assert sum(here) == PERIOD
    for share, count, total in zip(exact, here, before, strict=True):
        # 2**-15: what shares are rounded to, many times over.
        assert abs(count - share) < 1 + 2**-15
        assert abs(total - share * period) < 20 + period * 2**-15


def test_drawn_counts_what_the_periods_hold() -> None:
    mixture = MixtureSampler([3, 5, 2], [0.7, 0.29999, 0.00001], seed=4)
    places = mixture.locate(np.arange(3 * PERIOD))
    for periods in (1, 2, 3):
        found = np.bincount(places.source[: periods * PERIOD], minlength=3)
        assert found.tolist() == mixture.drawn(periods)


def test_a_tiny_weight_has_its_turn() -> None:
    mixture = MixtureSampler([10, 10], [1.0, 1e-6], seed=0)
    exact = 100_000 * PERIOD * 1e-6 / (1 + 1e-6)
    assert mixture.drawn(100_000)[1] == pytest.approx(exact, abs=3)
    first = next(p for p in range(100) if mixture.drawn(p)[1])
    samples = np.arange((first - 1) * PERIOD, first * PERIOD)
    assert (mixture.locate(samples).source == 1).sum() == 1


@given(
    sizes=st.lists(st.integers(500, 30_000), min_size=2, max_size=4),
    seed=st.integers(0, 2**63 - 1),
    data=st.data(),
)
@settings(max_examples=20)
def test_a_source_of_a_mixture_is_gone_through_epoch_by_epoch(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    parts = data.draw(st.lists(weights, min_size=len(sizes), max_size=len(sizes)))
    mixture = MixtureSampler(sizes, parts, seed)
    places = mixture.locate(np.arange(2 * PERIOD))
    for source, size in enumerate(sizes):
        mine = places.source == source
        epoch, window = places.epoch[mine], places.window[mine]
        whole, rest = divmod(len(epoch), size)
        assert np.bincount(epoch, minlength=whole).tolist() == [size] * whole + [rest] * (rest > 0)
        assert len(np.unique(epoch * size + window)) == len(epoch)
        assert window.max(initial=0) < size
        assert mixture.epochs(2 * PERIOD)[source] == pytest.approx(len(epoch) / size, abs=4 / size)


@given(
    weighted=st.booleans(),
    start=st.integers(0, 2**40),
    size=st.integers(1, 300),
    cut=st.integers(0, 300),
)
def test_any_samples_alone_are_as_together(weighted: bool, start: int, size: int, cut: int) -> None:
    sizes, parts = [7, 1000, 123_456], [0.5, 0.3, 0.2]
    order = MixtureSampler(sizes, parts, 3) if weighted else PooledSampler(sizes, 3)
    samples = np.arange(start, start + size)
    whole = order.locate(samples)
    pieces = [order.locate(samples[:cut]), order.locate(samples[cut:])]
    backwards = order.locate(samples[::-1])
    for name in ("source", "epoch", "window"):
        expected = getattr(whole, name)
        np.testing.assert_array_equal(expected, np.concatenate([getattr(p, name) for p in pieces]))
        np.testing.assert_array_equal(expected, getattr(backwards, name)[::-1])
