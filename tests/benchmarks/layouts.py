"""Recipes compared: every recipe with every seed on the same windows, as a table with intervals.

    python -m tests.benchmarks.layouts --data FOLDER
    python -m tests.benchmarks.layouts --data FOLDER --family scale

The family `mini` has the block layouts at the size of mini, `scale` three sizes of one layout. A
run that is finished already is not repeated, and one that was stopped resumes, so the command can
be given again until all runs are there. Runs of one seed read the same windows in the same order,
so the difference to the first recipe is taken seed by seed. Intervals are 95 %, by Student's t over
the seeds. A step's seconds are the median.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evo2cli import console
from evo2cli.eval.needle import find_needles
from evo2cli.eval.options import NeedleOptions
from evo2cli.train.run import train_recipe
from evo2cli.training.options import RunOptions
from evo2cli.training.recipe_file import find_recipe
from tests.benchmarks.gpu import opening

FAMILIES = {
    "mini": ("se-mr-li", "li-li-li", "se-se-li", "mr", "transformer"),
    "scale": ("1.5m", "5m", "15m"),
}
# Student's t at 97.5 % by degrees of freedom. Source: any table of the distribution.
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
_SKIPPED = 10  # steps at the start, in which kernels are compiled


@dataclass(frozen=True)
class Run:
    """What a run reached.

    Attributes:
        parameters: Number of parameters.
        bits: Bits per base over all validation windows.
        bits_of: The same of each domain.
        recall: Copy accuracy of a needle, by the length of the text.
        seconds: Median of a step.
    """

    parameters: int
    bits: float
    bits_of: dict[str, float]
    recall: dict[int, float]
    seconds: float


def make_parser(about: str | None, *, out: str, runs: str) -> argparse.ArgumentParser:
    """A parser with the options of every comparison of whole runs."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--data", type=Path, required=True, help="folder with train and valid")
    parser.add_argument("--runs", type=Path, default=Path(runs))
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    return parser


def train(
    recipe: str, output: Path, settings: Sequence[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Train a shipped recipe, unless that is done; returns the summary of the run."""
    console.say(f"== {output.name}")
    summary = train_recipe(
        RunOptions(
            recipe=find_recipe(Path("recipes") / recipe),
            output=output,
            data=arguments.data,
            device=arguments.device,
            settings=tuple(settings),
        )
    )
    if not summary["finished"]:
        raise SystemExit(f"{output}: stopped; give the command again to resume")
    return summary


def run(name: str, seed: int, arguments: argparse.Namespace) -> Run:
    """Train a recipe of recipes/ablations with a seed, unless that is done, and measure it."""
    output = arguments.runs / f"{name}-seed{seed}"
    settings = [f"seed={seed}", *arguments.settings]
    summary = train(f"ablations/{name}.toml", output, settings, arguments)
    records = read_metrics(output)
    last = next(record for record in reversed(records) if "valid_bits" in record)
    seconds = [record["seconds"] for record in records]
    return Run(
        parameters=summary["parameters"],
        bits=last["valid_bits"],
        bits_of={Path(name).name: bits for name, bits in last.get("valid_bits_of", {}).items()},
        recall=measure_recall(output, arguments),
        seconds=statistics.median(seconds[_SKIPPED:] or seconds),
    )


def measure_recall(output: Path, arguments: argparse.Namespace) -> dict[int, float]:
    """Copy accuracy of the final model at each length, over all depths; kept beside the run."""
    result = output / f"needle-{arguments.lengths}-{arguments.needles}.json"
    if not result.is_file():
        find_needles(
            NeedleOptions(
                model=str(output / "final"),
                device=arguments.device,
                lengths=arguments.lengths,
                repeats=arguments.needles,
                output=result,
            )
        )
    cells = json.loads(result.read_text())["cells"]
    lengths = sorted({cell["length"] for cell in cells})
    return {
        length: statistics.mean(cell["accuracy"] for cell in cells if cell["length"] == length)
        for length in lengths
    }


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The records of all steps of a run; none if it has no file of them."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines]


def interval(values: Sequence[float], digits: int = 4) -> str:
    """Mean and half the width of its interval; the mean alone of a single value."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    half = T_975[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def table(results: dict[str, dict[int, Run]]) -> str:
    """The results in Markdown, a row for each recipe.

    Args:
        results: The runs of each recipe by seed.
    """
    first = next(iter(results.values()))
    domains = list(next(iter(first.values())).bits_of)
    lengths = list(next(iter(first.values())).recall)
    header = ["recipe", "parameters", "seeds", "bits per base", "above the first"]
    header += [*domains, *(f"recall at {length:,}" for length in lengths), "s a step"]
    lines = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)]
    for name, runs in results.items():
        above = [runs[seed].bits - first[seed].bits for seed in runs if seed in first]
        cells = [
            name,
            f"{next(iter(runs.values())).parameters:,}",
            f"{len(runs)}",
            interval([run.bits for run in runs.values()]),
            "" if runs is first or not above else interval(above),
            *(interval([run.bits_of[domain] for run in runs.values()]) for domain in domains),
            *(interval([run.recall[length] for run in runs.values()], 3) for length in lengths),
            f"{statistics.median(run.seconds for run in runs.values()):.3f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all recipes with all seeds; the table is written anew after each run."""
    parser = make_parser(__doc__, out="layouts.md", runs="layout-runs")
    parser.add_argument("--family", choices=FAMILIES, default="mini")
    parser.add_argument("--only", default="", help="recipes whose names contain this")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lengths", default="2k,8k", help="of texts with a needle")
    parser.add_argument("--needles", type=int, default=8, help="texts at each length and depth")
    arguments = parser.parse_args()
    console.show_warnings()
    names = [name for name in FAMILIES[arguments.family] if arguments.only in name]
    results: dict[str, dict[int, Run]] = {}
    for seed in range(arguments.seeds):
        for name in names:
            recipe = f"{arguments.family}-{name}"
            results.setdefault(recipe, {})[seed] = run(recipe, seed, arguments)
            arguments.out.write_text(opening() + table(results), encoding="utf-8")


if __name__ == "__main__":
    main()
