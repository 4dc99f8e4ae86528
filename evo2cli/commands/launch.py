"""`evo2 launch`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from evo2cli.errors import UserError


def launch(
    recipe: Annotated[Path, typer.Argument(help="A recipe, e.g. recipes/nano.toml.")],
    local: Annotated[
        str | None,
        typer.Option(metavar="N|all", help="Start N ranks here, on GPUs, else on CPUs."),
    ] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Write a script for sbatch.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Change one value of the recipe."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder of the run; else the recipe's.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    launcher: Annotated[
        str | None, typer.Option(help="torchrun or deepspeed.", show_default="torchrun")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines that share the run.")] = 1,
    rendezvous: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Where several --local machines meet: on the first."
        ),
    ] = None,
    script: Annotated[
        Path | None, typer.Option("--script", "-O", help="File for the script; else stdout.")
    ] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="Slurm: ranks a machine.", show_default="8")
    ] = None,
    time: Annotated[str | None, typer.Option(help="Slurm: limit, e.g. 24:00:00.")] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm: queue.")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm: who pays.")] = None,
    job_name: Annotated[str | None, typer.Option(help="Slurm: else the recipe's name.")] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Slurm: any other option of sbatch."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, and show the command line instead.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Summary as JSON on stdout.")] = False,
) -> None:
    """Train on many GPUs: here, or under Slurm; run it again to go on after a stop."""
    from evo2cli.launch.run import Run, launch_local, launch_slurm
    from evo2cli.launch.slurm import Job

    run = Run(recipe, settings or (), output, device, json)
    if (local is not None) == slurm:
        raise UserError("evo2 launch: give either --local N or --slurm")
    for_slurm = {
        "--script": script,
        "--gpus-per-node": gpus_per_node,
        "--time": time,
        "--partition": partition,
        "--account": account,
        "--job-name": job_name,
        "--sbatch": sbatch,
    }
    if local is None:
        _refuse({"--rendezvous": rendezvous, "--launcher": launcher, "--dry-run": dry_run}, "local")
        job = Job(nodes, gpus_per_node or 8, time, partition, account, job_name, sbatch or ())
        launch_slurm(run, job, script)
    else:
        _refuse(for_slurm, "slurm")
        launch_local(
            run,
            local,
            nodes=nodes,
            rendezvous=rendezvous,
            launcher=launcher or "torchrun",
            dry_run=dry_run,
        )


def _refuse(options: Mapping[str, object], other: str) -> None:
    """Refuse options that mean nothing here, instead of passing over them."""
    for name, value in options.items():
        if value:
            raise UserError(f"{name} {value}: goes with --{other}")
