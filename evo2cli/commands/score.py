"""`evo2 score`."""

from pathlib import Path
from typing import Annotated

import typer


def score(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT...",
            help="A FASTA of sequences; or variants: VCF, BCF, a table (TSV, CSV, Parquet: chrom, "
            "pos, ref, alt), or written out as chr22-1024-A-C. .gz too; - for stdin.",
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="A checkpoint folder or file, or a name.")] = "nano",
    config: Annotated[
        Path | None, typer.Option(help="Shape of a released model file: its yml or TOML.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option("-R", "--reference", help="Genome of a VCF (FASTA); else its ##reference."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-O", "--output", help="x.vcf, .tsv or .jsonl, .gz too; .bcf; .parquet; else stdout."
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(help="Bases around a variant.", show_default="8192, or the model's context"),
    ] = None,
    windows: Annotated[
        str,
        typer.Option(help="centred: as published; anchored: neighbours share them, 2x faster."),
    ] = "centred",
    indel_mode: Annotated[
        str,
        typer.Option(
            help="fixed: both windows of an allele are equally long, as published; anchored: they "
            "end at the same base of the genome."
        ),
    ] = "fixed",
    strand: Annotated[
        str | None,
        typer.Option(
            help="fwd, rc, or both: the mean of the two.",
            show_default="both for variants, fwd for a FASTA",
        ),
    ] = None,
    quantity: Annotated[
        str,
        typer.Option(
            "--score", help="What is written of an allele: delta (ALT - REF), ref, alt, or all."
        ),
    ] = "delta",
    precision_check: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Score N alleles once more, more precisely: tells the noise, and marks deltas "
            "within it.",
        ),
    ] = None,
    on_ref_mismatch: Annotated[
        str, typer.Option(help="REF is not what the genome says: skip, error, or swap with ALT.")
    ] = "skip",
    max_skipped: Annotated[
        float, typer.Option(help="Exit 3 if a larger fraction has no score.")
    ] = 1.0,
    regions: Annotated[
        list[str] | None,
        typer.Option(help="Only variants there: chr, chr:from-to (1-based); may be repeated."),
    ] = None,
    bed: Annotated[Path | None, typer.Option(help="Only variants in this BED's intervals.")] = None,
    min_qual: Annotated[float | None, typer.Option(help="Only records of at least this QUAL.")] = (
        None
    ),
    pass_only: Annotated[bool, typer.Option("--pass-only", help="Only FILTER PASS.")] = False,
    limit: Annotated[int | None, typer.Option(help="Only the first so many records.")] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only the I-th of N parts; `evo2 merge` joins them."),
    ] = None,
    saturate: Annotated[
        str | None, typer.Option(help="Every SNV of chr:from-to (1-based) in place of an INPUT.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Heat map of --saturate: x.png, x.pdf or x.svg.")
    ] = None,
    background: Annotated[
        Path | None,
        typer.Option(
            help="File of random variants' deltas, made or grown as needed: adds percentiles "
            "among those of the same kind."
        ),
    ] = None,
    track: Annotated[
        str | None,
        typer.Option(
            help="logprob (nats) or entropy (bits) of every base of a FASTA, or of --regions of "
            "it, as x.bedgraph, .gz too, or x.bw."
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="auto, cpu, cuda, cuda:1, ...; several share the work: cuda:0,cuda:1, or all."
        ),
    ] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp8, bf16, fp32, fp64.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="JSON lines.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what scoring variants would cost.")
    ] = False,
    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Model and computation, for a FASTA: 24G; the host's memory helps out.",
            show_default="what is free",
        ),
    ] = None,
    context_parallel: Annotated[
        int, typer.Option(min=1, help="Processes, one a GPU, that share each sequence of a FASTA.")
    ] = 1,
) -> None:
    """Score DNA by its log-likelihood, in nats.

    A FASTA gives the sum and the mean of each record. A VCF gives each allele the log-likelihood of
    the genome around it with the alternate minus that with the reference allele; negative means
    less likely. Windows in tables are 0-based and half-open.
    """
    options = locals()
    from evo2cli.errors import UserError
    from evo2cli.genome.source import STDIN
    from evo2cli.score.options import ScoreOptions
    from evo2cli.score.run import score as run

    words = options.pop("inputs") or []
    if (not words) == (saturate is None):
        raise UserError("give an INPUT to score, or a region by --saturate, and not both")
    run(
        ScoreOptions(
            source=Path(words[0]) if words else STDIN,
            further=tuple(words[1:]),
            score=options.pop("quantity"),
            regions=tuple(options.pop("regions") or ()),
            **options,
        )
    )
