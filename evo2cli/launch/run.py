"""Start a recipe on many GPUs: on this machine, or by a batch script for Slurm."""

from pathlib import Path

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.files import open_output
from evo2cli.gpus import check_communication
from evo2cli.launch import checks
from evo2cli.launch.options import Launcher, LaunchOptions, LocalOptions, SlurmOptions
from evo2cli.launch.ranks import Group, command_line, run_ranks
from evo2cli.launch.slurm import slurm_script
from evo2cli.options import arguments, refuse
from evo2cli.training.options import RunOptions
from evo2cli.training.recipe import Recipe
from evo2cli.training.recipe_file import read_run, read_shape
from evo2cli.training.space import check_output


def launch_recipe(options: LaunchOptions) -> None:
    """Train on this machine, or write the script that trains under Slurm.

    Raises:
        UserError: The recipe cannot run on these ranks, or options are missing or exclude each
            other.
        OutputInUseError: Another run trains into the same folder.
        RankError: A rank failed; has its exit code.
    """
    if (options.local is not None) == options.slurm:
        raise UserError("evo2 launch: give either --local N or --slurm")
    recipe = read_run(options)
    if options.local is None:
        refuse(options, "--slurm only writes a script", LocalOptions)
        _write_script(options, recipe)
    else:
        refuse(options, "--local starts ranks without Slurm", SlurmOptions)
        _launch_local(options, options.local, recipe)


def _launch_local(options: LaunchOptions, local: str, recipe: Recipe) -> None:
    processes = checks.count_processes(local, options.device)
    group = Group(processes, options.nodes, options.rendezvous)
    if group.rendezvous is None:
        if group.nodes > 1:
            raise UserError(f"--nodes {group.nodes}: also needs --rendezvous HOST:PORT")
    elif options.launcher is Launcher.DEEPSPEED:
        raise UserError(
            "--launcher deepspeed: starts ranks on a single machine; use torchrun with --rendezvous"
        )
    else:
        checks.check_rendezvous(group.rendezvous)
    check_communication(group.world, options.device)
    checks.check_recipe(recipe, group.world)
    check_output(recipe, read_shape(recipe), group.world)
    program = ["-m", "evo2cli", "train", *arguments(options, RunOptions)]
    if options.dry_run:
        _write(None, command_line(group, program, options.launcher) + "\n")
    else:
        checks.check_no_run(recipe.output)
        run_ranks(group, program, options.launcher)


def _write_script(options: LaunchOptions, recipe: Recipe) -> None:
    checks.check_recipe(recipe, options.world)
    check_output(recipe, read_shape(recipe), options.world)
    text = slurm_script(options, recipe.output)
    _write(options.script, text)
    if options.script is not None:
        console.say(
            f"{options.script}: {options.nodes} x {options.gpus_per_node} GPUs; submit it with "
            f"sbatch {options.script}"
        )


def _write(path: Path | None, text: str) -> None:
    """Write shell code; file names keep their bytes, whatever the locale."""
    with open_output(path) as write:
        write(text.encode(errors="surrogateescape"))
