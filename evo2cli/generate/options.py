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
    """Tokens to sample from: A, C, G and T, or the whole vocabulary."""

    DNA = "dna"
    ANY = "any"


class Frame(StrEnum):
    """Start of the reading frame: the first base of the prompt, or the first generated base."""

    PROMPT = "prompt"
    GENERATED = "generated"


class KVCache(StrEnum):
    """Precision of the KV cache: AUTO is the compute precision of the model."""

    AUTO = "auto"
    FP8 = "fp8"


@dataclass(frozen=True, kw_only=True)
class PromptOptions(Options, panel="Prompt"):
    """Prompts."""

    prompt: Annotated[
        tuple[str, ...],
        typer.Option(metavar="BASES", help="Bases to continue; repeatable."),
    ] = ()
    prompts: Annotated[
        Path | None, typer.Option(metavar="FASTA", help="FASTA of prompts; - is stdin.")
    ] = None
    tag: Annotated[
        str | None,
        typer.Option(
            metavar="LINEAGE",
            help="Lineage tag to prepend to every prompt, or to use as the only prompt: "
            "'d__Bacteria;p__...;s__...'.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(Options, panel="Sampling"):
    """Sampling."""

    num_samples: Annotated[int, typer.Option(min=1, help="Number of sequences per prompt.")] = 1
    seed: Annotated[
        int, typer.Option(help="Random seed; the same seed gives the same sequences.")
    ] = 0
    temperature: Annotated[
        float, typer.Option(min=0, help="Sampling temperature (0 = greedy).")
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
            help="Nucleus sampling: sample from the smallest set of likeliest tokens whose total "
            "probability is at least this (1 = all).",
        ),
    ] = 1.0
    alphabet: Annotated[
        Alphabet,
        typer.Option(help="dna samples A, C, G and T; any samples every token of the model."),
    ] = Alphabet.DNA


@dataclass(frozen=True, kw_only=True)
class StoppingOptions(Options, panel="Stopping"):
    """Stopping criteria."""

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
        """Names of the given options that end a sequence at a pattern."""
        given = {STOP_CODON: self.stop_codon, STOP_MOTIF: self.stop_motif}
        return [name for name, value in given.items() if value]


@dataclass(frozen=True, kw_only=True)
class ConstraintOptions(Options, panel="Constraints"):
    """Constraints on every generated sequence."""

    forbid: Annotated[
        tuple[str, ...],
        typer.Option(
            metavar="PATTERN",
            help="Avoid a pattern, or the site of a restriction enzyme on both strands; "
            "repeatable.",
        ),
    ] = ()
    both_strands: Annotated[
        bool, typer.Option("--both-strands", help="Avoid patterns on both strands.")
    ] = False
    max_homopolymer: Annotated[
        int | None, typer.Option(min=1, help="Maximum length of a homopolymer run.")
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
    """The model, batch size and KV cache."""

    batch_size: Annotated[
        int, typer.Option(min=1, help="Number of sequences to generate in parallel.")
    ] = 16
    kv_cache: Annotated[
        KVCache,
        typer.Option(
            help="Precision of the KV cache: auto is that of the model, fp8 takes half the memory."
        ),
    ] = KVCache.AUTO


@dataclass(frozen=True, kw_only=True)
class OutputOptions(Options, panel="Output"):
    """Output file and format."""

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
