"""`evo2 eval`: a group, one command an evaluation."""

from pathlib import Path
from typing import Annotated, Any

import typer

from evo2cli import console
from evo2cli.options import Command, Group

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    help="Evaluate a model: harmful variants, recall, loss by position. docs/eval.md defines it.",
)

Model = Annotated[str, typer.Option(help="A checkpoint folder or file, or a name.")]
Config = Annotated[Path | None, typer.Option(help="Shape of a released file: its yml or TOML.")]
Seed = Annotated[int, typer.Option(help="Same seed, same numbers.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-O", help="x.tsv or x.json to write besides.")
]
Plot = Annotated[Path | None, typer.Option(help="Figure to draw: x.png, x.pdf or x.svg.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, typer.Option(help="auto, fp8, bf16, fp32, fp64.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON on stdout.")]

Variants = Annotated[
    Path,
    typer.Argument(metavar="VCF", help="Labelled variants; scored first where EVO2_DELTA is not."),
]
Positive = Annotated[
    str | None, typer.Option(help="Values that are to score high, between commas.")
]
Negative = Annotated[str | None, typer.Option(help="Values that are to score low, between commas.")]
Consequence = Annotated[
    str | None,
    typer.Option(help="INFO key of consequences.", show_default="CSQ, ANN, BCSQ, MC, EFFECT"),
]
Reference = Annotated[
    Path | None,
    typer.Option("-R", "--reference", help="Genome (FASTA), to score; else its ##reference."),
]
Window = Annotated[
    int | None,
    typer.Option(help="Bases around a variant.", show_default="8192, or the model's context"),
]
Strand = Annotated[
    str | None,
    typer.Option(help="fwd, rc, or both: the mean of the two.", show_default="both"),
]
Scored = Annotated[Path | None, typer.Option(help="x.vcf or x.vcf.gz to keep what was scored in.")]


@app.command(cls=Command)
def needle(
    model: Model = "nano",
    config: Config = None,
    lengths: Annotated[str, typer.Option(help="Bases of a whole text: 8192, 8k, 1M.")] = (
        "512,1k,2k"
    ),
    depths: Annotated[str, typer.Option(help="Percent of the haystack before the needle.")] = (
        "0,25,50,75,100"
    ),
    haystack: Annotated[
        Path | None, typer.Option(help="FASTA to cut haystacks from; else random DNA.")
    ] = None,
    needle_length: Annotated[int, typer.Option(help="Bases; the first half is the key.")] = 100,
    repeats: Annotated[int, typer.Option(min=1, help="Haystacks for each length.")] = 10,
    seed: Seed = 0,
    output: Output = None,
    plot: Plot = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Recall of a needle in a haystack, by length and depth.

    A random needle replaces bases of a haystack, whose end asks for it: half of the needle is given
    again, the rest is to be told. Copy accuracy has a chance level of 0.25; the likelihood gap, in
    nats a base, is what having read the needle is worth, by chance 0.
    """
    from evo2cli.eval.needle import NeedleOptions, find_needles, needle_page
    from evo2cli.models import open_model

    options = NeedleOptions.parse(
        model=model,
        lengths=lengths,
        depths=depths,
        haystack=haystack,
        needle_length=needle_length,
        repeats=repeats,
        seed=seed,
        output=output,
        plot=plot,
    )
    result = find_needles(
        lambda: open_model(model, config=config, device=device, dtype=dtype), options
    )
    if json:
        console.write_json(result)
    else:
        console.write_page(needle_page(result))


@app.command(cls=Command)
def context(
    genome: Annotated[Path, typer.Argument(help="FASTA to cut windows from; .gz too.")],
    model: Model = "nano",
    config: Config = None,
    against: Annotated[
        str | None, typer.Option(help="Another model, to compare with: before its extension.")
    ] = None,
    length: Annotated[
        str | None,
        typer.Option(help="Bases in a window: 32k, 1M.", show_default="the model's context"),
    ] = None,
    windows: Annotated[int, typer.Option(min=1, help="Windows to read.")] = 10,
    seed: Seed = 0,
    output: Output = None,
    plot: Plot = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Loss by position in a window: whether a longer context helps, or hurts.

    Mean loss, in nats a base, between positions that double; and over the context the model was
    first trained with, which an extension should leave as it was (`--against` what it was).
    """
    from evo2cli.eval.context import ContextOptions, context_page, read_context
    from evo2cli.models import open_model

    options = ContextOptions.parse(
        genome=genome,
        model=model,
        against=against,
        length=length,
        windows=windows,
        seed=seed,
        output=output,
        plot=plot,
    )
    result = read_context(
        lambda name: open_model(
            name, config=config if name == model else None, device=device, dtype=dtype
        ),
        options,
    )
    if json:
        console.write_json(result)
    else:
        console.write_page(context_page(result))


@app.command(cls=Command)
def brca1(
    source: Variants,
    label: Annotated[str | None, typer.Option(help="INFO key.", show_default="CLASS")] = None,
    positive: Positive = None,
    negative: Negative = None,
    consequence: Consequence = None,
    model: Model = "nano",
    config: Config = None,
    reference: Reference = None,
    window: Window = None,
    strand: Strand = None,
    scored: Scored = None,
    seed: Seed = 0,
    output: Output = None,
    plot: Plot = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Saturation genome editing: loss of function (LOF) against the others (FUNC, INT).

    AUROC and AUPRC of -EVO2_DELTA, each with a 95 % bootstrap interval: of all variants, and by
    consequence, class and region. `--plot` draws ROC curves and the deltas of both labels.
    """
    _evaluate_variants("brca1", **locals())


@app.command(cls=Command)
def clinvar(
    source: Variants,
    label: Annotated[str | None, typer.Option(help="INFO key.", show_default="CLNSIG")] = None,
    positive: Positive = None,
    negative: Negative = None,
    consequence: Consequence = None,
    model: Model = "nano",
    config: Config = None,
    reference: Reference = None,
    window: Window = None,
    strand: Strand = None,
    scored: Scored = None,
    seed: Seed = 0,
    output: Output = None,
    plot: Plot = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """ClinVar: (likely) pathogenic against (likely) benign; what is neither, or both, is left out.

    AUROC and AUPRC of -EVO2_DELTA, each with a 95 % bootstrap interval: of all variants, and by
    consequence, class and region. `--plot` draws ROC curves and the deltas of both labels.
    """
    _evaluate_variants("clinvar", **locals())


def _evaluate_variants(
    evaluation: str, *, seed: int, output: Path | None, plot: Path | None, json: bool, **words: Any
) -> None:
    from evo2cli.eval.variants import VariantsOptions, evaluate_variants, variants_page
    from evo2cli.score.options import ScoreOptions

    own = {name: words.pop(name) for name in ("label", "positive", "negative", "consequence")}
    scoring = ScoreOptions(inputs=(str(words.pop("source")),), output=words.pop("scored"), **words)
    options = VariantsOptions.parse(
        evaluation=evaluation, scoring=scoring, seed=seed, output=output, plot=plot, **own
    )
    result = evaluate_variants(options)
    if json:
        console.write_json(result)
    else:
        console.write_page(variants_page(result))
