"""The batch script that trains a recipe under Slurm; its template is recipes/launch/slurm.sh."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

from evo2cli import __version__
from evo2cli.errors import UserError
from evo2cli.launch.options import LaunchOptions
from evo2cli.options import arguments
from evo2cli.training.options import RunOptions
from stripedhyena2.checkpoint.published import recipes_folder

CPUS_PER_GPU = 8  # threads of a rank; --sbatch cpus-per-task=N overrides it


def slurm_script(options: LaunchOptions, output: Path) -> str:
    """The batch script.

    Args:
        options: Options of `evo2 launch --slurm`.
        output: Folder of the run.

    Raises:
        UserError: An sbatch option has an invalid name, or a line break or quote in its value.
    """
    launch = ["evo2", "launch", *arguments(options, RunOptions)]
    made_by = ["evo2", "launch", *arguments(replace(options, script=None))]
    values = {
        "recipe": str(options.recipe),
        "gpus": f"{options.nodes} x {options.gpus_per_node}",
        "version": __version__,
        "made_by": " ".join(shlex.join(made_by).split()),
        "directives": "\n".join(_directives(options)),
        "gpus_per_node": str(options.gpus_per_node),
        "launch": shlex.join([*launch, "--local", str(options.gpus_per_node)]),
        "finished": shlex.quote(str(output / "final" / "provenance.json")),
    }
    template = (recipes_folder() / "launch" / "slurm.sh").read_text(encoding="utf-8")
    return re.sub(r"@(\w+)@", lambda match: values[match[1]], template)


def _directives(options: LaunchOptions) -> list[str]:
    """The #SBATCH lines."""
    values = {
        "job-name": options.job_name or options.recipe.stem,
        "nodes": str(options.nodes),
        "ntasks-per-node": "1",
        "gpus-per-node": str(options.gpus_per_node),
        "cpus-per-task": str(CPUS_PER_GPU * options.gpus_per_node),
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        "chdir": str(Path.cwd()),
        "output": "%x-%j.log",
        "open-mode": "append",
        "signal": "TERM@120",  # 120 s before the time limit
        "requeue": "",
    }
    for option in options.sbatch:
        key, _, value = option.removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z][a-z-]*", key):
            raise UserError(f"--sbatch {option}: must be key=value, a long option of sbatch")
        values[key] = value
    return [_directive(key, value) for key, value in values.items() if value is not None]


def _directive(key: str, value: str) -> str:
    if re.search(r'["\n\r]', value):
        raise UserError(f"{key} = {value!r}: sbatch allows no quotes and no line breaks")
    quoted = f'"{value}"' if re.search(r"[\s#]", value) else value
    return f"#SBATCH --{key}={quoted}" if value else f"#SBATCH --{key}"
