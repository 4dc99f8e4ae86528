"""From a recipe to a run on many GPUs: started here, or as a script for Slurm."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.files import open_output
from evo2cli.launch import checks
from evo2cli.launch.ranks import Group, command_line, run_ranks
from evo2cli.launch.slurm import Job, slurm_script
from evo2cli.training.recipe import Recipe
from evo2cli.training.recipe_file import find_recipe, read_recipe


@dataclass(frozen=True)
class Run:
    """What every rank is told: the arguments of `evo2 train`.

    Attributes:
        recipe: A recipe file, or the name of a shipped one.
        settings: `table.key=value`, laid over the recipe.
        output: Overrides the recipe's output folder.
        device: auto, cpu or cuda.
        json: Whether the first rank writes its summary to stdout.
    """

    recipe: Path
    settings: Sequence[str] = ()
    output: Path | None = None
    device: str = "auto"
    json: bool = False

    def arguments(self) -> list[str]:
        """As words of a command line."""
        return [
            str(self.recipe),
            *(word for setting in self.settings for word in ("--set", setting)),
            *([] if self.output is None else ["--output", str(self.output)]),
            *([] if self.device == "auto" else ["--device", self.device]),
            *(["--json"] if self.json else []),
        ]

    def read(self) -> tuple[Recipe, Path]:
        """The recipe as ranks will read it, and its file.

        Raises:
            UserError: It is missing or broken.
        """
        path = find_recipe(self.recipe)
        recipe = read_recipe(path, self.settings)
        if self.output is not None:
            recipe = recipe.model_copy(update={"output": self.output})
        return recipe, path


def launch_local(
    run: Run,
    processes: str,
    *,
    nodes: int = 1,
    rendezvous: str | None = None,
    launcher: str = "torchrun",
    dry_run: bool = False,
) -> None:
    """Train on this machine, a rank a GPU, or so many ranks on its CPUs.

    Args:
        run: What ranks are told.
        processes: How many, or "all".
        nodes: Machines that share the run, each with its own launch.
        rendezvous: host:port on the first of several machines.
        launcher: "torchrun" or "deepspeed".
        dry_run: Write the command line to stdout instead of running it.

    Raises:
        UserError: Recipe or machine will not do.
        RankError: A rank ended badly; carries its exit code.
    """
    recipe, path = run.read()
    group = Group(checks.count_processes(processes, run.device), nodes, rendezvous)
    _check_meeting(group, launcher)
    checks.check_gpus(group.world, run.device)
    checks.check_recipe(recipe, path, group.world)
    checks.check_output(recipe, path, group.world)
    program = ["-m", "evo2cli", "train", *run.arguments()]
    if dry_run:
        console.write(command_line(group, program, launcher) + "\n")
    else:
        run_ranks(group, program, launcher)


def launch_slurm(run: Run, job: Job, script: Path | None) -> None:
    """Write the script that trains under Slurm, to a file or to stdout.

    Raises:
        UserError: Recipe, output folder or an option will not do.
    """
    recipe, path = run.read()
    checks.check_recipe(recipe, path, job.world)
    checks.check_output(recipe, path, job.world)
    text = slurm_script(job, run.recipe, arguments=run.arguments(), output=recipe.output)
    with open_output(script) as write:
        write(text.encode())
    if script is not None:
        console.say(f"{script}: {job.nodes} x {job.gpus_per_node} GPUs; sbatch {script}")


def _check_meeting(group: Group, launcher: str) -> None:
    if launcher not in ("torchrun", "deepspeed"):
        raise UserError(f"--launcher {launcher}: must be torchrun or deepspeed")
    if group.rendezvous is None:
        if group.nodes > 1:
            raise UserError(f"--nodes {group.nodes}: say where they meet by --rendezvous HOST:PORT")
        return
    if launcher == "deepspeed":
        raise UserError("--launcher deepspeed is for one machine; several meet by torchrun")
    checks.check_rendezvous(group.rendezvous)
