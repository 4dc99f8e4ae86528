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
    """Points from former commands to the presets of `variants` that replaced them."""

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

    Reports AUROC and AUPRC of -EVO2_DELTA with 95 % bootstrap intervals, for all variants and by
    consequence, class and region. Variants whose label is neither positive nor negative, or both,
    are left out. --plot draws ROC curves and the distribution of the deltas for each label.
    """
    from evo2cli.eval.variants import evaluate_variants, variants_page

    result = evaluate_variants(options)
    _show(result, variants_page, as_json=options.json)


@app.command(cls=Command)
@takes(NeedleOptions)
def needle(options: NeedleOptions) -> None:
    """Measure recall of a needle in a haystack, by text length and needle depth.

    A random needle (a key and a value) replaces bases of a haystack. At the end of the text the key
    is repeated, and the model predicts the value. Copy accuracy is 0.25 by chance. The likelihood
    gap, in nats per base, is how much having read the needle helps; it is 0 by chance. The hidden
    needle may be mutated or reverse-complemented, and near copies of the key may be added.
    """
    from evo2cli.eval.needle import find_needles, needle_page

    result = find_needles(options)
    _show(result, needle_page, as_json=options.json)


@app.command(cls=Command)
@takes(ContextOptions)
def context(options: ContextOptions) -> None:
    """Measure the loss by position in a window: does a longer context help?

    Reports the mean loss, in nats per base, in sections of the window that double in length, and
    over the context that the model was first trained with. An extension of the context should not
    raise the latter: compare the model before it with --against.
    """
    from evo2cli.eval.context import context_page, evaluate_context

    result = evaluate_context(options)
    _show(result, context_page, as_json=options.json)


@app.command(cls=Command)
@takes(ContinuationOptions)
def continuation(options: ContinuationOptions) -> None:
    """Measure how many of the next bases a model predicts correctly, by context length.

    The model reads a context and writes the likeliest bases after it. Reports the fraction that
    matches the true sequence, for each group, with 95 % bootstrap intervals over windows, next to a
    Markov model estimated from the same context. --plot draws the curves.
    """
    from evo2cli.eval.continuation import continuation_page, evaluate_continuation

    result = evaluate_continuation(options)
    _show(result, continuation_page, as_json=options.json)


@app.command(cls=Command)
@takes(PairsOptions)
def pairs(options: PairsOptions) -> None:
    """Measure how often a real sequence is likelier than a perturbed one.

    Reports the fraction of pairs in which the real sequence has the higher log-likelihood (0.5 by
    chance), with a 95 % bootstrap interval, and the same for the mean log-likelihood per base,
    which does not depend on the lengths.
    """
    from evo2cli.eval.pairs import evaluate_pairs, pairs_page

    result = evaluate_pairs(options)
    _show(result, pairs_page, as_json=options.json)


@app.command(cls=Command)
@takes(DMSOptions)
def dms(options: DMSOptions) -> None:
    """Measure how well deltas of a coding sequence agree with a deep mutational scan.

    Protein variants such as A123T are written into the coding sequence as codons. EVO2_DELTA is the
    log-likelihood of the sequence with them minus that without. Reports Spearman's correlation with
    the measured scores, and the AUROC of binary labels, as defined by ProteinGym, with 95 %
    bootstrap intervals.
    """
    from evo2cli.eval.dms import dms_page, evaluate_dms

    result = evaluate_dms(options)
    _show(result, dms_page, as_json=options.json)


@app.command(cls=Command)
@takes(TraitGymOptions)
def traitgym(options: TraitGymOptions) -> None:
    """Measure how well variant features separate causal variants from others, as in TraitGym.

    Reports the AUPRC by chromosome (mean weighted by the number of variants) of each feature, and
    of logistic regressions that never saw the chromosome they predict, with 95 % bootstrap
    intervals over chromosomes.
    """
    from evo2cli.eval.traitgym import evaluate_traitgym, traitgym_page

    result = evaluate_traitgym(options)
    _show(result, traitgym_page, as_json=options.json)


@app.command(cls=Command)
@takes(TaskOptions)
def task(options: TaskOptions) -> None:
    """Measure how well a model from evo2 finetune predicts the labels of a table.

    For classes: accuracy, balanced accuracy, macro-F1, MCC, AUROC and AUPRC, overall and per class,
    and the confusion matrix. For numbers: Pearson and Spearman correlation and R2. All with 95 %
    bootstrap intervals. --plot draws the confusion matrix and the curves, or a scatter plot.
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
