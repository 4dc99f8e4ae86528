"""The card of a built-in model: all that is known of it, measured on the weights that are shipped.

    python -m tests.benchmarks.cards mini --weights checkpoints/mini/final --data FOLDER --brca1 VCF

With --weights, the weights are first written in bf16 to models/stripedhyena2/builtin/NAME, which
makes the folder a built-in model. Its card is card.json there, and README.md, written from it.
Measured are bits per base on the validation genomes of FOLDER, each beside the best Markov model of
results/markov.json; recall; and BRCA1 saturation genome editing, whose reference slice,
brca1_region.fa, lies beside the VCF. On a GPU this takes minutes; --windows makes it short.
"""

import argparse
import json
import math
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evo2cli import __version__, console
from evo2cli.data.documents import ArrayDocuments
from evo2cli.data.loader import fixed_windows
from evo2cli.eval.needle import find_needles
from evo2cli.eval.options import NeedleOptions, VariantsOptions
from evo2cli.eval.variants import evaluate_variants
from evo2cli.genome.fasta import read_records
from evo2cli.models import open_model
from evo2cli.options import ModelOptions, Strand
from evo2cli.train.corpus import by_domain, genomes
from evo2cli.training.loss import read_windows, target_weights, weighted_loss
from evo2cli.training.recipe_file import find_recipe, read_recipe
from stripedhyena2 import StripedHyena2, load, save
from stripedhyena2.checkpoint import read_checkpoint
from stripedhyena2.checkpoint.built_in import BUILT_IN
from stripedhyena2.costs import count_parameters
from tests.benchmarks.layouts import read_metrics

ROOT = Path(__file__).parents[2]
PHIX174 = ROOT / "examples" / "phix174.fa"
MARKOV = Path(__file__).parent / "results" / "markov.json"
CARD, PAGE, WEIGHTS = "card.json", "README.md", "model.safetensors"
CURVE_POINTS = 12
CONSEQUENCES = ("Canonical_splice", "Splice_region", "Missense", "Nonsense", "Synonymous")
NOT_FOR = (
    "It is a demonstration: it makes every command run anywhere at once, and it shows what this "
    "architecture learns from little data. It is not for conclusions about biology. It has seen a "
    "few hundred million bases of very few species. Its deltas are no evidence that a variant is "
    "harmful or harmless, and nobody should use them in a clinic. What it generates resembles DNA "
    "letter by letter, not as genes or genomes. For science use the published weights "
    "(`docs/weights.md`)."
)


def write_weights(source: str, folder: Path) -> None:
    """Write a trained model as a built-in one, in bf16; poles and frequencies keep fp32."""
    provenance = read_checkpoint(source).provenance
    corpus = provenance.get("settings", {}).get("data", {}).get("corpus")
    if corpus:
        corpus["path"] = Path(corpus["path"]).name  # where it lay is nobody's business
    save(load(source, dtype=torch.bfloat16), folder, provenance)


def bits_per_base(
    model: StripedHyena2, file: Path, *, windows: int | None = None, batch: int = 1
) -> tuple[float, int]:
    """Bits per base of the A, C, G and T of a FASTA, in either case, and how many were predicted.

    Windows of the model's context begin at the start of each record, and a base is predicted from
    those before it in its window; the first base of a record is not predicted.

    Args:
        model: The model, on its device.
        file: The FASTA.
        windows: At most so many windows, spread evenly; None for all.
        batch: Windows at a time.
    """
    texts = [record.sequence + b"\0" for record in read_records(file)]
    offsets = np.cumsum([0, *map(len, texts)])
    documents = ArrayDocuments(file.name, np.frombuffer(b"".join(texts), np.uint8), offsets)
    found = fixed_windows(
        documents,
        length=min(model.config.context, max(map(len, texts))),
        limit=windows or documents.num_tokens,
        packing="document",
    )
    weight_of_byte = target_weights(lowercase=1, end_of_document=0)
    device = next(model.parameters()).device
    nats = total = 0.0
    with torch.inference_mode(), console.progress(file.name, len(found), "windows") as bar:
        for start in range(0, len(found), batch):
            part = found[start : start + batch]
            tensors = (part.tokens, part.reverse, part.masked)
            given = [torch.from_numpy(array).to(device) for array in tensors]
            ids, targets, weights = read_windows(given[0], given[1], given[2], weight_of_byte)
            nats += weighted_loss(model(ids), targets, weights).item()
            total += weights.sum().item()
            bar.advance(len(part))
    return nats / total / math.log(2), round(total)


def measure_bits(model: StripedHyena2, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Bits per base on each validation genome, and those of the best Markov order."""
    known = {row["file"]: row for row in json.loads(MARKOV.read_text())["rows"]}
    corpus = read_recipe(find_recipe(Path("recipes/mini.toml"))).data.corpus
    assert corpus is not None
    rows = []
    for domain, files in by_domain(genomes(arguments.data / "valid"), corpus.domains).items():
        for file in files:
            bits, bases = bits_per_base(
                model, file, windows=arguments.windows, batch=arguments.batch
            )
            markov = known[file.name]
            rows.append(
                {
                    "genome": file.name.partition(".fa")[0],
                    "domain": domain,
                    "bases": bases,
                    "bits": round(bits, 4),
                    "markov_order": markov["best"],
                    "markov_bits": round(markov["bits"][str(markov["best"])], 4),
                }
            )
    return rows


def measure_recall(name: str, context: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Copy accuracy over all depths, at each power of two from 512 up to the context."""
    lengths = [1 << power for power in range(9, context.bit_length()) if 1 << power <= context]
    cells = find_needles(
        NeedleOptions(
            model=name,
            device=arguments.device,
            lengths=",".join(map(str, lengths)),
            repeats=arguments.needles,
        )
    )["cells"]
    rows = []
    for length in lengths:
        own = [cell for cell in cells if cell["length"] == length]
        accuracies = [cell["accuracy"] for cell in own]
        rows.append(
            {
                "length": length,
                "texts": len(own) * arguments.needles,
                "accuracy": round(float(np.mean(accuracies)), 3),
                "worst_depth": round(min(accuracies), 3),
                "gap": round(float(np.mean([cell["gap"] for cell in own])), 3),
            }
        )
    return rows


def measure_brca1(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """AUROC of -EVO2_DELTA on BRCA1: of all variants, and by consequence."""
    options = VariantsOptions(
        source=arguments.brca1,
        preset="brca1",
        reference=arguments.brca1.with_name("brca1_region.fa"),
        model=name,
        device=arguments.device,
        strand=Strand.FORWARD,
    )
    rows = evaluate_variants(options)["rows"]
    kept = [row for row in rows if row["group"] in ("all", *CONSEQUENCES)]
    names = ("group", "num_positive", "num_negative", "auroc", "auroc_low", "auroc_high")
    return [{name: row[name] for name in names} for row in kept]


def curve(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Some of the steps of a run, evenly spaced: those that were validated."""
    validated = [record for record in records if record.get("valid_bits") is not None]
    chosen = np.linspace(0, len(validated) - 1, min(CURVE_POINTS, len(validated))).round()
    names = ("step", "tokens", "bits", "valid_bits")
    return [{name: validated[at][name] for name in names} for at in chosen.astype(int).tolist()]


def training_runs(
    arguments: argparse.Namespace, provenance: dict[str, Any], known: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The runs that made the weights, each from those of the one before it; the first comes first.

    Args:
        arguments: Of the command.
        provenance: Of the weights.
        known: What an earlier card says of runs; hardware, seconds and curve are taken from it.
    """
    runs: list[dict[str, Any]] = []
    origin: dict[str, Any] | None = provenance
    while origin:
        run = {key: origin.get(key) for key in ("recipe", "set", "steps", "trained_tokens")}
        runs.insert(0, next((old for old in known if old.items() >= run.items()), run))
        origin = origin.get("before")
    if arguments.weights is not None:
        records = read_metrics(Path(arguments.weights).parent)
        seconds = round(sum(record["seconds"] for record in records)) if records else None
        runs[-1] |= {"hardware": arguments.hardware, "seconds": seconds, "curve": curve(records)}
    return runs


def data_facts(provenance: dict[str, Any]) -> list[dict[str, Any]]:
    """Files and bases of each source, and its share of the windows."""
    settings = provenance.get("settings", {}).get("data", {})
    weights = (settings.get("corpus") or {}).get("domains") or {}
    rows = []
    for source in provenance.get("sources", []):
        name = Path(source["path"]).name
        rows.append(
            {
                "domain": name,
                "files": len(source["manifest"]["sources"]),
                "bases": source["manifest"]["splits"]["train"]["bases"],
                "share": weights[name] / sum(weights.values()) if weights else None,
            }
        )
    return rows


def make_card(
    name: str, arguments: argparse.Namespace, before: Mapping[str, Any]
) -> dict[str, Any]:
    """Measure everything that was asked for.

    Args:
        name: The model.
        arguments: Of the command.
        before: The earlier card, from which the facts of its runs are kept.
    """
    folder = BUILT_IN / name
    checkpoint = read_checkpoint(folder)
    model = open_model(ModelOptions(model=name, device=arguments.device))
    exact = load(name)  # fp32 on the CPU, as a test repeats it
    machine = platform.processor() or platform.machine()
    if next(model.parameters()).is_cuda:
        machine = torch.cuda.get_device_name()
    card = {
        "name": name,
        "made_by": f"evo2cli {__version__}, torch {torch.__version__}",
        "measured": f"{datetime.now(UTC):%Y-%m-%d}, {machine}",
        "weights_sha256": sha256((folder / WEIGHTS).read_bytes()).hexdigest(),
        "stripes": checkpoint.config.stripes,
        "width": checkpoint.config.width,
        "context": checkpoint.config.context,
        "parameters": count_parameters(checkpoint.config),
        "training": training_runs(arguments, checkpoint.provenance, before.get("training", [])),
        "data": data_facts(checkpoint.provenance),
        "windows": arguments.windows,
        "bits": measure_bits(model, arguments),
        "phix174_bits": round(bits_per_base(exact, PHIX174)[0], 4),
        "recall": measure_recall(name, checkpoint.config.context, arguments),
    }
    if arguments.brca1 is not None:
        card["brca1"] = measure_brca1(name, arguments)
    return card


def page(card: dict[str, Any]) -> str:
    """The card in Markdown."""
    sections = [
        f"# {card['name']}",
        f"`{card['stripes']}` of width {card['width']}, {card['parameters']:,} parameters, trained "
        f"at {card['context']:,} bases. Written by `python -m tests.benchmarks.cards` from {CARD}, "
        f"which was measured on the shipped weights ({card['measured']}, {card['made_by']}). "
        "Weights: Apache-2.0.",
        "## What it is not for",
        NOT_FOR,
        "## Training",
        *map(_run, card["training"]),
    ]
    if len(card["training"]) > 1:
        tokens = sum(run["trained_tokens"] for run in card["training"])
        sections.append(f"Together {tokens:,} tokens, each run from the weights of the one before.")
    if card["data"]:
        sections += [
            _table(
                ["domain", "files", "bases", "share of the windows"],
                [
                    [
                        row["domain"],
                        row["files"],
                        row["bases"],
                        None if row["share"] is None else f"{row['share']:.1%}",
                    ]
                    for row in card["data"]
                ],
            ),
            "Both strands. Hashes of all files are in provenance.json.",
        ]
    some = "All bases" if card["windows"] is None else f"{card['windows']} windows of each"
    sections += [
        "## Bits per base",
        f"{some} of genomes that were held out, on the stored strand: each A, C, G and T from "
        f"those before it in its window of {card['context']:,}. Beside it the best Markov model of "
        "order 2 to 12 of the same training genomes, both strands, on the whole genome "
        "(tests/benchmarks/results/markov.md).",
        _table(
            ["genome", "bases", "bits", "Markov", "order", "below it by"],
            [_bits_row(row["genome"], [row]) for row in card["bits"]]
            + [_bits_row(f"all {domain}", rows) for domain, rows in _domains(card["bits"]).items()]
            + [_bits_row("mean of the genomes", card["bits"], by_genome=True)],
        ),
        f"phiX174, which is among its training genomes: {card['phix174_bits']:.4f} bits per base.",
        "## Recall",
        "A needle of 100 random bases in random DNA, `evo2 eval needle`, mean over depths of 0 to "
        "100 %; chance is 0.25.",
        _table(
            ["length", "texts", "copy accuracy", "at the worst depth", "gap, nats per base"],
            [
                [
                    row["length"],
                    row["texts"],
                    *(f"{row[key]:.3f}" for key in ("accuracy", "worst_depth", "gap")),
                ]
                for row in card["recall"]
            ],
        ),
    ]
    if "brca1" in card:
        sections += [
            "## BRCA1",
            "AUROC of -EVO2_DELTA, loss of function against the rest (saturation genome editing, "
            "doi:10.1038/s41586-018-0461-z), with a 95 % interval; `evo2 eval variants`. Groups "
            "with fewer than 5 of a kind have none.",
            _table(
                ["variants", "loss of function", "others", "AUROC"],
                [
                    [row["group"], row["num_positive"], row["num_negative"], _interval(row)]
                    for row in card["brca1"]
                ],
            ),
        ]
    return "\n\n".join(sections) + "\n"


def _run(facts: dict[str, Any]) -> str:
    parts = []
    if facts.get("steps"):
        parts.append(f"{facts['steps']:,} steps, {facts['trained_tokens']:,} tokens")
    if facts.get("recipe"):
        changes = "".join(f" --set {setting}" for setting in facts.get("set") or ())
        parts.append(f"`evo2 train {facts['recipe']}{changes}`")
    if facts.get("hardware"):
        parts.append(facts["hardware"])
    if facts.get("seconds"):
        parts.append(f"{facts['seconds']:,} s of steps")
    text = "; ".join(parts) + "."
    if not facts.get("curve"):
        return text
    rows = [
        [point["step"], point["tokens"], f"{point['bits']:.4f}", f"{point['valid_bits']:.4f}"]
        for point in facts["curve"]
    ]
    return f"{text}\n\n{_table(['step', 'tokens', 'bits, training', 'bits, validation'], rows)}"


def _domains(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each domain that has several genomes."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["domain"]].append(row)
    return {domain: group for domain, group in groups.items() if len(group) > 1}


def _bits_row(name: str, rows: Sequence[dict[str, Any]], *, by_genome: bool = False) -> list[Any]:
    """A row of the table: means by base, or by genome."""
    weights = None if by_genome else [row["bases"] for row in rows]
    bits, markov = (
        np.average([row[key] for row in rows], weights=weights) for key in ("bits", "markov_bits")
    )
    order = rows[0]["markov_order"] if len(rows) == 1 else None
    bases = sum(row["bases"] for row in rows)
    return [name, bases, f"{bits:.4f}", f"{markov:.4f}", order, f"{markov - bits:.4f}"]


def _interval(row: dict[str, Any]) -> str | None:
    if row["auroc"] is None:
        return None
    return f"{row['auroc']:.3f} ({row['auroc_low']:.3f}-{row['auroc_high']:.3f})"


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)]
    for row in rows:
        cells = [
            "" if cell is None else f"{cell:,}" if type(cell) is int else f"{cell}" for cell in row
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Write the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="name of the built-in model")
    parser.add_argument("--weights", help="trained model to ship, e.g. checkpoints/mini/final")
    parser.add_argument("--data", type=Path, required=True, help="folder with train and valid")
    parser.add_argument("--brca1", type=Path, help="VCF of the saturation genome editing")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--hardware", help="on which it was trained, e.g. 'one H200'")
    parser.add_argument("--windows", type=int, help="of each genome (default: all)")
    parser.add_argument("--batch", type=int, default=8, help="windows at a time")
    parser.add_argument("--needles", type=int, default=8, help="texts at each length and depth")
    arguments = parser.parse_args()
    console.show_warnings()
    folder = BUILT_IN / arguments.name
    before = json.loads((folder / CARD).read_text()) if (folder / CARD).is_file() else {}
    if arguments.weights is not None:
        write_weights(arguments.weights, folder)
    card = make_card(arguments.name, arguments, before)
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(page(card), encoding="utf-8")
    console.say(f"{folder / PAGE}: written")


if __name__ == "__main__":
    main()
