"""Options of `evo2 launch`."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from evo2cli.options import Options
from evo2cli.training.options import RunOptions


class Launcher(StrEnum):
    """The program that starts the ranks of a machine."""

    TORCHRUN = "torchrun"
    DEEPSPEED = "deepspeed"


@dataclass(frozen=True, kw_only=True)
class ModeOptions(Options):
    """Where ranks start: on this machine, or in a Slurm job."""

    local: Annotated[
        str | None,
        typer.Option(
            metavar="N|all", help="Start N ranks on this machine: one per GPU, or on its CPUs."
        ),
    ] = None
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Write a batch script for Slurm's sbatch.")
    ] = False
    nodes: Annotated[int, typer.Option(min=1, help="Number of machines that share the run.")] = 1


@dataclass(frozen=True, kw_only=True)
class LocalOptions(Options, panel="With --local"):
    """Options for --local only."""

    rendezvous: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="With --nodes: rendezvous endpoint on the first machine."
        ),
    ] = None
    launcher: Annotated[Launcher, typer.Option(help="Program that starts the ranks.")] = (
        Launcher.TORCHRUN
    )
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, then only print the command line."),
    ] = False


@dataclass(frozen=True, kw_only=True)
class SlurmOptions(Options, panel="With --slurm"):
    """Options for --slurm only."""

    script: Annotated[
        Path | None,
        typer.Option(
            "--script", "-O", metavar="FILE", help="File of the script.", show_default="stdout"
        ),
    ] = None
    gpus_per_node: Annotated[
        int, typer.Option(min=1, help="Number of GPUs per machine, with one rank each.")
    ] = 8
    time: Annotated[str | None, typer.Option(metavar="TIME", help="Time limit, e.g. 24:00:00.")] = (
        None
    )
    partition: Annotated[str | None, typer.Option(metavar="NAME", help="Partition (queue).")] = None
    account: Annotated[str | None, typer.Option(metavar="NAME", help="Account to charge.")] = None
    job_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the job.", show_default="the recipe's name"),
    ] = None
    sbatch: Annotated[
        tuple[str, ...],
        typer.Option(metavar="KEY=VALUE", help="Any other option of sbatch; repeatable."),
    ] = ()


@dataclass(frozen=True, kw_only=True)
class LaunchOptions(SlurmOptions, LocalOptions, ModeOptions, RunOptions):
    """Options of `evo2 launch`."""

    # As `RunOptions.output`, without -O: here -O is the script, the file that the command writes.
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FOLDER",
            help="Folder of the run.",
            show_default="the recipe's output",
        ),
    ] = None

    @property
    def world(self) -> int:
        """Number of ranks in the Slurm job."""
        return self.nodes * self.gpus_per_node
