"""`evo2 train`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from evo2cli import console
from evo2cli.commands.plan import plan


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, e.g. recipes/nano.toml.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Change one value of the recipe."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-O", help="Folder of the run; else the recipe's.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe, tell what it needs, and end.")
    ] = False,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="GPUs that a dry run plans for.",
            show_default="as few as share a window",
        ),
    ] = None,
    gpu: Annotated[str, typer.Option(help="Their kind: h100-80gb, h200, ...")] = "h100-80gb",
    json: Annotated[bool, typer.Option("--json", help="Summary as JSON on stdout.")] = False,
) -> None:
    """Train a model; run the same command again to go on after a stop."""
    if dry_run:
        plan(recipe=recipe, gpus=gpus, gpu=gpu, settings=settings, json=json)
        return
    from evo2cli.train import train_recipe

    summary = train_recipe(recipe, settings=settings or (), output=output, device=device)
    if summary.pop("rank") > 0:
        return
    if json:
        console.write_json(summary)
    else:
        tell_training(summary)


def tell_training(summary: Mapping[str, Any]) -> None:
    """Say what a run has come to."""
    bits = summary["valid_bits"]
    quality = "not validated" if bits is None else f"{bits:.4f} bits per base on validation"
    where = f"{summary['output']}/final" if summary["finished"] else "stopped; run again to go on"
    console.say(
        f"{summary['steps']:,} steps, {summary['trained_tokens']:,} tokens, {quality}: {where}"
    )
