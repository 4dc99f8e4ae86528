"""Options shared by the commands that take a recipe: plan, train, launch and extend."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from evo2cli.options import DeviceOptions, JSONOptions, Options


@dataclass(frozen=True, kw_only=True)
class SettingsOptions(Options):
    """Changes to a recipe."""

    settings: Annotated[
        tuple[str, ...],
        typer.Option(
            "--set",
            metavar="TABLE.KEY=VALUE",
            help="Change one value of the recipe, e.g. optimizer.steps=1000; repeatable.",
        ),
    ] = ()


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """The folder of genomes, for recipes with [data.corpus]."""

    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FOLDER",
            help="Folder of genomes: FASTA files in its folders train and valid.",
            show_default="the recipe's data.corpus.path",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(JSONOptions, SettingsOptions):
    """A recipe, and changes to it."""

    recipe: Annotated[
        Path,
        typer.Argument(
            help="Recipe file, e.g. recipes/nano.toml, or the name of a shipped recipe, e.g. nano."
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class RunOptions(DataOptions, DeviceOptions, RecipeOptions):
    """A training run: the options that a launcher passes to every rank."""

    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-O",
            metavar="FOLDER",
            help="Folder for the run.",
            show_default="the recipe's output",
        ),
    ] = None
