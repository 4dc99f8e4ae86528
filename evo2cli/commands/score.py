"""`evo2 score`."""

from pathlib import Path
from typing import Annotated

import typer


def score(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT", help="FASTA of sequences or VCF of variants; .gz too; - for stdin."
        ),
    ],
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
        typer.Option("-O", "--output", help="x.vcf, x.tsv or x.jsonl, .gz too; else stdout."),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(help="Bases around a variant.", show_default="8192, or the model's context"),
    ] = None,
    strand: Annotated[str, typer.Option(help="fwd, rc, or both: the mean of the two.")] = "fwd",
    on_ref_mismatch: Annotated[
        str, typer.Option(help="REF is not what the genome says: skip or error.")
    ] = "skip",
    max_skipped: Annotated[
        float, typer.Option(help="Exit 3 if a larger fraction has no score.")
    ] = 1.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp64.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="JSON lines.")] = False,
    context_parallel: Annotated[
        int, typer.Option(min=1, help="Processes, one a GPU, that share each sequence of a FASTA.")
    ] = 1,
) -> None:
    """Score DNA by its log-likelihood, in nats.

    A FASTA gives the sum and the mean of each record. A VCF gives each allele the log-likelihood of
    the genome around it with the alternate minus that with the reference allele; negative means
    less likely. Windows in tables are 0-based and half-open.
    """
    from evo2cli.workflows.score import score as run
    from evo2cli.workflows.score_options import ScoreOptions

    run(
        ScoreOptions(
            source=source,
            model=model,
            config=config,
            reference=reference,
            output=output,
            window=window,
            strand=strand,
            on_ref_mismatch=on_ref_mismatch,
            max_skipped=max_skipped,
            device=device,
            dtype=dtype,
            json=json,
            context_parallel=context_parallel,
        )
    )
