"""What teaches a small model to copy: recall by rotary base and by the windows it was trained on.

    python -m tests.benchmarks.recall

A model of one block of each kind reads random DNA, in which nothing can be predicted but the copies
that `data.repeats` puts into every window. "windows" are their lengths, one after the other: the
first has half of the tokens, and the others share the rest. "learned after" is the first million
tokens after which a mean of 20 steps was a tenth of a bit below the two bits of random bases.
Recall is that of `evo2 eval needle`, the mean over depths. Finished runs are not repeated.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np

from evo2cli import console
from evo2cli.tokenize.options import TokenizeOptions
from evo2cli.tokenize.run import tokenize_files
from evo2cli.train.run import train_recipe
from evo2cli.training.options import RunOptions
from tests.benchmarks.gpu import opening
from tests.benchmarks.layouts import measure_recall, read_metrics

CONTEXT = 8_192
BASES = (1e4, 1e6, 1e8)  # of the rotary frequencies
WINDOWS = ((8_192,), (256, 2_048, 8_192), (256, 512, 1_024, 2_048, 4_096, 8_192))
RECORDS, RECORD = 64, 1_000_000  # of random bases
MEAN = 20  # steps
LEARNED = 1.9  # bits
RECIPE = """\
{start}
output = "{output}"
[data]
sources = [{{ path = "{tokens}" }}]
repeats = 1.0
inverted_repeats = 0.0
[batch]
length = {length}
sequences = {sequences}
[optimizer]
steps = {steps}
warmup_steps = {warmup}
learning_rate = 2e-3
min_learning_rate = 2e-4
"""
SHAPE = """\
model = "models/toy"
shape.stripes = "SMLA"
shape.width = 128
shape.num_heads = 2
shape.mlp_width = 352
shape.num_short_filter_groups = 8
shape.num_medium_filter_groups = 8
shape.context = {context}
shape.rotary_base = {base}"""


def write_random_dna(folder: Path) -> Path:
    """A token set of random bases."""
    tokens = folder / "tokens"
    if not tokens.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(0)
        letters = np.frombuffer(b"ACGT", np.uint8)
        with (folder / "random.fa").open("wb") as file:
            for number in range(RECORDS):
                record = letters[random.integers(4, size=RECORD, dtype=np.uint8)]
                file.write(b">%d\n%b\n" % (number, record.tobytes()))
        tokenize_files(
            TokenizeOptions(files=(folder / "random.fa",), output=tokens, valid_fraction=0)
        )
    return tokens


def train(base: float, windows: tuple[int, ...], arguments: argparse.Namespace) -> list[Path]:
    """Train on windows of each length in turn; returns the folders of the runs."""
    tokens = write_random_dna(arguments.runs)
    start = SHAPE.format(context=CONTEXT, base=base)
    others = len(windows) - 1
    shares = [0.5, *[0.5 / others] * others] if others else [1.0]
    outputs: list[Path] = []
    for number, length in enumerate(windows):
        name = f"base{base:.0e}-" + "-".join(map(str, windows[: number + 1]))
        output = arguments.runs / name
        steps = max(round(arguments.tokens * shares[number]) // arguments.batch, 2)
        recipe = arguments.runs / f"{name}.toml"
        recipe.write_text(
            RECIPE.format(
                start=start,
                output=output,
                tokens=tokens,
                length=length,
                sequences=max(arguments.batch // length, 1),
                steps=steps,
                warmup=min(100, steps // 2),
            )
        )
        console.say(f"== {name}")
        train_recipe(RunOptions(recipe=recipe, device=arguments.device))
        start = f'init = "{output}/final"'
        outputs.append(output)
    return outputs


def learned_after(runs: list[Path]) -> float | None:
    """Million tokens before the loss was below `LEARNED`; None if it never was."""
    before = 0
    for run in runs:
        records = read_metrics(run)
        for at in range(MEAN, len(records) + 1):
            if statistics.mean(record["bits"] for record in records[at - MEAN : at]) < LEARNED:
                return (before + records[at - 1]["tokens"]) / 1e6
        before += records[-1]["tokens"]
    return None


def main() -> None:
    """Run all; the table is written anew after each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("recall-runs"))
    parser.add_argument("--out", type=Path, default=Path("recall.md"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tokens", type=int, default=100_000_000, help="of each run")
    parser.add_argument("--batch", type=int, default=131_072, help="tokens of a step")
    parser.add_argument("--lengths", default="512,2k,8k", help="of texts with a needle")
    parser.add_argument("--needles", type=int, default=4, help="texts at each length and depth")
    parser.add_argument("--only", default="", help="e.g. 1e+06-512")
    arguments = parser.parse_args()
    rows = []
    for windows in WINDOWS:
        for base in BASES:
            if arguments.only not in f"{base:.0e}-" + "-".join(map(str, windows)):
                continue
            outputs = train(base, windows, arguments)
            recall = measure_recall(outputs[-1], arguments)
            if not rows:
                header = ["rotary base", "windows", "learned after, million tokens", "bits"]
                header += [f"recall at {length:,}" for length in recall]
                rows = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)]
            after = learned_after(outputs)
            bits = statistics.mean(record["bits"] for record in read_metrics(outputs[-1])[-MEAN:])
            cells = [f"{base:.0e}", ", ".join(f"{length:,}" for length in windows)]
            cells += ["" if after is None else f"{after:.0f}", f"{bits:.3f}"]
            cells += [f"{accuracy:.3f}" for accuracy in recall.values()]
            rows.append("| " + " | ".join(cells) + " |")
            arguments.out.write_text(opening() + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
