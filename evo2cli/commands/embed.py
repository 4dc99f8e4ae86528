"""`evo2 embed`."""

from pathlib import Path
from typing import Annotated

import typer

from evo2cli import console


def embed(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT", help="A FASTA of sequences; with -R, regions as BED or GFF. .gz too."
        ),
    ],
    model: Annotated[str, typer.Option(help="A checkpoint folder or file, or a name.")] = "nano",
    config: Annotated[
        Path | None, typer.Option(help="Shape of a released model file: its yml or TOML.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option("-R", "--reference", help="Genome (FASTA) that regions lie in.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-O", "--output", help="x.safetensors, x.npz or x.parquet.")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="all, or a comma list of names (blocks.12, blocks.12.mlp.down, norm) or block "
            "numbers (12, -1).",
            show_default="the block at 26/32 of the depth",
        ),
    ] = None,
    pooling: Annotated[
        str, typer.Option(help="mean, last or max; none keeps every position.")
    ] = "mean",
    features: Annotated[
        Path | None,
        typer.Option(help="BED, GFF3 or GTF: a vector for each feature in a sequence."),
    ] = None,
    feature_type: Annotated[
        str | None, typer.Option(help="Only features of this type of a GFF: gene, CDS, ...")
    ] = None,
    strand: Annotated[str, typer.Option(help="fwd, rc, or both: the mean of the two.")] = "fwd",
    probe: Annotated[
        Path | None,
        typer.Option(
            help="Labels, name<TAB>label: what each layer knows of them, cross-validated."
        ),
    ] = None,
    folds: Annotated[int, typer.Option(help="Of the cross-validation.")] = 5,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of its folds.")] = 0,
    plot: Annotated[
        Path | None, typer.Option(help="Figure of the probe: x.png, x.pdf or x.svg.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp8, bf16, fp32, fp64.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="JSON.")] = False,
) -> None:
    """Vectors of DNA: the outputs of a model's layers, pooled over sequences or features.

    Every sequence is read by itself, in pieces with exact state, and pooled as it is read. With
    --probe a linear model is fitted to labels from each layer, to tell which knows most of them.
    """
    from evo2cli.embed.options import EmbedOptions
    from evo2cli.embed.probe import probe_page
    from evo2cli.embed.run import embed as run

    result = run(
        EmbedOptions(
            source=source,
            model=model,
            config=config,
            reference=reference,
            output=output,
            layers=layers,
            pooling=pooling,
            features=features,
            feature_type=feature_type,
            strand=strand,
            probe=probe,
            folds=folds,
            seed=seed,
            plot=plot,
            device=device,
            dtype=dtype,
        )
    )
    widths = ", ".join(f"{layer} ({width:,})" for layer, width in result["layers"].items())
    shown = widths if len(result["layers"]) <= 3 else f"{len(result['layers'])} layers"
    console.say(f"{result['vectors']:,} vectors from {shown}")
    if json:
        console.write_json(result)
    elif result["probe"]:
        console.write_page(probe_page(result["probe"]))
