"""The windows of a step: every base once an epoch, and step k without the steps before it.

Laws of order are checked on sources whose bytes tell where they stand: the same loader reads the
digits of every place from one set of sources, and the texts from another.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.data.documents import PAD, ArrayDocuments, Documents
from evo2cli.data.loader import TAG_REACH, WindowLoader, Windows, fixed_windows

SEQUENCES = 3
Places = npt.NDArray[np.int64]
Make = Callable[[Sequence[Documents]], Windows]

packings = st.sampled_from(["stream", "document"])
seeds = st.integers(0, 2**63 - 1)
texts = st.text("ACGTacgtN", min_size=1, max_size=40)
tagged = st.text("ACGTacg|_; t#@N", min_size=1, max_size=40)


def make_source(documents: Sequence[str], name: str = "s") -> ArrayDocuments:
    stream = "".join(text + "\0" for text in documents)
    offsets = np.cumsum([0, *(len(text) + 1 for text in documents)])
    return ArrayDocuments(name, np.frombuffer(stream.encode(), np.uint8), offsets)


def make_loader(sources: Sequence[Documents], length: int, seed: int, **rules: Any) -> WindowLoader:
    return WindowLoader(sources, length=length, sequences=SEQUENCES, seed=seed, **rules)


def trace(sources: Sequence[Documents], make: Make) -> tuple[Places, Places]:
    """Source and place of every byte that `make` reads from sources cut like these; -1 is padding.

    The digits of a place avoid PAD and whatever a tag is made of.
    """
    digits = []
    for divisor in (1, 16, 256, 4096):
        shown = []
        for source in sources:
            places = np.arange(source.num_tokens) // divisor % 16 + ord("A")
            shown.append(ArrayDocuments("digits", places.astype(np.uint8), source.offsets))
        tokens = make(shown).tokens
        digits.append(np.where(tokens == PAD, -1, (tokens.astype(np.int64) - ord("A")) * divisor))
    numbers = [
        ArrayDocuments(
            "numbers", np.full(source.num_tokens, at + ord("A"), np.uint8), source.offsets
        )
        for at, source in enumerate(sources)
    ]
    padding = digits[0] < 0
    source = make(numbers).tokens.astype(np.int64) - ord("A")
    return np.where(padding, -1, source), np.where(padding, -1, sum(digits))


def run_windows(length: int, seed: int, steps: range, **rules: Any) -> Make:
    def make(sources: Sequence[Documents]) -> Windows:
        loader = make_loader(sources, length, seed, **rules)
        parts = [loader.windows(step) for step in steps]
        return Windows(*(np.concatenate([getattr(p, name) for p in parts]) for name in FIELDS))

    return make


FIELDS = ("tokens", "reverse", "masked")


def assert_same(one: Windows, other: Windows) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


sources_of_texts = st.lists(
    st.lists(texts, min_size=1, max_size=12).map(lambda documents: [*documents, "ACGT" * 10]),
    min_size=1,
    max_size=3,
)


@given(documents=sources_of_texts, length=st.integers(3, 19), seed=seeds, epoch=st.integers(0, 3))
def test_a_stream_is_seen_once_an_epoch(
    documents: list[list[str]], length: int, seed: int, epoch: int
) -> None:
    sources = [make_source(one) for one in documents]
    total = make_loader(sources, length, seed).windows_per_epoch
    samples = range(epoch * total, (epoch + 1) * total)
    steps = range(samples.start // SEQUENCES, samples.stop // SEQUENCES + 1)
    source, place = trace(sources, run_windows(length, seed, steps))
    rows = np.arange(steps.start * SEQUENCES, steps.stop * SEQUENCES)
    mine = (rows >= samples.start) & (rows < samples.stop)
    source, place = source[mine], place[mine]
    assert (np.diff(place, axis=1) == 1).all()
    assert (source == source[:, :1]).all()
    predicted = {*zip(source[:, 1:].ravel().tolist(), place[:, 1:].ravel().tolist(), strict=True)}
    assert len(predicted) == total * length
    # A phase costs at most one window at the start and a part of one at the end.
    tokens = sum(one.num_tokens for one in sources)
    assert len(predicted) > tokens - len(sources) * (2 * length + 1)


@given(documents=sources_of_texts, length=st.integers(3, 50), seed=seeds)
def test_packed_by_document_every_byte_is_predicted_once(
    documents: list[list[str]], length: int, seed: int
) -> None:
    sources = [make_source(one) for one in documents]
    loader = make_loader(sources, length, seed, packing="document")
    total = loader.windows_per_epoch
    steps = range(-(-total // SEQUENCES))
    source, place = trace(sources, run_windows(length, seed, steps, packing="document"))
    source, place = source[:total], place[:total]
    predicted = [
        pair
        for pair in zip(source[:, 1:].ravel().tolist(), place[:, 1:].ravel().tolist(), strict=True)
        if pair != (-1, -1)
    ]
    everything = {
        (at, byte)
        for at, one in enumerate(sources)
        for byte in {*range(one.num_tokens)} - {*one.offsets.tolist()}
    }
    assert len(predicted) == len(everything)
    assert {*predicted} == everything
    for row_source, row in zip(source[:, 0].tolist(), place, strict=True):
        offsets = sources[row_source].offsets
        documents_met = np.searchsorted(offsets, row[row >= 0], side="right")
        assert len({*documents_met.tolist()}) == 1
        # Padding stands only behind the end of a document.
        filled = int((row >= 0).sum())
        assert (row[filled:] == -1).all()
        assert filled == length + 1 or row[filled - 1] + 1 in offsets


@given(
    documents=sources_of_texts,
    packing=packings,
    weighted=st.booleans(),
    step=st.integers(0, 10**9),
    world=st.integers(1, 3),
    seed=seeds,
)
def test_a_step_is_the_same_alone_and_shared(
    documents: list[list[str]], packing: str, weighted: bool, step: int, world: int, seed: int
) -> None:
    sources = [make_source(one) for one in documents]
    rules: dict[str, Any] = {"packing": packing}
    rules["weights"] = [0.5**at for at in range(len(sources))] if weighted else None
    running = make_loader(sources, 9, seed, **rules)
    running.windows(step - 1 if step else 5)
    whole = running.windows(step)
    assert len(whole) == SEQUENCES
    each = -(-SEQUENCES // world)
    for rank in range(world):
        rows = slice(rank * each, (rank + 1) * each)
        assert_same(make_loader(sources, 9, seed, **rules).windows(step, rows), whole[rows])
        spread = slice(rank, None, world)
        assert_same(running.windows(step, spread), whole.shard(rank, world))
    twice = WindowLoader(sources, length=9, sequences=2 * SEQUENCES, seed=seed, **rules)
    assert_same(twice.windows(step)[:SEQUENCES], running.windows(2 * step))
    assert_same(twice.windows(step)[SEQUENCES:], running.windows(2 * step + 1))


def oracle_masks(documents: Sequence[str]) -> tuple[str, str]:
    """For every byte of the stream whether it is in a tag, and whether it is masked, as 0 and 1.

    It takes whole documents apart at '|', as one would by hand.
    """
    tags, masks = "", ""
    for text in documents:
        pieces = text.split("|")
        is_tag = [any(sign in piece for sign in "_ ;") for piece in pieces]
        inside = ""
        for at, piece in enumerate(pieces):
            inside += str(int(is_tag[at])) * len(piece)
            if at + 1 < len(pieces):
                inside += str(int(is_tag[at] or is_tag[at + 1]))
        tags += inside + "0"
        signs = zip(text, inside, strict=True)
        masks += "".join("1" if sign in "@#" else flag for sign, flag in signs) + "0"
    return tags, masks


@given(
    documents=st.lists(tagged, min_size=3, max_size=12),
    packing=packings,
    length=st.integers(1, 12),
    seed=seeds,
    mask_tags=st.booleans(),
)
def test_masks_are_those_of_whole_documents(
    documents: list[str], packing: str, length: int, seed: int, mask_tags: bool
) -> None:
    source = make_source([*documents, "ACGT" * 8])
    rules: dict[str, Any] = {"packing": packing, "mask_tags": mask_tags}
    tags, masks = oracle_masks([*documents, "ACGT" * 8])
    stream = "".join(text + "\0" for text in [*documents, "ACGT" * 8])

    def fixed(sources: Sequence[Documents]) -> Windows:
        return fixed_windows(sources[0], length=length, limit=10**6, **rules)

    for make in (fixed, run_windows(length, seed, range(12), **rules)):
        windows = make([source])
        _, places = trace([source], make)
        assert len(windows) == len(places) > 0
        for row, row_places in enumerate(places.tolist()):
            in_tag = [tags[place] == "1" if place >= 0 else False for place in row_places]
            masked = [masks[place] == "1" if place >= 0 else False for place in row_places]
            letters = [stream[place] if place >= 0 else "\1" for place in row_places]
            if not mask_tags:
                letters = [
                    letter.upper() if tag else letter
                    for letter, tag in zip(letters, in_tag, strict=True)
                ]
                masked = [False] * len(masked)
            assert windows.tokens[row].tobytes().decode() == "".join(letters)
            assert windows.masked[row].tolist() == masked
            assert not (windows.reverse[row] and any(in_tag))


@pytest.mark.parametrize("length", [5, 700, 9000])
def test_masks_hold_at_every_border_of_a_window(length: int) -> None:
    tag = "|d__Bacteria;p__" + "cat" * 300 + "|"
    documents = ["ACGT" * 900 + tag + "acgt" * 900, tag + "AC#GT@" * 50, "ACGT" * 3000]
    source = make_source(documents)
    _, masks = oracle_masks(documents)

    def make(sources: Sequence[Documents]) -> Windows:
        return WindowLoader(sources, length=length, sequences=60, seed=1).windows(0)

    places = trace([source], make)[1]
    expected = np.frombuffer(masks.encode(), np.uint8)[places] == ord("1")
    np.testing.assert_array_equal(make([source]).masked, expected)


@pytest.mark.parametrize(("distance", "found"), [(TAG_REACH, True), (TAG_REACH + 1, False)])
def test_the_rest_of_a_tag_is_looked_for_so_far_and_no_farther(distance: int, found: bool) -> None:
    length, window = 8, (TAG_REACH + 8) // 8
    start = window * length
    for sign in (start - distance, start + length + distance):
        text = ["A"] * (3 * TAG_REACH)
        text[sign] = "_"
        source = make_source(["".join(text)])
        windows = fixed_windows(source, length=length, limit=10**6)
        assert windows.masked[window].tolist() == [found] * (length + 1)


def test_strands_are_even_and_can_be_kept() -> None:
    source = make_source(["ACGT" * 10_000])
    both, one = (
        WindowLoader([source], length=8, sequences=4000, seed=3, reverse_complement=both).windows(0)
        for both in (True, False)
    )
    assert 0.47 < both.reverse.mean() < 0.53
    assert not one.reverse.any()
    np.testing.assert_array_equal(one.tokens, both.tokens)


def test_epochs_and_seeds_differ_in_order_and_phase() -> None:
    source = make_source(["ACGT" * 1000])
    total = make_loader([source], 32, 3).windows_per_epoch
    first, second, other = (
        trace([source], run_windows(32, seed, range(epoch, epoch + total // SEQUENCES)))[1]
        for epoch, seed in ((0, 3), (total // SEQUENCES + 1, 3), (0, 4))
    )
    assert len({*(first[:, 0] % 32).tolist()}) == 1
    assert (np.diff(first[:, 0]) < 0).any()
    assert first[0, 0] % 32 != second[3, 0] % 32
    assert {*first[:, 0].tolist()} != {*second[:, 0].tolist()}
    assert {*first[:, 0].tolist()} != {*other[:, 0].tolist()}


def test_weights_decide_how_often_a_source_is_read() -> None:
    sources = [make_source(["ACGT" * 100]), make_source(["A" * 5000]), make_source(["CG" * 50])]

    def make_loader(shown: Sequence[Documents]) -> WindowLoader:
        return WindowLoader(shown, [6, 3, 1], length=20, sequences=4000, seed=0)

    read, _ = trace(sources, lambda shown: make_loader(shown).windows(7))
    shares = np.bincount(read[:, 0]) / 4000
    assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
    loader = make_loader(sources)
    counts = [401 // 20 - 1, 5001 // 20 - 1, 101 // 20 - 1]
    assert loader.windows_per_epoch == sum(counts)
    expected = [2 * 4000 * share / n for share, n in zip((0.6, 0.3, 0.1), counts, strict=True)]
    assert loader.epochs(2) == pytest.approx(expected)


def test_a_source_without_a_window_is_refused() -> None:
    short, long = make_source(["A" * 15], "short"), make_source(["A" * 16], "long")
    loader = make_loader([long], 16, 3)
    assert loader.windows_per_epoch == 1
    assert (loader.windows(0).tokens == np.frombuffer(b"A" * 16 + b"\0", np.uint8)).all()
    with pytest.raises(
        ValueError, match=r"short: its 16 tokens are fewer than a window of 16 \+ 1"
    ):
        make_loader([long, short], 16, 3)
    assert make_loader([short], 16, 3, packing="document").windows_per_epoch == 1
    with pytest.raises(ValueError, match="1 source, but 2 weights"):
        make_loader([long], 16, 3, weights=[1, 2])


@given(
    sizes=st.lists(st.integers(1, 60), max_size=6),
    limit=st.integers(1, 12),
    packing=packings,
)
def test_validation_windows_are_whole_apart_and_as_many_as_asked(
    sizes: list[int], limit: int, packing: str
) -> None:
    source = make_source(["A" * size for size in sizes])

    def make(shown: Sequence[Documents]) -> Windows:
        return fixed_windows(shown[0], length=16, limit=limit, packing=packing)

    windows = make([source])
    fit = max(0, source.num_tokens - 1) // 16
    if packing == "document":
        fit = sum(-(-size // 16) for size in sizes)
    assert windows.tokens.shape == windows.masked.shape == (min(limit, fit), 17)
    assert not windows.reverse.any()
    assert_same(windows, make([source]))
    if len(windows):
        starts = trace([source], make)[1][:, 0].tolist()
        assert starts == sorted({*starts})
        assert starts[0] == 0
        assert len(starts) == 1 or starts[-1] >= source.num_tokens - 2 * 17
