"""Splice sites: what each base, method and layer reaches beside simple baselines, as a table.

    python -m tests.benchmarks.splice --base nano --base path/to/mini --out results.md

Three classes (donor, acceptor, and neither with GT or AG in the same genes), 600 bases around the
site; chr20 to train and validate, chrX to test. Every row is a run of `evo2 finetune` with the same
options, test set and seed; a run that is finished already is not repeated. Numbers depend on the
hardware only by rounding, seconds and memory are those of the machine that is named.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evo2cli import console
from evo2cli.finetune.options import FinetuneOptions
from evo2cli.finetune.run import finetune
from tests.benchmarks.gpu import opening

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "tasks" / "splice"
CLASSES = ("acceptor", "donor", "none")
BASELINES = ("chance", "4-mers, linear", "positions, linear")


@dataclass(frozen=True)
class Setting:
    """A row: a name and the options by which it differs."""

    name: str
    options: dict[str, Any]


def settings(epochs: float) -> list[Setting]:
    """Methods and layers; the site is in the middle, so the vicinity on both strands tells."""
    near: dict[str, Any] = {"strand": "both", "pool": "center:8"}
    tuned: dict[str, Any] = {"epochs": epochs, "batch": 32, "validations": 10, **near}
    return [
        Setting("head, mean", {"method": "head", "layer": "last"}),
        Setting("head, middle", {"method": "head", "layer": "last", **near}),
        Setting("head, middle, best layer", {"method": "head", "layer": "best", **near}),
        Setting("LoRA, mean", {"method": "lora", "epochs": epochs, "lr": 2e-3}),
        Setting("LoRA, middle", {"method": "lora", "lr": 2e-3, **tuned}),
        Setting(
            "LoRA, middle, half depth", {"method": "lora", "lr": 2e-3, "layer": "half", **tuned}
        ),
        Setting("full, middle", {"method": "full", "lr": 5e-4, **tuned}),
        Setting("from scratch, middle", {"method": "full", "lr": 1e-3, "scratch": True, **tuned}),
    ]


def run(base: str, setting: Setting, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    options = dict(setting.options)
    if options.get("layer") == "half":
        from stripedhyena2.checkpoint import read_checkpoint

        options["layer"] = str(read_checkpoint(base).config.depth // 2)
    name = f"{Path(base).name} {setting.name}".replace(",", "").replace(" ", "-")
    console.say(f"== {base}: {setting.name}")
    return finetune(
        FinetuneOptions(
            data=arguments.data / "train.tsv.gz",
            valid=arguments.data / "valid.tsv.gz",
            test=arguments.data / "test.tsv.gz",
            model=base,
            output=arguments.runs / name,
            device=arguments.device,
            length=arguments.length,
            settings=tuple(arguments.settings),
            **options,
        )
    )


def table(results: list[tuple[str, str, dict[str, Any]]]) -> str:
    """The results in Markdown."""
    lines = [
        "| base | method | layer | accuracy | MCC | "
        + " | ".join(f"AUPRC {name}" for name in CLASSES)
        + " | trained | seconds | GiB |",
        "|---|---|---|" + "--:|" * (len(CLASSES) + 5),
    ]

    def row(base: str, name: str, layer: str, metrics: dict[str, Any], *rest: str) -> str:
        cells = [_number(metrics.get(key)) for key in ("accuracy", "mcc")]
        cells += [_number(metrics.get(f"auprc {name}")) for name in CLASSES]
        return "| " + " | ".join([base, name, layer, *cells, *rest]) + " |"

    first = results[0][2]["results"]
    lines += [row("", name, "", first[name], "", "", "") for name in BASELINES if name in first]
    for base, name, report in results:
        layer = report["base"]["layer"]
        if name.startswith("head"):
            lines.append(
                row(base, "probe" + name[4:], layer, report["results"]["frozen probe"], "", "", "")
            )
        memory = report["memory_gib"]
        lines.append(
            row(
                base,
                name,
                layer,
                report["results"]["model"],
                f"{report['parameters']:,}",
                f"{report['seconds']:,.0f}",
                f"{memory:.1f}" if memory else "",
            )
        )
    return "\n".join(lines) + "\n"


def _number(value: Any) -> str:
    if value is None:
        return ""
    middle, low, high = value
    return f"{middle:.3f} ({low:.3f}-{high:.3f})" if high > low else f"{middle:.3f}"


def main() -> None:
    """Run all rows and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", action="append", help="model; repeatable (default: nano)")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--runs", type=Path, default=Path("splice-runs"))
    parser.add_argument("--out", type=Path, default=Path("splice.md"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--length", type=int, default=None)
    parser.add_argument("--only", default="", help="rows whose names contain this")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    arguments = parser.parse_args()
    console.show_warnings()
    results = []
    for base in arguments.base or ["nano"]:
        for setting in settings(arguments.epochs):
            if arguments.only in setting.name:
                results.append((Path(base).name, setting.name, run(base, setting, arguments)))
                arguments.out.write_text(opening() + table(results), encoding="utf-8")
                reports = [report for *_, report in results]
                arguments.out.with_suffix(".json").write_text(json.dumps(reports), encoding="utf-8")


if __name__ == "__main__":
    main()
