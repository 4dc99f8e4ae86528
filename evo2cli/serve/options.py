"""Options of `evo2 serve`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from evo2cli.errors import UserError
from evo2cli.options import ModelOptions, Options, flag


@dataclass(frozen=True, kw_only=True)
class AddressOptions(Options, panel="Address"):
    """Where the server listens, and whom it answers."""

    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen at. The default answers this machine only; 0.0.0.0 answers "
            "every network.",
        ),
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8000
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Answer only requests with one of these keys (one a line), sent as "
            "'Authorization: Bearer KEY'.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class LimitOptions(Options, panel="Limits"):
    """How much may be asked."""

    batch_size: Annotated[
        int,
        typer.Option(min=1, help="Sequences that grow together; halved until the memory suffices."),
    ] = 16
    queue: Annotated[
        int,
        typer.Option(
            min=0,
            help="Requests that may wait in the queue; further ones are answered with 429 and "
            "Retry-After.",
        ),
    ] = 256
    max_bases: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Bases of a sequence (with those generated after it), a window or a region.",
            show_default="16384, or the model's context if that is less",
        ),
    ] = None
    max_layers: Annotated[int, typer.Option(min=1, help="Layers that a request may ask for.")] = 100
    max_body: Annotated[int, typer.Option(min=1, help="Size of a request in MiB.")] = 4
    timeout: Annotated[
        float, typer.Option(min=0, help="Seconds after which a request that is not done is ended.")
    ] = 600.0
    grace: Annotated[
        float,
        typer.Option(
            min=0,
            help="After SIGTERM or Ctrl-C, seconds for requests that have been accepted.",
        ),
    ] = 30.0


@dataclass(frozen=True, kw_only=True)
class McpOptions(Options, panel="MCP"):
    """The tools for agents."""

    mcp: Annotated[
        bool,
        typer.Option(
            "--mcp",
            help="Answer one agent over stdin and stdout. Without this, the same tools are at "
            "/mcp of the address.",
        ),
    ] = False
    mcp_root: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Tools may read FASTA and VCF files below this folder; without it, none.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ServeOptions(McpOptions, LimitOptions, AddressOptions, ModelOptions, panel="Input"):
    """All options of `evo2 serve`.

    Raises:
        UserError: An option needs a genome, and none is given.
    """

    reference: Annotated[
        Path | None,
        typer.Option("-R", "--reference", metavar="FASTA", help="Genome of variants and regions."),
    ] = None
    gff: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Genes of the genome: a GFF3 or GTF; .gz is read too."),
    ] = None
    background: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Add EVO2_PCT, the percentile among random variants of the same kind, as in "
            "evo2 score. The file keeps their scores, and is created if it is missing.",
        ),
    ] = None
    precision_check: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="At the start, score N random SNVs also at a higher precision to measure the "
            "rounding noise, and mark every EVO2_DELTA that is smaller.",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gff", "background", "precision_check"):
            if self.reference is None and getattr(self, name) is not None:
                raise UserError(f"{flag(type(self), name)}: needs the genome; give --reference")
