"""Context extension measured by recall: the stages of mini by every scheme, with a picture.

    python -m tests.benchmarks.extension --data FOLDER
    python -m tests.benchmarks.extension --data FOLDER --stages 32k --schemes interpolation,none

Every scheme starts from the same weights and goes through the stages, each from the weights of the
one before. Recall is that of `evo2 eval needle`, the mean over depths; beside it stand the bits per
base of the held-out genomes in windows of the stage's length. Finished runs are not repeated.
"""

import statistics
from pathlib import Path

from evo2cli import console
from stripedhyena2.extension import Scheme
from tests.benchmarks.gpu import opening
from tests.benchmarks.layouts import make_parser, measure_recall, read_metrics, train

Rows = dict[tuple[str, str], tuple[float, dict[int, float], float]]  # by scheme and stage


def table(rows: Rows) -> str:
    """The results in Markdown, a row for each scheme and stage."""
    lengths = list(next(iter(rows.values()))[1])
    header = ["scheme", "stage", "bits per base", *(f"recall at {n:,}" for n in lengths)]
    lines = ["| " + " | ".join([*header, "s a step"]) + " |"]
    lines.append("|---|---|" + "--:|" * (len(header) - 1))
    for (scheme, stage), (bits, recall, seconds) in rows.items():
        cells = [scheme, stage, f"{bits:.4f}", *(f"{recall[length]:.3f}" for length in lengths)]
        lines.append("| " + " | ".join([*cells, f"{seconds:.3f}"]) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: Rows, path: Path) -> None:
    """Recall by length, a panel for each stage and a line for each scheme."""
    from matplotlib.figure import Figure

    stages = list(dict.fromkeys(stage for _, stage in rows))
    figure = Figure(figsize=(4.5 * len(stages), 4), layout="constrained")
    panels = figure.subplots(1, len(stages), sharey=True, squeeze=False)[0]
    for panel, stage in zip(panels, stages, strict=True):
        for (scheme, of), (_, recall, _) in rows.items():
            if of == stage:
                panel.plot(list(recall), list(recall.values()), marker="o", label=scheme)
        panel.axhline(0.25, color="gray", linestyle=":")
        panel.set(xscale="log", title=f"trained at {stage}", xlabel="length, in bases")
        panel.set_xticks(list(recall), [f"{length // 1024}k" for length in recall])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("share of the needle's bases that are copied")
    panels[0].legend()
    figure.savefig(path, dpi=90)


def main() -> None:
    """Run all; table and picture are written anew after each stage."""
    parser = make_parser(__doc__, out="extension.md", runs="extension-runs")
    parser.add_argument("--stages", default="32k,128k")
    parser.add_argument("--schemes", default=",".join(Scheme))
    parser.add_argument("--lengths", default="2k,8k,32k,128k", help="of texts with a needle")
    parser.add_argument("--needles", type=int, default=4, help="texts at each length and depth")
    arguments = parser.parse_args()
    console.show_warnings()
    rows: Rows = {}
    for scheme in arguments.schemes.split(","):
        output: Path | None = None
        for stage in arguments.stages.split(","):
            start = [] if output is None else [f"init='{output.resolve() / 'final'}'"]
            output = arguments.runs / f"mini-{stage}-{scheme}"
            settings = [f"extend.scheme='{scheme}'", *arguments.settings, *start]
            train(f"extend/mini-{stage}.toml", output, settings, arguments)
            records = read_metrics(output)
            bits = next(r["valid_bits"] for r in reversed(records) if "valid_bits" in r)
            seconds = statistics.median(record["seconds"] for record in records)
            rows[scheme, stage] = bits, measure_recall(output, arguments), seconds
            arguments.out.write_text(opening() + table(rows), encoding="utf-8")
            draw(rows, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
