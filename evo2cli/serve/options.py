"""Options of `evo2 serve`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from evo2cli.errors import UserError
from evo2cli.options import ModelOptions, Options, flag


@dataclass(frozen=True, kw_only=True)
class AddressOptions(Options, panel="Address"):
    """The address, and keys."""

    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen on. The default accepts requests from this machine only, "
            "0.0.0.0 from every network.",
        ),
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Answer only requests with one of these keys (one per line), sent as "
            "'Authorization: Bearer KEY'.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class LimitOptions(Options, panel="Limits"):
    """Limits of requests and of the server."""

    batch_size: Annotated[
        int,
        typer.Option(
            min=1,
            help="Maximum number of sequences generated together; halved until they fit in memory.",
        ),
    ] = 16
    queue: Annotated[
        int,
        typer.Option(
            min=0,
            help="Maximum number of waiting requests; further ones are answered with 429 and "
            "Retry-After.",
        ),
    ] = 256
    max_bases: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Maximum length in bases of a sequence (with the bases generated after it), a "
            "window or a region.",
            show_default="16384, or the model's context if that is less",
        ),
    ] = None
    max_layers: Annotated[
        int, typer.Option(min=1, help="Maximum number of layers in a request.")
    ] = 100
    max_body: Annotated[int, typer.Option(min=1, help="Maximum size of a request in MiB.")] = 4
    timeout: Annotated[
        float, typer.Option(min=0, help="End requests that take longer than this many seconds.")
    ] = 600.0
    grace: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds to finish accepted requests after SIGTERM or Ctrl-C.",
        ),
    ] = 30.0


@dataclass(frozen=True, kw_only=True)
class McpOptions(Options, panel="MCP"):
    """The tools for agents."""

    mcp: Annotated[
        bool,
        typer.Option(
            "--mcp",
            help="Serve one agent over stdin and stdout. Without this option, the same tools are "
            "served over HTTP at /mcp.",
        ),
    ] = False
    mcp_root: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Let tools read FASTA and VCF files in this folder; without it, they read none.",
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
        typer.Option(metavar="FILE", help="Genes of the genome, GFF3 or GTF; may be gzipped."),
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
            help="At startup, score N random SNVs again at a higher precision to measure the "
            "rounding noise, and mark every EVO2_DELTA that is smaller than it as NOISE.",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gff", "background", "precision_check"):
            if self.reference is None and getattr(self, name) is not None:
                raise UserError(f"{flag(type(self), name)}: needs the genome; give --reference")
