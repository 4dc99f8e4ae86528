"""What `evo2 generate` was asked for, checked and with its words turned into prompts and rules."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from evo2cli import console
from evo2cli.data.tags import find_tags
from evo2cli.errors import UserError
from evo2cli.files import check_output
from evo2cli.generate.constraints.automaton import ANY, Automaton
from evo2cli.generate.constraints.patterns import (
    Choice,
    Letter,
    Pattern,
    PatternError,
    Repeat,
    Sequence,
    base_set,
    other_strand,
    parse_pattern,
)
from evo2cli.generate.constraints.rules import ALL_BASES, Corridor, Rules
from evo2cli.genome.alphabet import ACGT
from evo2cli.genome.fasta import Record, read_records, require_nucleotides
from evo2cli.genome.windows import upper_dna
from stripedhyena2 import Sampler

ALPHABETS = ("dna", "any")
FRAMES = ("prompt", "generated")
MOST_TOKENS = 2**30  # of a sequence
STOP_CODONS = "TAA|TAG|TGA"

FORBID, HOMOPOLYMER, FIX, GC = "forbid", "max-homopolymer", "fix", "gc"
STOP_CODON, STOP_MOTIF = "stop-codon", "stop-motif"


@dataclass(frozen=True)
class Prompt:
    """What a sequence goes on from.

    Attributes:
        name: Of its record.
        tag: Between '|', or empty.
        bases: After the tag; upper case, T for U.
    """

    name: str
    tag: str
    bases: bytes

    @property
    def text(self) -> bytes:
        """What the model reads."""
        return self.tag.encode() + self.bases


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """The command line of `evo2 generate`.

    Attributes:
        prompts: Bases, given by themselves.
        prompts_fasta: Or in a FASTA file.
        tag: Lineage put before each prompt, or alone.
        model: A folder, file or name, as `open_model` takes it.
        config: Shape of a released model file.
        device: As `open_model` takes it.
        dtype: As `open_model` takes it.
        batch_size: Sequences that grow side by side.
        kv_cache: auto, keys and values as the model computes; or fp8, in half the memory.
        tokens: Of a sequence at most.
        num_samples: Of each prompt.
        seed: With the prompt and the number of the sample, all that a sample depends on.
        temperature: See `stripedhyena2.Sampler`.
        top_k: The same.
        top_p: The same.
        alphabet: One of `ALPHABETS`.
        min_length: No sequence ends before.
        stop_at_eod: The end of a document may be drawn, and ends the sequence.
        stop_codon: A stop codon in the frame of one of `FRAMES` ends it.
        stop_motifs: Patterns that end it.
        forbid: Patterns, or names of restriction enzymes.
        both_strands: Patterns are forbidden on the other strand too.
        max_homopolymer: Bases of a run of one base at most.
        fix: "position:bases", 1-based from the first generated base.
        gc: "from-to", as fractions.
        gc_window: Bases of a window the corridor holds in; None for the whole sequence.
        output: FASTA or JSON lines; None for stdout.
        json: JSON lines rather than FASTA.

    Raises:
        UserError: A value is out of range, or goes with another alphabet.
    """

    prompts: tuple[str, ...] = ()
    prompts_fasta: Path | None = None
    tag: str | None = None
    model: str = "nano"
    config: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = 16
    kv_cache: str = "auto"
    tokens: int = 500
    num_samples: int = 1
    seed: int = 0
    temperature: float = 1.0
    top_k: int = 4
    top_p: float = 1.0
    alphabet: str = "dna"
    min_length: int = 1
    stop_at_eod: bool = False
    stop_codon: str | None = None
    stop_motifs: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    both_strands: bool = False
    max_homopolymer: int | None = None
    fix: tuple[str, ...] = ()
    gc: str | None = None
    gc_window: int | None = None
    output: Path | None = None
    json: bool = False

    def __post_init__(self) -> None:
        if self.alphabet not in ALPHABETS:
            raise UserError(f"--alphabet {self.alphabet}: not one of {', '.join(ALPHABETS)}")
        if self.kv_cache not in ("auto", "fp8"):
            raise UserError(f"--kv-cache {self.kv_cache}: not one of auto, fp8")
        if self.stop_codon not in (None, *FRAMES):
            raise UserError(f"--stop-codon {self.stop_codon}: not one of {', '.join(FRAMES)}")
        if self.min_length > self.tokens:
            raise UserError(
                f"--min-length {self.min_length:,} is more than the {self.tokens:,} of --tokens"
            )
        if self.gc_window is not None and self.gc is None:
            raise UserError("--gc-window needs --gc, the fractions to keep in every window")
        if self.tokens > MOST_TOKENS:
            raise UserError(f"--tokens {self.tokens:,} is more than {MOST_TOKENS:,}, the most")
        check_output(self.output, self.prompts_fasta)
        about_bases = [*self.constraints, *self.stops]
        if self.alphabet == "any" and about_bases:
            raise UserError(f"--{about_bases[0]} is about bases: not with --alphabet any")

    @property
    def constraints(self) -> list[str]:
        """Names of those that every sequence meets."""
        given = {
            FORBID: self.forbid,
            HOMOPOLYMER: self.max_homopolymer,
            FIX: self.fix,
            GC: self.gc,
        }
        return [name for name, value in given.items() if value]

    @property
    def stops(self) -> list[str]:
        """Names of patterns that end a sequence."""
        given = {STOP_CODON: self.stop_codon, STOP_MOTIF: self.stop_motifs}
        return [name for name, value in given.items() if value]

    def sampler(self) -> Sampler:
        """How tokens are drawn.

        Raises:
            UserError: A setting is out of range.
        """
        try:
            return Sampler(self.temperature, self.top_k, self.top_p)
        except ValueError as error:
            raise UserError(str(error)) from None

    def read_prompts(self) -> list[Prompt]:
        """All prompts, those given by themselves first.

        Raises:
            UserError: There is none, or one is empty or no DNA, or the tag is none.
        """
        records = [
            Record(f"prompt{n}", "", text.strip().encode())
            for n, text in enumerate(self.prompts, 1)
        ]
        for record in records:
            require_nucleotides("--prompt", record)
        if self.prompts_fasta is not None:
            for record in read_records(self.prompts_fasta):
                require_nucleotides(self.prompts_fasta, record)
                records.append(record)
        tag = "" if self.tag is None else _read_tag(self.tag)
        if tag and not records:
            return [Prompt("prompt1", tag, b"")]
        if not records:
            raise UserError("no prompt: give --prompt ACGT, --prompts FASTA or a --tag")
        for record in records:
            if not record.sequence and not tag:
                raise UserError(f"{record.name}: the prompt is empty; give at least one base")
        found = [
            Prompt(record.name or f"record{n}", tag, upper_dna(record.sequence))
            for n, record in enumerate(records, 1)
        ]
        name, count = Counter(prompt.name for prompt in found).most_common(1)[0]
        if count > 1:
            console.warn(f"{count:,} prompts are named {name}, and so will be what follows them")
        return found

    def rules(self) -> Rules:
        """What a sequence has to obey.

        Raises:
            UserError: A pattern, position or corridor is none.
        """
        automaton = Automaton()
        for label, option, text, pattern in self._patterns():
            try:
                automaton.watch(pattern, label, anchored=label == STOP_CODON)
            except PatternError as error:
                raise UserError(f"--{option} {text}: {error}") from None
        return Rules(
            length=self.tokens,
            min_length=self.min_length,
            ends_at_eod=self.stop_at_eod,
            automaton=automaton,
            forbidden=frozenset((FORBID, HOMOPOLYMER)),
            stops=frozenset((STOP_CODON, STOP_MOTIF)),
            fixed=self._fixed(),
            corridor=None if self.gc is None else self._corridor(self.gc),
        )

    def _patterns(self) -> Iterator[tuple[str, str, str, Pattern]]:
        """Label, option, text and meaning of every pattern."""
        for text in self.forbid:
            pattern, is_enzyme = _read_forbidden(text)
            yield FORBID, FORBID, text, pattern
            if (is_enzyme or self.both_strands) and other_strand(pattern) != pattern:
                yield FORBID, FORBID, text, other_strand(pattern)
        if self.max_homopolymer is not None:
            longer = self.max_homopolymer + 1
            runs = tuple(Repeat(Letter(base_set(chr(b))), longer, longer) for b in ACGT)
            yield HOMOPOLYMER, HOMOPOLYMER, str(self.max_homopolymer), Choice(runs)
        for text in self.stop_motifs:
            yield STOP_MOTIF, STOP_MOTIF, text, _read_pattern(STOP_MOTIF, text)
        if self.stop_codon is not None:
            codons = Repeat(Sequence((Letter(ANY),) * 3), 0, None)
            stop = Sequence((codons, parse_pattern(STOP_CODONS)))
            yield STOP_CODON, STOP_CODON, self.stop_codon, stop

    def _fixed(self) -> dict[int, int]:
        fixed: dict[int, int] = {}
        for text in self.fix:
            match = re.fullmatch(r"([1-9][0-9]*):([A-Za-z]+)", text)
            if match is None or not all(map(base_set, match[2])):
                raise UserError(
                    f"--fix {text}: not a position and bases, such as 10:ACGT; the first base "
                    "generated is 1, and ambiguity codes leave a choice"
                )
            start = int(match[1]) - 1
            if start + len(match[2]) > self.tokens:
                raise UserError(
                    f"--fix {text}: ends at {start + len(match[2]):,}, after the {self.tokens:,} "
                    "of --tokens"
                )
            for position, letter in enumerate(match[2], start):
                fixed[position] = fixed.get(position, ALL_BASES) & base_set(letter)
                if not fixed[position]:
                    raise UserError(f"--fix {text}: position {position + 1:,} is fixed otherwise")
        return fixed

    def _corridor(self, text: str) -> Corridor:
        match = re.fullmatch(r"([01]|0?\.[0-9]+|1\.0+)-([01]|0?\.[0-9]+|1\.0+)", text)
        low, high = map(Fraction, match.groups()) if match else (Fraction(1), Fraction(0))
        if low > high:
            raise UserError(f"--gc {text}: not two fractions, the lower first, such as 0.3-0.65")
        return Corridor(low, high, self.gc_window or self.tokens)


def _read_tag(text: str) -> str:
    """A lineage as Evo 2 was trained on: upper case, between '|'.

    Raises:
        UserError: It would not be told from bases.
    """
    lineage = text.strip().strip("|").upper()
    tag = f"|{lineage}|"
    letters = np.frombuffer(tag.encode(), np.uint8)
    found = find_tags(letters)
    if not tag.isascii() or not tag.isprintable() or found is None or not found[0].all():
        raise UserError(
            f"--tag {text}: not a lineage such as 'd__Bacteria;p__Pseudomonadota;g__Escherichia'"
        )
    return tag


def _read_forbidden(text: str) -> tuple[Pattern, bool]:
    """An enzyme's site or a pattern, and whether it is an enzyme's.

    Raises:
        UserError: It is neither.
    """
    # Biopython makes them while it is imported.
    from Bio.Restriction import AllEnzymes  # type: ignore[attr-defined]

    sites = {str(enzyme).lower(): enzyme.site for enzyme in AllEnzymes}
    site = sites.get(text.lower())
    if site is not None:
        return _read_pattern(FORBID, site), True
    try:
        return parse_pattern(text), False
    except PatternError as error:
        raise UserError(
            f"--{FORBID} {text}: no restriction enzyme of Bio.Restriction, and no pattern: {error}"
        ) from None


def _read_pattern(option: str, text: str) -> Pattern:
    try:
        return parse_pattern(text)
    except PatternError as error:
        raise UserError(f"--{option} {text}: {error}") from None
