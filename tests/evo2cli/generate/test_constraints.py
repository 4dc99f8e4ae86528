"""No sequence breaks a rule or gets stuck, which an oracle checks by trying every sequence."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.errors import UserError
from evo2cli.generate.constraints.build import guides
from evo2cli.generate.constraints.rules import GCRange
from evo2cli.generate.options import GenerateOptions
from evo2cli.generate.prompts import Prompt

MOTIFS = ["A", "GC", "TTA", "AC", "CAG", "TG"]
EOD = 0


@dataclass(frozen=True)
class Oracle:
    """The rules by their definition; every answer is found by trying all sequences."""

    options: GenerateOptions
    prompt: str

    def ends_in(self, prefix: str, patterns: tuple[str, ...]) -> bool:
        text = self.prompt + prefix
        return any(re.search(f"({pattern})$", text) for pattern in patterns)

    def is_stop(self, prefix: str) -> bool:
        text = self.prompt + prefix if self.options.stop_codon == "prompt" else prefix
        in_frame = self.options.stop_codon is not None and len(text) % 3 == 0
        return self.ends_in(prefix, self.options.stop_motif) or (
            in_frame and text[-3:] in ("TAA", "TAG", "TGA")
        )

    def breaks(self, prefix: str) -> bool:
        """Whether the last base breaks a rule, whatever comes later."""
        runs = [len(list(run)) for _, run in groupby(self.prompt + prefix)]
        longest = self.options.max_homopolymer
        fixed = "".join(text.partition(":")[2] for text in self.options.fix)
        start = min((int(text.partition(":")[0]) for text in self.options.fix), default=1) - 1
        index = len(prefix) - 1 - start
        return (
            self.ends_in(prefix, self.options.forbid)
            or (longest is not None and runs[-1] > longest)
            or (0 <= index < len(fixed) and prefix[-1] != fixed[index])
            or (self.window <= len(prefix) and not self.in_range(prefix[-self.window :]))
        )

    @property
    def window(self) -> int:
        return self.options.gc_window or self.options.tokens

    def in_range(self, bases: str) -> bool:
        if self.options.gc is None:
            return True
        low, high = map(Fraction, self.options.gc.split("-"))
        return low <= Fraction(len(re.findall("[GC]", bases)), len(bases)) <= high

    def may_end(self, prefix: str) -> bool:
        last = max(
            (int(t.partition(":")[0]) + len(t.partition(":")[2]) - 1)
            for t in self.options.fix or ("0:A",)
        )
        return (
            len(prefix) >= max(self.options.min_length, last)
            and len(prefix) > 0
            and (len(prefix) >= self.window or self.in_range(prefix))
        )

    def allowed(self, prefix: str) -> set[str]:
        return {base for base in "ACGT" if self.can_go(prefix + base)} | (
            {"eod"} if self.options.stop_at_eod and self.may_end(prefix) else set()
        )

    @cache  # noqa: B019  # an oracle lives as long as its test
    def can_go(self, prefix: str) -> bool:
        if self.breaks(prefix):
            return False
        if self.is_stop(prefix) or len(prefix) == self.options.tokens:
            return self.may_end(prefix)
        return bool(self.allowed(prefix))


@st.composite
def all_options(draw: st.DrawFn) -> GenerateOptions:
    tokens = draw(st.integers(1, 6))
    position = draw(st.integers(1, tokens))
    bases = draw(st.text("ACGT", min_size=1, max_size=tokens - position + 1))
    gc = draw(st.sampled_from([None, "0.3-0.65", "0.5-0.5", "0.2-0.8", "0-0.5", "0.65-1"]))
    patterns = st.lists(st.sampled_from(MOTIFS), max_size=3).map(tuple)
    return GenerateOptions(
        tokens=tokens,
        min_length=draw(st.integers(1, tokens)),
        stop_at_eod=draw(st.booleans()),
        stop_codon=draw(st.sampled_from([None, "prompt", "generated"])),
        stop_motif=draw(patterns),
        forbid=draw(patterns),
        max_homopolymer=draw(st.sampled_from([None, 1, 2, 3])),
        fix=(f"{position}:{bases}",) if draw(st.booleans()) else (),
        gc=gc,
        gc_window=draw(st.sampled_from([None, 1, 2, 3, 4])) if gc else None,
    )


@given(all_options(), st.text("ACGT", max_size=4), st.randoms())
def test_a_base_is_allowed_exactly_if_the_sequence_can_be_completed(
    options: GenerateOptions, text: str, choices: random.Random
) -> None:
    oracle = Oracle(options, text)
    prompt = Prompt("p", "", text.encode())
    try:
        guide = guides(options, [prompt])(prompt, 512)
    except UserError:
        assert not oracle.allowed("") or is_whole_gc(options)
        return
    prefix, ended = "", None
    while not ended and len(prefix) < options.tokens:
        tokens = guide.allowed()
        assert tokens
        found = {"eod" if token == EOD else chr(token) for token in tokens}
        if is_whole_gc(options):  # of ranges with gaps, only the widest is kept
            assert found <= oracle.allowed(prefix)
        else:
            assert found == oracle.allowed(prefix)
        token = choices.choice(tokens)
        prefix += "" if token == EOD else chr(token)
        ended = guide.advance(token)
        assert ended == "eod" or bool(ended) == oracle.is_stop(prefix)
    assert oracle.may_end(prefix)


def is_whole_gc(options: GenerateOptions) -> bool:
    """Whether the lookahead counts G and C of the whole sequence while there are patterns."""
    is_whole = options.gc is not None and (options.gc_window or options.tokens) >= options.tokens
    return is_whole and bool(options.forbid or options.stop_motif or options.max_homopolymer)


def walk(options: GenerateOptions, weights: Callable[[int], float]) -> str:
    """Sample a sequence in which tokens have these weights."""
    prompt, chance = Prompt("p", "", b"ACGT"), random.Random(0)  # noqa: S311  # not a secret
    guide = guides(options, [prompt])(prompt, 512)
    sequence = ""
    while len(sequence) < options.tokens:
        tokens = guide.allowed()
        sequence += chr(chance.choices(tokens, [weights(token) for token in tokens])[0])
        if guide.advance(ord(sequence[-1])):
            break
    return sequence


def test_the_gc_count_of_a_whole_sequence_is_exact() -> None:
    options = GenerateOptions(
        tokens=2000, gc="0.5-0.5", forbid=("EcoRI", "BsaI"), max_homopolymer=6
    )
    sequence = walk(options, lambda token: 20 if token == ord("A") else 1)
    assert len(sequence) == 2000
    assert sequence.count("G") + sequence.count("C") == 1000
    assert not re.search("GAATTC|GGTCTC|GAGACC|(A{7}|C{7}|G{7}|T{7})", sequence)


def test_every_window_has_its_gc_fraction() -> None:
    options = GenerateOptions(
        tokens=260,
        gc="0.3-0.6",
        gc_window=20,
        max_homopolymer=4,
        forbid=("GNNC", "TAT"),
        both_strands=True,
        fix=("100:AAATTT", "180:GGGTGGG"),
    )
    sequence = walk(options, lambda token: 20 if token in b"GC" else 1)
    assert len(sequence) == 260
    for start in range(241):
        window = sequence[start : start + 20]
        assert 6 <= window.count("G") + window.count("C") <= 12
    assert not re.search("G..C|TAT|ATA|A{5}|C{5}|G{5}|T{5}", sequence)
    assert sequence[99:105] == "AAATTT"
    assert sequence[179:186] == "GGGTGGG"


def test_a_wide_window_far_from_its_limits_allows_every_base() -> None:
    options = GenerateOptions(tokens=6000, gc="0.1-0.9", gc_window=2500)
    prompt, chance = Prompt("p", "", b"ACGT"), random.Random(0)  # noqa: S311  # not a secret
    guide = guides(options, [prompt])(prompt, 512)
    for _ in range(6000):
        assert len(guide.allowed()) == 4
        guide.advance(chance.choice(b"ACGT"))


def test_a_continuation_over_many_fixed_positions_is_found_or_refused() -> None:
    """Twenty fixed bases of A in a window of 30 leave ten for G and C; 24 leave six."""
    options = GenerateOptions(tokens=90, gc="0.3-1", gc_window=30, fix=("50:" + "A" * 20,))
    assert walk(options, lambda token: 20 if token in b"AT" else 1)[49:69] == "A" * 20
    tighter = replace(options, fix=("50:" + "A" * 24,))
    with pytest.raises(UserError, match=r"--gc 0.3-1 exclude each other .* starts at base 42"):
        walk(tighter, lambda _: 1)


def test_gc_counts_are_exact() -> None:
    assert GCRange(Fraction("0.3"), Fraction("0.7"), 10).counts(10) == (3, 7)
    assert GCRange(Fraction("0.35"), Fraction("0.65"), 10).counts(10) == (4, 6)
