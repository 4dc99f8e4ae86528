"""Options of `evo2 embed`."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from evo2cli.errors import UserError
from evo2cli.options import JSONOptions, ModelOptions, Options, Strand, TagOptions

SUFFIXES = (".safetensors", ".npz", ".parquet")


class Pooling(StrEnum):
    """Pooling of hidden states over the positions of a sequence or feature.

    MEAN, MAX: over positions, per channel. LAST: the last position in reading direction. NONE: no
    pooling, one vector per position.
    """

    MEAN = "mean"
    LAST = "last"
    MAX = "max"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class InputOptions(TagOptions, panel="Input"):
    """Input sequences, and features in them."""

    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            rich_help_panel="Arguments",
            help="FASTA of sequences, or with --reference, BED or GFF of regions; also gzipped.",
        ),
    ]
    reference: Annotated[
        Path | None,
        typer.Option("--reference", "-R", metavar="FASTA", help="Genome of the regions."),
    ] = None
    features: Annotated[
        Path | None,
        typer.Option(
            help="BED, GFF3 or GTF: pool over each feature that lies within a sequence instead of "
            "the whole sequence."
        ),
    ] = None
    feature_type: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE", help="Use only this type of features of a GFF: gene, CDS, ..."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class VectorOptions(Options, panel="Vectors"):
    """Layers, pooling and strand."""

    layers: Annotated[
        str | None,
        typer.Option(
            metavar="LAYERS",
            help="all, or a comma-separated list of names (blocks.12, blocks.12.mlp.down, norm) or "
            "block numbers (12, -1).",
            show_default="the block at 26/32 of the depth",
        ),
    ] = None
    pooling: Annotated[
        Pooling,
        typer.Option(help="Pooling over positions; none writes one vector per position."),
    ] = Pooling.MEAN
    strand: Annotated[
        Strand,
        typer.Option(help="Strand to read: forward, reverse complement, or the mean of the two."),
    ] = Strand.FORWARD


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(Options, panel="Probe"):
    """Linear probing of every layer."""

    probe: Annotated[
        Path | None,
        typer.Option(
            metavar="LABELS",
            help="TSV of names and labels: fit a linear probe on each layer and cross-validate it.",
        ),
    ] = None
    folds: Annotated[int, typer.Option(min=2, help="Number of cross-validation folds.")] = 5
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Random seed of the folds.")] = 0
    plot: Annotated[
        Path | None, typer.Option(help="Plot the probe scores to this file: x.png, x.pdf or x.svg.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class OutputOptions(JSONOptions, panel="Output"):
    """Output file."""

    output: Annotated[
        Path | None,
        typer.Option("--output", "-O", help="File to write: x.safetensors, x.npz or x.parquet."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(OutputOptions, ModelOptions, ProbeOptions, VectorOptions, InputOptions):
    """Options of `evo2 embed`.

    Raises:
        UserError: A value is out of range, or two options exclude each other.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source == Path("-"):
            raise UserError("evo2 embed reads its input twice; give a file instead of stdin")
        if self.output is None and self.probe is None:
            raise UserError(f"give an --output to write: x{', x'.join(SUFFIXES)}")
        if self.plot is not None and self.probe is None:
            raise UserError(f"--plot {self.plot} plots the scores of a probe; give --probe as well")
        if self.pooling is Pooling.NONE and self.features is not None:
            raise UserError(
                "--features are pooled over, but --pooling none keeps every position; leave one out"
            )
        if self.pooling is Pooling.NONE and self.probe is not None:
            raise UserError(
                "--probe needs one vector per name, but --pooling none gives one per position; "
                "leave one out"
            )
        if self.feature_type is not None and self.features is None and self.reference is None:
            raise UserError(
                f"--feature-type {self.feature_type}: needs a GFF, given with --features"
            )
