"""`evo2 eval`: a group, one command an evaluation."""

from pathlib import Path
from typing import Annotated

import typer

from evo2cli import console

app = typer.Typer(
    no_args_is_help=True,
    help="Evaluate a model: recall, and loss by position. docs/eval.md defines it.",
)

Model = Annotated[str, typer.Option(help="A checkpoint folder or file, or a name.")]
Config = Annotated[Path | None, typer.Option(help="Shape of a released file: its yml or TOML.")]
Seed = Annotated[int, typer.Option(help="Same seed, same numbers.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-O", help="x.tsv or x.json to write besides.")
]
Plot = Annotated[Path | None, typer.Option(help="Figure to draw: x.png, x.pdf or x.svg.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp64.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON on stdout.")]


@app.command()
def needle(
    model: Model = "nano",
    config: Config = None,
    lengths: Annotated[str, typer.Option(help="Bases of a whole text: 8192, 8k, 1M.")] = (
        "512,1k,2k"
    ),
    depths: Annotated[str, typer.Option(help="Percent of the haystack before the needle.")] = (
        "0,25,50,75,100"
    ),
    haystack: Annotated[
        Path | None, typer.Option(help="FASTA to cut haystacks from; else random DNA.")
    ] = None,
    needle_length: Annotated[int, typer.Option(help="Bases; the first half is the key.")] = 100,
    repeats: Annotated[int, typer.Option(min=1, help="Haystacks for each length.")] = 10,
    seed: Seed = 0,
    output: Output = None,
    plot: Plot = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Recall of a needle in a haystack, by length and depth.

    A random needle replaces bases of a haystack, whose end asks for it: half of the needle is given
    again, the rest is to be told. Copy accuracy has a chance level of 0.25; the likelihood gap, in
    nats a base, is what having read the needle is worth, by chance 0.
    """
    from evo2cli.workflows.eval_needle import NeedleOptions, find_needles, needle_page
    from evo2cli.workflows.models import open_model

    options = NeedleOptions.parse(
        model=model,
        lengths=lengths,
        depths=depths,
        haystack=haystack,
        needle_length=needle_length,
        repeats=repeats,
        seed=seed,
        output=output,
        plot=plot,
    )
    result = find_needles(
        lambda: open_model(model, config=config, device=device, dtype=dtype), options
    )
    if json:
        console.write_json(result)
    else:
        console.write_page(needle_page(result))


@app.command()
def context(
    genome: Annotated[Path, typer.Argument(help="FASTA to cut windows from; .gz too.")],
    model: Model = "nano",
    config: Config = None,
    against: Annotated[
        str | None, typer.Option(help="Another model, to compare with: before its extension.")
    ] = None,
    length: Annotated[
        str | None,
        typer.Option(help="Bases in a window: 32k, 1M.", show_default="the model's context"),
    ] = None,
    windows: Annotated[int, typer.Option(min=1, help="Windows to read.")] = 10,
    seed: Seed = 0,
    output: Output = None,
    plot: Plot = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Loss by position in a window: whether a longer context helps, or hurts.

    Mean loss, in nats a base, between positions that double; and over the context the model was
    first trained with, which an extension should leave as it was (`--against` what it was).
    """
    from evo2cli.workflows.eval_context import ContextOptions, context_page, read_context
    from evo2cli.workflows.models import open_model

    options = ContextOptions.parse(
        genome=genome,
        model=model,
        against=against,
        length=length,
        windows=windows,
        seed=seed,
        output=output,
        plot=plot,
    )
    result = read_context(
        lambda name: open_model(
            name, config=config if name == model else None, device=device, dtype=dtype
        ),
        options,
    )
    if json:
        console.write_json(result)
    else:
        console.write_page(context_page(result))
