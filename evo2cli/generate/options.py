"""Options of `evo2 generate`."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from evo2cli.errors import UserError
from evo2cli.options import ModelOptions, Options

# Options by name, and the values of `stop=` and `passed=` in the output.
FORBID, HOMOPOLYMER, FIX, GC = "forbid", "max-homopolymer", "fix", "gc"
STOP_CODON, STOP_MOTIF = "stop-codon", "stop-motif"


class Alphabet(StrEnum):
    """Which tokens can be sampled: A, C, G and T, or the whole vocabulary."""

    DNA = "dna"
    ANY = "any"


class Frame(StrEnum):
    """Which base is the first of the first codon."""

    PROMPT = "prompt"
    GENERATED = "generated"


class KVCache(StrEnum):
    """Precision of cached keys and values: AUTO is the one the model computes in."""

    AUTO = "auto"
    FP8 = "fp8"


@dataclass(frozen=True, kw_only=True)
class PromptOptions(Options, panel="Prompt"):
    """What every sequence continues."""

    prompt: Annotated[
        tuple[str, ...],
        typer.Option(metavar="BASES", help="Bases to continue; repeatable."),
    ] = ()
    prompts: Annotated[
        Path | None, typer.Option(metavar="FASTA", help="File of prompts; - is stdin.")
    ] = None
    tag: Annotated[
        str | None,
        typer.Option(
            metavar="LINEAGE",
            help="Lineage to put before every prompt, or to use as the only prompt: "
            "'d__Bacteria;p__...;s__...'.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(Options, panel="Sampling"):
    """How bases are sampled."""

    num_samples: Annotated[
        int, typer.Option(min=1, help="Number of sequences for each prompt.")
    ] = 1
    seed: Annotated[
        int, typer.Option(help="Seed of the random numbers; equal seeds give equal sequences.")
    ] = 0
    temperature: Annotated[
        float, typer.Option(min=0, help="Divide the logits by this (0 = take the likeliest base).")
    ] = 1.0
    top_k: Annotated[
        int,
        typer.Option(min=0, help="Sample from the k likeliest tokens (0 = all, 1 = greedy)."),
    ] = 4
    top_p: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Sample from the likeliest tokens that together have this probability (1 = all).",
        ),
    ] = 1.0
    alphabet: Annotated[
        Alphabet,
        typer.Option(help="dna samples A, C, G and T; any samples every token of the model."),
    ] = Alphabet.DNA


@dataclass(frozen=True, kw_only=True)
class StoppingOptions(Options, panel="Stopping"):
    """Where a sequence ends."""

    tokens: Annotated[
        int,
        typer.Option(
            "--tokens", "-n", min=1, max=2**30, help="Maximum number of bases to generate."
        ),
    ] = 500
    min_length: Annotated[int, typer.Option(min=1, help="Minimum number of bases to generate.")] = 1
    stop_at_eod: Annotated[
        bool, typer.Option("--stop-at-eod", help="Stop at the end-of-document token.")
    ] = False
    stop_codon: Annotated[
        Frame | None,
        typer.Option(
            help="Stop after an in-frame stop codon; codons are counted from the first base of "
            "the prompt, or from the first generated base.",
        ),
    ] = None
    stop_motif: Annotated[
        tuple[str, ...],
        typer.Option(
            metavar="PATTERN",
            help="Stop after a match of this pattern: TATAWA, 'A{8,}', '(CAG){5}|TTTT'; "
            "repeatable.",
        ),
    ] = ()

    @property
    def stops(self) -> list[str]:
        """Names of the given options by which a pattern ends a sequence."""
        given = {STOP_CODON: self.stop_codon, STOP_MOTIF: self.stop_motif}
        return [name for name, value in given.items() if value]


@dataclass(frozen=True, kw_only=True)
class ConstraintOptions(Options, panel="Constraints"):
    """What holds for every generated sequence."""

    forbid: Annotated[
        tuple[str, ...],
        typer.Option(
            metavar="PATTERN",
            help="Avoid a pattern, or the site of a restriction enzyme on both strands; "
            "repeatable.",
        ),
    ] = ()
    both_strands: Annotated[
        bool, typer.Option("--both-strands", help="Avoid patterns on both strands, too.")
    ] = False
    max_homopolymer: Annotated[
        int | None, typer.Option(min=1, help="Maximum length of a run of one base.")
    ] = None
    fix: Annotated[
        tuple[str, ...],
        typer.Option(
            metavar="POSITION:BASES",
            help="Fix bases at a position of the generated part, 1-based, e.g. 10:ACGTN; "
            "repeatable.",
        ),
    ] = ()
    gc: Annotated[
        str | None,
        typer.Option(metavar="MIN-MAX", help="Range of the GC fraction, e.g. 0.3-0.65."),
    ] = None
    gc_window: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Keep the GC fraction in every window of this many bases.",
            show_default="the whole sequence",
        ),
    ] = None

    @property
    def constraints(self) -> list[str]:
        """Names of the given options that constrain every sequence."""
        given = {
            FORBID: self.forbid,
            HOMOPOLYMER: self.max_homopolymer,
            FIX: self.fix,
            GC: self.gc,
        }
        return [name for name, value in given.items() if value]


@dataclass(frozen=True, kw_only=True)
class DecodingOptions(ModelOptions, panel="Model"):
    """Which model runs, and how much memory it takes."""

    batch_size: Annotated[
        int, typer.Option(min=1, help="Number of sequences generated at the same time.")
    ] = 16
    kv_cache: Annotated[
        KVCache,
        typer.Option(
            help="Precision of cached keys and values: auto is the model's, fp8 takes half the "
            "memory."
        ),
    ] = KVCache.AUTO


@dataclass(frozen=True, kw_only=True)
class OutputOptions(Options, panel="Output"):
    """Where sequences are written, and in which format."""

    output: Annotated[
        Path | None,
        typer.Option("--output", "-O", help="File to write.", show_default="stdout"),
    ] = None
    json: Annotated[
        bool,
        typer.Option(
            "--json", help="Write JSON lines with the log-probability of every base, not FASTA."
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(
    OutputOptions,
    DecodingOptions,
    ConstraintOptions,
    StoppingOptions,
    SamplingOptions,
    PromptOptions,
):
    """Options of `evo2 generate`.

    Raises:
        UserError: A value is out of range, or two options exclude each other.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_length > self.tokens:
            raise UserError(
                f"--min-length {self.min_length:,} is more than --tokens {self.tokens:,}"
            )
        if self.gc_window is not None and self.gc is None:
            raise UserError("--gc-window needs --gc, the range to keep in every window")
        about_bases = [*self.constraints, *self.stops]
        if self.alphabet is Alphabet.ANY and about_bases:
            raise UserError(
                f"--{about_bases[0]} constrains bases; it cannot be used with --alphabet any"
            )
