"""Training curves of the 1B shape in bf16 and in FP8, from the same weights on the same windows.

    python -m tests.benchmarks.parity genome.fa.gz another.fa.gz --results FOLDER

Both runs are `evo2 train recipes/1b.toml`, side by side where there are two GPUs. FOLDER gets
parity.md, parity.png and the two curves, as parity.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from evo2cli import console
from evo2cli.tokenize.options import TokenizeOptions
from evo2cli.tokenize.run import tokenize_files
from tests.benchmarks.gpu import opening

ABOUT = """\
# Training curves of 1B in bf16 and in FP8

`evo2 train recipes/1b.toml`, the same weights and the same windows of 8,192 bases, warmup over a
third of the steps. Losses are means of blocks of steps, as the picture's are of ten.

Command: `python -m tests.benchmarks.parity GENOMES --results FOLDER`

"""
ROOT = Path(__file__).parents[2]
BLOCK = 50  # steps whose losses are averaged
PRECISIONS = {"bf16": "precision.fp8=false", "FP8": "precision.fp8=true"}


def main() -> None:
    """Train twice, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("genomes", nargs="+", type=Path)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "1b.toml")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--sequences", type=int, default=4, help="windows a step")
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        curves = train_both(arguments, Path(scratch))
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "parity.json").write_text(json.dumps(curves), encoding="utf-8")
    text = ABOUT + opening() + table(curves)
    (arguments.results / "parity.md").write_text(text, encoding="utf-8")
    draw({name: curve["loss"] for name, curve in curves.items()}, arguments.results / "parity.png")
    console.write(text)


def train_both(arguments: argparse.Namespace, scratch: Path) -> dict[str, dict[str, list[float]]]:
    """Loss and seconds of each step, by precision."""
    tokens = scratch / "tokens"
    tokenize_files(
        TokenizeOptions(files=tuple(arguments.genomes), output=tokens, valid_fraction=0.0)
    )
    settings = [
        f'data.sources=[{{path="{tokens}"}}]',
        f"batch.sequences={arguments.sequences}",
        f"optimizer.steps={arguments.steps}",
        f"optimizer.warmup_steps={arguments.steps // 3}",
        f"optimizer.learning_rate={arguments.rate}",
        f"optimizer.min_learning_rate={arguments.rate / 10}",
        f"checkpoint.every={arguments.steps}",
        "checkpoint.optimizer=false",
        *arguments.settings,
    ]
    together = torch.cuda.device_count() > 1
    runs = []
    for index, (name, precision) in enumerate(PRECISIONS.items()):
        command = [sys.executable, "-m", "evo2cli", "train", str(arguments.recipe)]
        command += ["--output", str(scratch / name)]
        for setting in [*settings, precision]:
            command += ["--set", setting]
        environment = {**os.environ}
        if together:
            environment["CUDA_VISIBLE_DEVICES"] = str(index)
        runs.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
        if not together:
            runs[-1].wait()
    if any(run.wait() for run in runs):
        raise SystemExit("a run failed")
    return {name: read_curve(scratch / name / "metrics.jsonl") for name in PRECISIONS}


def read_curve(metrics: Path) -> dict[str, list[float]]:
    """Loss in nats and seconds of each step."""
    steps = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [step for step in steps if "loss" in step]
    return {name: [step[name] for step in steps] for name in ("loss", "seconds")}


def table(curves: dict[str, dict[str, list[float]]]) -> str:
    """Mean losses of blocks of steps, and median times, in Markdown."""
    bf16, fp8 = (curves[name]["loss"] for name in PRECISIONS)
    lines = ["| steps | bf16, nats | FP8, nats | FP8 - bf16 |", "|---|--:|--:|--:|"]
    for start in range(0, len(bf16), BLOCK):
        one, other = (statistics.mean(loss[start : start + BLOCK]) for loss in (bf16, fp8))
        last = min(start + BLOCK, len(bf16))
        lines.append(f"| {start + 1}-{last} | {one:.4f} | {other:.4f} | {other - one:+.4f} |")
    seconds = [statistics.median(curves[name]["seconds"]) for name in PRECISIONS]
    lines.append(f"| s a step, median | {seconds[0]:.3f} | {seconds[1]:.3f} | |")
    return "\n".join(lines) + "\n"


def draw(losses: dict[str, list[float]], path: Path) -> None:
    """Both curves, averaged over ten steps, and their difference."""
    from matplotlib.figure import Figure

    figure = Figure((8, 4.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    smooth = {
        name: [statistics.mean(loss[max(0, i - 9) : i + 1]) for i in range(len(loss))]
        for name, loss in losses.items()
    }
    for name, loss in smooth.items():
        above.plot(range(1, len(loss) + 1), loss, label=name, linewidth=1)
    bf16, fp8 = smooth.values()
    below.plot(range(1, len(bf16) + 1), [b - a for a, b in zip(bf16, fp8, strict=True)], "k")
    above.set_ylabel("loss, nats a base")
    below.set_ylabel("FP8 - bf16")
    below.set_xlabel("step")
    above.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
