"""The batch script that trains a recipe under Slurm; its text is recipes/launch/slurm.sh."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evo2cli import __version__
from evo2cli.errors import UserError

CPUS_PER_GPU = 8  # for the ranks' own threads; --sbatch cpus-per-task=N where nodes have others


@dataclass(frozen=True)
class Job:
    """What is asked of Slurm.

    Attributes:
        nodes: Machines.
        gpus_per_node: GPUs on each, a rank a GPU.
        time: Limit as Slurm reads it, e.g. 24:00:00.
        partition: Queue.
        account: Who pays.
        name: In the queue and of the log; the recipe's when absent.
        options: Any further `key=value` or `key` of sbatch, over what is set here.
    """

    nodes: int = 1
    gpus_per_node: int = 8
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    name: str | None = None
    options: Sequence[str] = ()

    @property
    def world(self) -> int:
        """Ranks of the run."""
        return self.nodes * self.gpus_per_node


def slurm_script(job: Job, recipe: Path, *, arguments: Sequence[str], output: Path) -> str:
    """The script.

    Args:
        job: What is asked of Slurm.
        recipe: As the user named it.
        arguments: What `evo2 train` is told: the recipe, and what changes it.
        output: Folder of the run.

    Raises:
        UserError: An option is none, or has a line break or a quote in it.
    """
    launch = ["evo2", "launch", *arguments]
    values = {
        "recipe": str(recipe),
        "gpus": f"{job.nodes} x {job.gpus_per_node}",
        "version": __version__,
        "made_by": " ".join(shlex.join([*launch, "--slurm", *_asked(job)]).split()),
        "directives": "\n".join(_directives(job, recipe)),
        "gpus_per_node": str(job.gpus_per_node),
        "launch": shlex.join([*launch, "--local", str(job.gpus_per_node)]),
        "finished": shlex.quote(str(output / "final" / "provenance.json")),
    }
    return re.sub(r"@(\w+)@", lambda match: values[match[1]], _template())


def _template() -> str:
    package = Path(__file__).parents[1]
    folders = (package / "recipes", package.parent / "recipes")  # in a wheel, in a checkout
    file = next(folder for folder in folders if folder.is_dir()) / "launch" / "slurm.sh"
    return file.read_text(encoding="utf-8")


def _asked(job: Job) -> list[str]:
    """The options of `evo2 launch` that make this job."""
    named = {
        "--nodes": job.nodes,
        "--gpus-per-node": job.gpus_per_node,
        "--time": job.time,
        "--partition": job.partition,
        "--account": job.account,
        "--job-name": job.name,
    }
    asked = [word for name, value in named.items() if value for word in (name, str(value))]
    return asked + [word for option in job.options for word in ("--sbatch", option)]


def _directives(job: Job, recipe: Path) -> list[str]:
    """Lines for sbatch."""
    options = {
        "job-name": job.name or recipe.stem,
        "nodes": str(job.nodes),
        "ntasks-per-node": "1",
        "gpus-per-node": str(job.gpus_per_node),
        "cpus-per-task": str(CPUS_PER_GPU * job.gpus_per_node),
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "chdir": str(Path.cwd()),
        "output": "%x-%j.log",
        "open-mode": "append",
        "signal": "TERM@120",  # seconds before the end
        "requeue": "",
    }
    for option in job.options:
        key, _, value = option.removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z][a-z-]*", key):
            raise UserError(f"--sbatch {option}: must read key=value, a long option of sbatch")
        options[key] = value
    return [_directive(key, value) for key, value in options.items() if value is not None]


def _directive(key: str, value: str) -> str:
    if re.search(r'["\n\r]', value):
        raise UserError(f"{key} = {value!r}: sbatch takes no quote and no line break")
    quoted = f'"{value}"' if re.search(r"[\s#]", value) else value
    return f"#SBATCH --{key}={quoted}" if value else f"#SBATCH --{key}"
