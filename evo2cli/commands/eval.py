"""`evo2 eval`: a group with one command for each evaluation."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.eval.labels import Preset
from evo2cli.eval.options import (
    ContextOptions,
    ContinuationOptions,
    DMSOptions,
    NeedleOptions,
    PairsOptions,
    TaskOptions,
    TraitGymOptions,
    VariantsOptions,
)
from evo2cli.options import Command, Group, takes

if TYPE_CHECKING:
    from rich.console import RenderableType


class Evaluations(Group):
    """Knows that the presets of `variants` once were commands."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Refuse such a command with the one to use instead.

        Raises:
            UserError: The first of `args` is the name of a preset.
        """
        name, *rest = args
        if name in list(Preset):
            command = " ".join(["evo2 eval variants", *rest, "--preset", name])
            raise UserError(
                f"evo2 eval {name} is now a preset of evo2 eval variants; run {command}"
            )
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Evaluations,
    no_args_is_help=True,
    help="Evaluate a model: harmful variants, recall, loss by position. docs/eval.md defines them.",
)


def _show(
    result: dict[str, Any], page: "Callable[[dict[str, Any]], RenderableType]", *, as_json: bool
) -> None:
    """Write a result to stdout, as JSON or as a page."""
    if as_json:
        console.write_json(result)
    else:
        console.write_page(page(result))


@app.command(cls=Command)
@takes(VariantsOptions)
def variants(options: VariantsOptions) -> None:
    """Measure how well EVO2_DELTA separates harmful from harmless variants.

    AUROC and AUPRC of -EVO2_DELTA, each with a 95 % bootstrap interval, of all variants and by
    consequence, class and region. Variants that are neither positive nor negative, or both, are
    left out. --plot draws ROC curves and the deltas of both labels.
    """
    from evo2cli.eval.variants import evaluate_variants, variants_page

    result = evaluate_variants(options)
    _show(result, variants_page, as_json=options.json)


@app.command(cls=Command)
@takes(NeedleOptions)
def needle(options: NeedleOptions) -> None:
    """Recall of a needle in a haystack, by length and depth.

    A random needle, a key and a value, replaces bases of a haystack. At the end of the text the key
    is given again, and the model predicts the value. Copy accuracy is 0.25 by chance; the
    likelihood gap, in nats per base, is how much having read the needle helps, 0 by chance. The
    haystack may hold near copies of the key, and the needle mutated or as its reverse complement.
    """
    from evo2cli.eval.needle import find_needles, needle_page

    result = find_needles(options)
    _show(result, needle_page, as_json=options.json)


@app.command(cls=Command)
@takes(ContextOptions)
def context(options: ContextOptions) -> None:
    """Loss by position in a window: does a longer context help or hurt?

    Mean loss in nats per base, in sections of a window that double in length, and over the context
    that the model was first trained with. An extension should not raise the latter: compare by
    --against.
    """
    from evo2cli.eval.context import context_page, read_context

    result = read_context(options)
    _show(result, context_page, as_json=options.json)


@app.command(cls=Command)
@takes(ContinuationOptions)
def continuation(options: ContinuationOptions) -> None:
    """Measure how many of the next bases a model finds, by the length of the context.

    The model reads a context and writes the likeliest bases after it; shown is the share that
    equals what follows, for each group, with 95 % bootstrap intervals over windows, beside a Markov
    model that is counted from the context alone. --plot draws the curves.
    """
    from evo2cli.eval.continuation import continuation_page, evaluate_continuation

    result = evaluate_continuation(options)
    _show(result, continuation_page, as_json=options.json)


@app.command(cls=Command)
@takes(PairsOptions)
def pairs(options: PairsOptions) -> None:
    """Measure how often a real sequence is likelier than a perturbed one.

    The share of pairs in which the log-likelihood of the real sequence is higher, 0.5 by chance,
    with a 95 % bootstrap interval, and the same by the means per base, which do not depend on
    lengths.
    """
    from evo2cli.eval.pairs import evaluate_pairs, pairs_page

    result = evaluate_pairs(options)
    _show(result, pairs_page, as_json=options.json)


@app.command(cls=Command)
@takes(DMSOptions)
def dms(options: DMSOptions) -> None:
    """Measure how well deltas of a coding sequence follow a deep mutational scan.

    Variants of a protein, such as A123T, are put into its coding sequence as codons. EVO2_DELTA is
    the log-likelihood with them minus that without. Spearman's correlation with the measured scores
    and AUROC of the labels, each with a 95 % bootstrap interval, as ProteinGym defines them.
    """
    from evo2cli.eval.dms import dms_page, evaluate_dms

    result = evaluate_dms(options)
    _show(result, dms_page, as_json=options.json)


@app.command(cls=Command)
@takes(TraitGymOptions)
def traitgym(options: TraitGymOptions) -> None:
    """Measure how well features of variants tell causal ones from others, as TraitGym does.

    AUPRC by chromosome, the mean weighted by variants, of each feature and of logistic regressions
    that never saw the chromosome they predict, with 95 % bootstrap intervals over chromosomes.
    """
    from evo2cli.eval.traitgym import evaluate_traitgym, traitgym_page

    result = evaluate_traitgym(options)
    _show(result, traitgym_page, as_json=options.json)


@app.command(cls=Command)
@takes(TaskOptions)
def task(options: TaskOptions) -> None:
    """Measure how well a model that evo2 finetune trained predicts the labels of a table.

    Classes: accuracy, balanced accuracy, macro-F1, MCC, AUROC and AUPRC, also of each class, and
    the confusion matrix. Numbers: Pearson, Spearman and R2. Each with a 95 % bootstrap interval.
    --plot draws the confusion matrix and the curves.
    """
    from evo2cli.eval.task import evaluate_task, task_page
    from evo2cli.predict.run import labels_of, predict_table

    result = evaluate_task(
        options,
        labels_of(options.run),
        lambda examples: predict_table(
            options.run, examples, device=options.device, dtype=options.dtype
        ),
    )
    _show(result, task_page, as_json=options.json)
