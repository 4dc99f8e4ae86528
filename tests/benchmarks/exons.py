"""Exons of human genes, base by base: what fine-tuning reaches beside simple baselines.

    pip download --no-deps spliceai && unzip spliceai-*.whl   # never a dependency of this project
    python -m tests.benchmarks.exons build spliceai/annotations/grch37.txt --data exons.npz
    python -m tests.benchmarks.exons run --data exons.npz --base nano --out exons.md

`build` writes windows of genes and their labels, two bits and one bit a base; `run` needs nothing
else. Genes are those of the annotation that comes with SpliceAI, one transcript each, and read
forward; a base is an exon's if that transcript has it. A gene that overlaps one before it is left
out. Train: chr20 up to 52 Mb; valid: the rest of chr20; test: X:46.7-58M. Half of the windows of
each part have an exon. Language models that were trained on the corpus of this project have seen
chr20, without labels; the test region is held out there.

Numbers depend on the hardware only by rounding, seconds and memory are those of the machine.

N windows, W bases of a window.
"""

import argparse
import gzip
import json
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evo2cli import console
from evo2cli.embed.probe import import_sklearn
from evo2cli.finetune.annotations import read_annotated
from evo2cli.finetune.metrics import measure
from evo2cli.finetune.options import FinetuneOptions
from evo2cli.finetune.run import finetune
from evo2cli.finetune.tasks import Labels, Task
from tests.benchmarks.gpu import opening

CORPUS = Path(__file__).parents[3] / "shared" / "data" / "corpus"
PREFIX = "vertebrate_Homo_sapiens_GRCh37"
LABELS = Labels(Task.TOKENS, ("0", "1"), "1 is a base of an exon")
SEED = 0
BASES = b"ACGT"
FITTED = 20_000  # bases that the baseline is fitted on
AROUND, KMER, SPAN = 10, 4, 60  # one-hot bases, and frequencies of k-mers, on each side of a base
METRICS = {"auroc": "AUROC", "auprc": "AUPRC", "macro_f1": "macro F1", "mcc": "MCC"}


class Region(NamedTuple):
    """A part of a chromosome that a file of the corpus holds."""

    file: str
    chromosome: str
    offset: int  # of the first base of the file
    start: int
    end: int
    windows: int  # at most


REGIONS = {
    "train": Region(f"train/{PREFIX}_chr20.fa.gz", "20", 0, 0, 52_000_000, 8000),
    "valid": Region(f"train/{PREFIX}_chr20.fa.gz", "20", 0, 52_000_000, 64_000_000, 1000),
    "test": Region(
        f"valid/{PREFIX}_chrX_46700001-58000000.fa.gz",
        "X",
        46_700_000,
        46_700_000,
        58_000_000,
        2000,
    ),
}


class Windows(NamedTuple):
    """Windows of one part.

    Attributes:
        names: Where they are in their file.
        codes: Bases as 0 to 3 for A, C, G, T, uint8 [N, W].
        labels: Whether a base is an exon's, bool [N, W].
    """

    names: list[str]
    codes: NDArray[np.uint8]
    labels: NDArray[np.bool_]

    def take(self, rows: NDArray[np.int64]) -> "Windows":
        """Some of them."""
        return Windows([self.names[row] for row in rows], self.codes[rows], self.labels[rows])


def build(annotation: Path, corpus: Path, width: int) -> dict[str, Windows]:
    """Cut the windows of all parts from the genome."""
    generator = np.random.default_rng(SEED)
    return {
        name: _cut(region, annotation, corpus, width, generator) for name, region in REGIONS.items()
    }


def _cut(
    region: Region, annotation: Path, corpus: Path, width: int, generator: np.random.Generator
) -> Windows:
    with TemporaryDirectory() as folder:
        genome, genes = Path(folder) / "genome.fa", Path(folder) / "genes.gff3"
        with gzip.open(corpus / region.file) as file:
            _, _, bases = file.read().partition(b"\n")
        genome.write_bytes(b">" + region.chromosome.encode() + b"\n" + bases)
        genes.write_text("".join(_gff(region, annotation)))
        examples, _ = read_annotated(
            genome, genes, width, kinds=("exon",), regions=genes, region_kind="gene"
        )
    labels = examples.labels
    assert isinstance(labels, list)
    whole = [
        row
        for row, sequence in enumerate(examples.sequences)
        if len(sequence) == width and not set(sequence) - set("ACGT")
    ]
    with_exon = [row for row in whole if labels[row].any()]
    without = [row for row in whole if not labels[row].any()]
    each = min(region.windows // 2, len(with_exon), len(without))
    chosen = np.sort(
        [*generator.permutation(with_exon)[:each], *generator.permutation(without)[:each]]
    )
    letters = np.stack(
        [np.frombuffer(examples.sequences[row].encode(), np.uint8) for row in chosen]
    )
    codes = np.searchsorted(np.frombuffer(BASES, np.uint8), letters).astype(np.uint8)
    return Windows(
        [examples.names[row] for row in chosen],
        codes,
        np.stack([labels[row] for row in chosen]).astype(bool),
    )


def _gff(region: Region, annotation: Path) -> Iterable[str]:
    """The genes that lie in the region and overlap no gene before them, and their exons."""
    end_before = region.start
    _, *lines = annotation.read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    genes = sorted((int(row[3]), row) for row in rows if row[1] == region.chromosome)
    for index, (start, row) in enumerate(genes):
        name, _, strand, _, end, starts, ends = row
        if start < end_before or int(end) > region.end:
            continue
        end_before = int(end)
        # 0-based, half-open, from the start of the file.
        spans = zip(starts.split(",")[:-1], ends.split(",")[:-1], strict=True)
        for kind, first, last in [("gene", start, end), *(("exon", *span) for span in spans)]:
            columns = [region.chromosome, ".", kind, int(first) - region.offset + 1]
            columns += [int(last) - region.offset, ".", strand, ".", f"ID={name}-{index}"]
            yield "\t".join(map(str, columns)) + "\n"


def write(parts: dict[str, Windows], path: Path) -> None:
    """Write windows, two bits and one bit a base."""
    arrays: dict[str, Any] = {}
    for name, windows in parts.items():
        bits = np.stack([windows.codes >> 1, windows.codes & 1])
        arrays |= {
            f"{name}_bases": np.packbits(bits, axis=-1),
            f"{name}_labels": np.packbits(windows.labels, axis=-1),
            f"{name}_names": np.array(windows.names),
            "width": np.array(windows.codes.shape[1]),
        }
    np.savez_compressed(path, **arrays)


def read(path: Path) -> dict[str, Windows]:
    """Read what `write` wrote."""
    with np.load(path) as arrays:
        width = int(arrays["width"])
        parts = {}
        for name in REGIONS:
            high, low = np.unpackbits(arrays[f"{name}_bases"], axis=-1, count=width)
            labels = np.unpackbits(arrays[f"{name}_labels"], axis=-1, count=width).astype(bool)
            parts[name] = Windows([*map(str, arrays[f"{name}_names"])], 2 * high + low, labels)
        return parts


def write_table(windows: Windows, path: Path) -> None:
    """A table for `evo2 finetune`: a sequence, and a digit for each of its bases."""
    lines = ["name\tsequence\tlabel\n"]
    for name, codes, labels in zip(*windows, strict=True):
        sequence = np.frombuffer(BASES, np.uint8)[codes].tobytes().decode()
        lines.append(
            f"{name}\t{sequence}\t{(labels + ord('0')).astype(np.uint8).tobytes().decode()}\n"
        )
    path.write_text("".join(lines))


def baseline(train: Windows, test: Windows) -> list[NDArray[np.float64]]:
    """Probabilities [W, 2] for each window of test, by a linear model of what is around a base.

    It knows the bases on both sides, and the frequencies of 4-mers further around, in the whole
    neighbourhood: splice sites, and composition.
    """
    sklearn = import_sklearn("a baseline")
    generator = np.random.default_rng(SEED)
    share = FITTED / train.labels.size
    features, truth = [], []
    for codes, labels in zip(train.codes, train.labels, strict=True):
        drawn = generator.random(len(labels)) < share
        features.append(around(codes)[drawn])
        truth.append(labels[drawn])
    model = sklearn.pipeline.make_pipeline(
        sklearn.preprocessing.StandardScaler(),
        sklearn.linear_model.LogisticRegression(C=0.01, max_iter=1000),
    ).fit(np.concatenate(features), np.concatenate(truth))
    return [model.predict_proba(around(codes)) for codes in test.codes]


def around(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Features [W, F] of each base: one-hot bases beside it, and shares of the 4-mers around it."""
    padded = np.pad(codes, AROUND, constant_values=4)
    near = np.lib.stride_tricks.sliding_window_view(padded, 2 * AROUND + 1)
    one_hot = np.eye(5, 4, dtype=np.float32)[near].reshape(len(codes), -1)
    count = len(codes) - KMER + 1
    words = sum(
        (codes[i : i + count].astype(np.int64) * 4 ** (KMER - 1 - i) for i in range(KMER)), 0
    )
    seen = np.zeros((len(codes) + 1, 4**KMER), np.float32)
    seen[1 + np.arange(count), words] = 1
    seen = seen.cumsum(axis=0)
    position = np.arange(len(codes))
    low, high = np.maximum(position - SPAN, 0), np.minimum(position + SPAN, len(codes))
    shares = (seen[high] - seen[low]) / (high - low)[:, None]
    return np.concatenate([one_hot, shares], axis=1)


def run(parts: dict[str, Windows], base: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run of `evo2 finetune`, which is not repeated if it has finished."""
    tables = arguments.runs / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    for name, windows in parts.items():
        write_table(windows, tables / f"{name}.tsv")
    return finetune(
        FinetuneOptions(
            data=tables / "train.tsv",
            valid=tables / "valid.tsv",
            test=tables / "test.tsv",
            model=base,
            output=arguments.runs / f"{Path(base).name}-{row_name(arguments)}".replace(" ", "-"),
            device=arguments.device,
            method=arguments.method,
            scratch=arguments.scratch,
            strand="both",
            layer="last",
            epochs=arguments.epochs,
            batch=arguments.batch,
            lr=arguments.lr,
            settings=tuple(arguments.settings),
        )
    )


def row_name(arguments: argparse.Namespace) -> str:
    """What a row calls the method."""
    return "from scratch" if arguments.scratch else str(arguments.method)


def table(rows: list[tuple[str, str, dict[str, Any], str, str]]) -> str:
    """Rows of base, method, metrics, number of trained parameters and seconds, in Markdown."""
    lines = [
        f"| base | method | {' | '.join(METRICS.values())} | trained | seconds |",
        "|---|---|" + "--:|" * (len(METRICS) + 2),
    ]
    for base, name, metrics, *rest in rows:
        cells = []
        for key in METRICS:
            middle, low, high = metrics.get(key, (float("nan"),) * 3)
            cells.append(f"{middle:.3f} ({low:.3f}-{high:.3f})" if high > low else f"{middle:.3f}")
        lines.append(f"| {' | '.join([base, name, *cells, *rest])} |")
    return "\n".join(lines) + "\n"


def describe(parts: dict[str, Windows]) -> str:
    """Sizes of the parts, and the share of exons."""
    return "; ".join(
        f"{name}: {windows.codes.shape[0]:,} windows of {windows.codes.shape[1]:,} bases, "
        f"{windows.labels.mean():.1%} of them in exons"
        for name, windows in parts.items()
    )


def main() -> None:
    """Build the data, or fine-tune on them and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build")
    building.add_argument("annotation", type=Path, help="grch37.txt of SpliceAI")
    building.add_argument("--corpus", type=Path, default=CORPUS)
    building.add_argument("--window", type=int, default=1024)
    running = commands.add_parser("run")
    running.add_argument("--base", action="append", help="model; repeatable (default: nano)")
    running.add_argument("--method", choices=["lora", "full", "head"], default="lora")
    running.add_argument("--scratch", action="store_true", help="with full: random weights")
    running.add_argument("--rows", type=int, default=None, help="at most so many of each part")
    running.add_argument("--runs", type=Path, default=Path("exon-runs"))
    running.add_argument("--out", type=Path, default=Path("exons.md"))
    running.add_argument("--device", default="auto")
    running.add_argument("--epochs", type=float, default=3)
    running.add_argument("--batch", type=int, default=32)
    running.add_argument("--lr", type=float, default=None)
    running.add_argument("--set", dest="settings", action="append", default=[])
    for command in (building, running):
        command.add_argument("--data", type=Path, default=Path("exons.npz"))
    arguments = parser.parse_args()
    console.show_warnings()
    if arguments.command == "build":
        parts = build(arguments.annotation, arguments.corpus, arguments.window)
        write(parts, arguments.data)
        console.say(f"{describe(parts)}; {arguments.data.stat().st_size / 1e6:.1f} MB")
        return
    parts = {name: some(windows, arguments.rows) for name, windows in read(arguments.data).items()}
    begun = time.perf_counter()
    predicted = baseline(parts["train"], parts["test"])
    truth = [*parts["test"].labels.astype(np.int64)]
    found = measure(LABELS, truth, predicted, seed=SEED)
    metrics = {name: [value.value, value.low, value.high] for name, value in found.items()}
    seconds = time.perf_counter() - begun
    rows = [("", "4-mers and bases around, linear", metrics, "", f"{seconds:,.0f}")]
    for base in arguments.base or ["nano"]:
        report = run(parts, base, arguments)
        for name, measured in report["results"].items():
            label = row_name(arguments) if name == "model" else name
            owner = Path(base).name if name in ("model", "frozen probe") else ""
            rest = ("", "")
            if name == "model":
                rest = (f"{report['parameters']:,}", f"{report['seconds']:,.0f}")
            if owner or (owner, label) not in [row[:2] for row in rows]:
                rows.append((owner, label, measured, *rest))
        arguments.out.write_text(opening() + table(rows), encoding="utf-8")
        arguments.out.with_suffix(".json").write_text(json.dumps(rows), encoding="utf-8")


def some(windows: Windows, limit: int | None) -> Windows:
    """At most so many windows, evenly over the part."""
    if limit is None or limit >= len(windows.names):
        return windows
    return windows.take(np.linspace(0, len(windows.names) - 1, limit).astype(int))


if __name__ == "__main__":
    main()
