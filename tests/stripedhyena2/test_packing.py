"""Sequences read side by side have the log-likelihoods, and the bits, that they have alone."""

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stripedhyena2 import Mixer, ModelConfig, StripedHyena2, packing
from stripedhyena2.cache import Launch, Past
from stripedhyena2.mixer import MIXERS
from stripedhyena2.packing import CHUNK, GRANULARITY, Packer, Shapes, Suffix
from stripedhyena2.scoring import sequence_logprob

PACKED = Shapes(2048)


def letters(length: int, seed: int = 0) -> bytes:
    return bytes(random.Random(seed).choices(b"ACGT", k=length))  # noqa: S311 - a test


@pytest.fixture(scope="module")
def model(tiny_model: StripedHyena2) -> StripedHyena2:
    """In fp32, where every sum is rounded."""
    narrow = StripedHyena2(tiny_model.config).eval()
    narrow.load_state_dict(tiny_model.state_dict())
    return narrow


def ask(packer: Packer, bases: bytes, *ends: int, cumulative: bool = False) -> Suffix:
    """A sequence whose prefix has these pieces."""
    prefix = packer.prefix(bases, ends)
    return packer.suffix(prefix, bases[prefix.length :], cumulative=cumulative)


def logprobs(packer: Packer, wanted: Sequence[tuple[bytes, tuple[int, ...]]]) -> list[float]:
    asked = [ask(packer, bases, *ends) for bases, ends in wanted]
    packer.read().collect()
    return [suffix.logprob for suffix in asked]


def many(count: int) -> list[tuple[bytes, tuple[int, ...]]]:
    """Sequences of many lengths, some of which begin alike, with suffixes from a base on."""
    chance, trunk = random.Random(2), letters(700)  # noqa: S311 - a test
    found = []
    for index in range(count):
        ends = chance.choice([(), (64,), (64, 128), (256,), (256, 384), (256, 320), (512,)])
        before = trunk[: ends[-1]] if ends else b""
        found.append((before + letters(chance.choice([2, 1, 60, 64, 65, 130]), index), ends))
    return found


@pytest.mark.parametrize("shapes", [Shapes(0), PACKED], ids=["one at a time", "side by side"])
def test_log_likelihoods_are_those_of_sequences(tiny_model: StripedHyena2, shapes: Shapes) -> None:
    """In fp64, of whole sequences, of their beginnings, and of their last base."""
    packer, wanted = Packer(tiny_model, shapes), many(24)
    asked = [ask(packer, bases, *ends, cumulative=True) for bases, ends in wanted]
    packer.read().collect()

    def total(bases: bytes) -> float:
        return sequence_logprob(tiny_model, bases) if len(bases) > 1 else 0

    for (bases, ends), suffix in zip(wanted, asked, strict=True):
        assert suffix.logprob == pytest.approx(total(bases), rel=0, abs=1e-8)
        last = total(bases) - total(bases[:-1])
        assert suffix.last == pytest.approx(last, rel=0, abs=1e-8)
        for length in {max(sum(ends[-1:]), 1), (sum(ends[-1:]) + len(bases) + 1) // 2, len(bases)}:
            expected = pytest.approx(total(bases[:length]), rel=0, abs=1e-8)
            assert suffix.logprob_until(length) == expected


def test_bits_depend_on_nothing_else_that_is_read(model: StripedHyena2) -> None:
    """Not on neighbours, on their order, on the batch, or on what is still in memory."""
    wanted = many(60)
    together = logprobs(Packer(model, PACKED), wanted)
    assert logprobs(Packer(model, PACKED), wanted[::-1])[::-1] == together
    busy = Packer(model, PACKED)
    in_parts = [value for part in range(4) for value in logprobs(busy, wanted[15 * part :][:15])]
    assert in_parts == together
    for place in range(0, 60, 11):
        assert logprobs(Packer(model, PACKED), [wanted[place]]) == [together[place]]


def test_padding_enters_no_result(model: StripedHyena2, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever letters fill a row and a launch up, and whatever unused memory holds."""
    wanted = many(20)
    together = logprobs(Packer(model, PACKED), wanted)
    for letter in b"TN|\x00":
        monkeypatch.setattr(packing, "PAD_TOKEN", letter)
        assert logprobs(Packer(model, PACKED), wanted) == together
    torch.use_deterministic_algorithms(True, warn_only=True)  # `empty` is NaN
    try:
        assert logprobs(Packer(model, PACKED), wanted) == together
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_sequence_without_a_likelihood_spoils_no_other(model: StripedHyena2) -> None:
    wanted = [(letters(130, 1), (64,)), (b"X" * 130, (64,)), (letters(130, 2), (64,))]
    clean = logprobs(Packer(model, PACKED), wanted)

    def spoil(_: object, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output.masked_fill((inputs[0] == ord("X"))[..., None], torch.nan)

    with model.embedding.register_forward_hook(spoil):
        found = logprobs(Packer(model, PACKED), wanted)
    assert found[1] != found[1]
    assert found[::2] == clean[::2]


def test_memory_is_used_again(model: StripedHyena2) -> None:
    """Places of prefixes that are no longer needed; what is needed again is not read again."""
    packer = Packer(model, PACKED)
    kept, bases = letters(256, 9), 0
    for seed in range(6):
        own = letters(256, seed)
        logprobs(packer, [(kept + b"ACGT", (256,)), (own + b"ACGT", (128, 256))])
        bases += 256 + 4 + (256 + 4 if seed == 0 else 0)
    assert packer.num_bases == bases
    pool = packer._pools[model.config.stripes.index("A")]
    assert pool.keys_NHW is not None
    assert len(pool.keys_NHW) == 1 + 2 * 256  # place 0 is nobody's
    hyena = packer._pools[0]._pasts
    assert hyena is not None
    assert len(hyena.inner) == 1 + 1 + 2


def test_long_suffixes_are_read_in_chunks(
    tiny_model: StripedHyena2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "CHUNK", 128)
    bases = letters(450)
    for shapes in (Shapes(0), PACKED):
        packer = Packer(tiny_model, shapes)
        suffix = ask(packer, bases, 64, cumulative=True)
        packer.read().collect()
        for length in (64, 65, 192, 200, 320, 321, 450):
            expected = sequence_logprob(tiny_model, bases[:length])
            assert suffix.logprob_until(length) == pytest.approx(expected, rel=0, abs=1e-8)


def test_an_operator_that_knows_nothing_of_it_is_read_row_by_row() -> None:
    """A past of any kind, here the sum of all tokens."""
    known = dict(MIXERS)

    class Sum(Mixer, letter="Z"):
        def forward(self, x_BLD: Tensor, past: Past | None) -> tuple[Tensor, Past]:
            before_BD = x_BLD[:, 0] * 0 if past is None else past["sum"]
            sums_BLD = before_BD[:, None] + x_BLD.cumsum(1)
            return self.project_out(sums_BLD / 100), {"sum": sums_BLD[:, -1]}

    try:
        config = ModelConfig(
            "ZZ", width=24, num_heads=2, mlp_width=40, num_short_filter_groups=6,
            num_medium_filter_groups=6, context=256,
        )  # fmt: skip
        model = StripedHyena2.from_seed(config, seed=0).double().eval()
        wanted = many(8)
        found = logprobs(Packer(model, PACKED), wanted)
        for (bases, _), logprob in zip(wanted, found, strict=True):
            if len(bases) > 1:
                assert logprob == pytest.approx(sequence_logprob(model, bases), rel=0, abs=1e-8)
    finally:
        MIXERS.clear()
        MIXERS.update(known)


def test_a_launch_follows_a_block_to_its_device() -> None:
    numbers = torch.zeros(2, dtype=torch.int64)
    launch = Launch(numbers, numbers.int(), numbers[None].int())
    assert launch.to(torch.device("cpu")) is launch
    moved = launch.to(torch.device("meta"))
    assert launch.to(torch.device("meta")) is moved
    assert moved.page_table_BT.is_meta
    assert moved.new_states_N is None


@given(st.integers(1, CHUNK), st.sampled_from([1024, 4096, 8192, 16_384, 65_536, 262_144]))
def test_rows_are_few_lengths_and_little_padding(length: int, tokens: int) -> None:
    shapes = Shapes(tokens)
    padded = shapes.padded(length)
    assert length <= padded
    assert padded - length < max(GRANULARITY, length / 16)
    assert padded == length or shapes.padded(padded) == padded  # a length of the table
    assert shapes.rows(padded) * padded <= max(tokens, padded)
    if 2 * length > tokens:
        assert shapes.rows(padded) == 1


@pytest.mark.parametrize("tokens", [4096, 8192, 16_384, 131_072, 262_144])
def test_the_table_of_shapes_is_small(tokens: int) -> None:
    shapes = Shapes(tokens)
    packed = {shapes.padded(length) for length in range(1, tokens // 2 + 1)}
    assert len(packed) <= 140
    assert {1 << power for power in range(6, (tokens // 2).bit_length())} <= packed


@settings(max_examples=300)
@given(
    st.sampled_from([0, 1024, 8192, 131_072]),
    st.integers(0, 9000),
    st.integers(0, 5000),
    st.integers(1, 9000),
)
def test_a_cut_lies_where_pieces_end(tokens: int, first: int, more: int, rest: int) -> None:
    shapes, before = Shapes(tokens), first + more
    cut = shapes.cut(first, before, rest)
    assert first <= cut <= before
    ends = list(shapes.pieces(first, cut))
    sizes = [end - start for start, end in zip([first, *ends], ends, strict=False)]
    assert first + sum(sizes) == cut
    assert all(size > 0 for size in sizes)
    if not tokens:
        assert cut == before
        return
    assert (cut - first) % GRANULARITY == 0
    assert all(size == shapes_power(size) and size <= CHUNK for size in sizes)
    # The row is as short as it can be for a cut on the grain.
    nearest = first + more // GRANULARITY * GRANULARITY
    assert shapes.padded(before + rest - cut) == shapes.padded(before + rest - nearest)


def shapes_power(size: int) -> int:
    return 1 << size.bit_length() - 1


@given(st.integers(0, 100_000))
def test_a_whole_prefix_is_read_in_chunks(length: int) -> None:
    ends = list(Shapes(0).whole(length))
    assert ends[-1:] == [length] * bool(length)
    assert ends[:-1] == list(range(CHUNK, length, CHUNK))
