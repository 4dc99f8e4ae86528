"""`evo2 eval needle`: does a model recall a needle from its haystack? docs/eval.md defines it.

    text  = haystack that contains the needle + the needle again        `length` bases in all
    asked : the last bases of the second needle, each given everything before it

L tokens, V vocabulary.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from evo2cli import __version__, console
from evo2cli.eval.draws import draw_bases, draw_window
from evo2cli.eval.options import NeedleOptions
from evo2cli.eval.plots import draw_needle
from evo2cli.eval.report import check_outputs, format_length, mean_columns, write_table
from evo2cli.files import locks_output
from evo2cli.genome.alphabet import ACGT
from evo2cli.genome.reference import Reference
from evo2cli.journal import open_journal
from evo2cli.models import open_model
from evo2cli.tables import Row
from stripedhyena2 import StripedHyena2, scoring
from stripedhyena2.fingerprint import fingerprint
from stripedhyena2.progress import Progress, ignore_progress
from stripedhyena2.scoring import ScoringState, require_finite, token_logprobs

DrawHaystack = Callable[[int, int], bytes]  # called with a length and the index of a repeat


@dataclass(frozen=True)
class Trial:
    """A haystack, and a needle that is hidden in it and repeated behind it."""

    haystack: bytes
    needle: bytes

    @property
    def num_asked(self) -> int:
        """Bases to predict: the second half of the needle. The first half, the key, is given."""
        return len(self.needle) // 2

    @property
    def control(self) -> bytes:
        """The text without a needle in the haystack, which keeps its own bases."""
        return self.haystack + self.needle

    def start(self, depth: float) -> int:
        """First base of the needle; at 0 % the haystack begins with it, at 100 % it ends with it.

        Args:
            depth: Percent of the rest of the haystack that precedes the needle.
        """
        return round(depth / 100 * (len(self.haystack) - len(self.needle)))

    def text(self, depth: float) -> bytes:
        """What the model reads: `control` with the needle in place of bases of the haystack."""
        start = self.start(depth)
        after = self.haystack[start + len(self.needle) :]
        return self.haystack[:start] + self.needle + after + self.needle


@locks_output
def find_needles(
    options: NeedleOptions, open_model: Callable[..., StripedHyena2] = open_model
) -> dict[str, Any]:
    """Ask for needles at every length and depth.

    Args:
        options: Texts, model and output.
        open_model: Opens the model, once everything else has been found to be in order.

    Returns:
        evaluation, model, fingerprint, haystack, needle_length, key_length, repeats, seed, and
        cells: for each length and depth the means of copy accuracy and of the likelihood gap (nats
        per base) over the repeats, with standard errors (None for a single repeat).

    Raises:
        UserError: The haystack's genome does not suffice, or a file cannot be written.
        NonFiniteError: A log-likelihood is not a finite number.
    """
    check_outputs(options)
    with _open_haystacks(options) as draw_haystack:
        for length in options.text_lengths:  # fail before hours of work, not after
            draw_haystack(length - options.needle_length, 0)
        model = open_model(options)
        longest, context_length = max(options.text_lengths), model.config.context
        if longest > context_length:
            console.warn(
                f"--lengths {longest:,}: the model was trained on {context_length:,} positions and "
                "extrapolates beyond them"
            )
        identity = fingerprint(model.config, model.state_dict())
        cells = list(_measure_cells(model, identity, options, draw_haystack))
    result = {
        "evaluation": "needle",
        "evo2cli": __version__,
        "model": options.model,
        "fingerprint": identity,
        "haystack": str(options.haystack) if options.haystack else "random DNA",
        "needle_length": options.needle_length,
        "key_length": options.needle_length - options.needle_length // 2,
        "repeats": options.repeats,
        "seed": options.seed,
        "cells": cells,
    }
    write_table(options.output, result, cells)
    if options.plot is not None:
        draw_needle(options.plot, result)
    return result


@contextmanager
def _open_haystacks(options: NeedleOptions) -> Iterator[DrawHaystack]:
    seed, path = options.seed, options.haystack
    if path is None:
        yield lambda length, repeat: draw_bases(length, "haystack", seed, length, repeat)
        return
    with Reference.open(path) as genome:
        yield lambda length, repeat: draw_window(
            genome, path, length, "haystack", seed, length, repeat
        )


def _measure_cells(
    model: StripedHyena2, identity: str, options: NeedleOptions, draw_haystack: DrawHaystack
) -> Iterator[Row]:
    """Measure every cell; all depths of a length share haystacks, needles and controls."""
    size, seed, depths = options.needle_length, options.seed, options.needle_depths
    num_bases = 0
    for length in options.text_lengths:
        blank = Trial(bytes(length - size), bytes(size))
        num_bases += length + sum(length - _branch(blank, depth) for depth in depths)
    settings = ["evo2 eval needle", __version__, identity, size, seed, depths]
    with (
        open_journal(options.output, settings) as recall,
        console.progress("needle", num_bases * options.repeats, "bases") as bar,
    ):
        for length in options.text_lengths:
            measured = []
            for repeat in range(options.repeats):
                haystack = draw_haystack(length - size, repeat)
                trial = Trial(haystack, draw_bases(size, "needle", seed, length, repeat))
                key = f"{length} {repeat} {zlib.crc32(trial.control):08x}"
                measured.append(recall(key, partial(measure, model, trial, depths, bar.advance)))
                bar.note({"length": f"{length:,}", "repeat": f"{repeat + 1}/{options.repeats}"})
            for depth, pairs in zip(depths, zip(*measured, strict=True), strict=True):
                accuracies, gaps = zip(*pairs, strict=True)
                yield {
                    "length": length,
                    "depth": depth,
                    "repeats": options.repeats,
                    **mean_columns("accuracy", accuracies),
                    **mean_columns("gap", gaps),
                }


def measure(
    model: StripedHyena2,
    trial: Trial,
    depths: Sequence[float],
    progress: Progress = ignore_progress,
) -> list[tuple[float, float]]:
    """Copy accuracy and likelihood gap (nats per base) of a trial at each depth.

    What precedes a needle is read once for all depths and the control. Every text is cut into the
    same chunks whichever depths are asked for, so the numbers of a depth do not depend on others.

    Args:
        model: Model to ask.
        trial: Haystack and needle.
        depths: Percentages, ascending.
        progress: Called with the number of bases read.

    Raises:
        NonFiniteError: A log-likelihood is not a finite number.
    """
    shared, num_read = ScoringState.start(model), 0
    accuracies, sums = [], []
    for depth in depths:
        branch = _branch(trial, depth)
        shared = shared.extend(trial.haystack[num_read:branch], progress)
        num_read = branch
        ids_L, logprobs_LV = _answer(model, shared, trial, trial.text(depth), progress)
        accuracies.append(_copy_accuracy(ids_L, logprobs_LV))
        sums.append(token_logprobs(logprobs_LV, ids_L).sum().item())
    ids_L, logprobs_LV = _answer(model, shared, trial, trial.control, progress)
    control = token_logprobs(logprobs_LV, ids_L).sum().item()
    return [
        (accuracy, (total - control) / trial.num_asked)
        for accuracy, total in zip(accuracies, sums, strict=True)
    ]


def _branch(trial: Trial, depth: float) -> int:
    """Bases that the text of a depth shares with the control: whole chunks before the needle."""
    return trial.start(depth) // scoring.CHUNK * scoring.CHUNK


def _answer(
    model: StripedHyena2, shared: ScoringState, trial: Trial, text: bytes, progress: Progress
) -> tuple[Tensor, Tensor]:
    """The tokens that are asked for [L], and the log-probabilities at their positions [L, V]."""
    num_given = len(text) - trial.num_asked
    given = shared.extend(text[shared.cache.position : num_given], progress)
    end, ids_L, logprobs_LV = given.predict(text[num_given:])
    require_finite(end.logprob, model, text, f"a text of {len(text):,} bases")
    progress(len(ids_L))
    return ids_L, logprobs_LV


def _copy_accuracy(ids_L: Tensor, logprobs_LV: Tensor) -> float:
    """The share of tokens that are the likeliest of A, C, G and T."""
    bases = ids_L.new_tensor(list(ACGT))
    likeliest_L = bases[logprobs_LV[:, bases].argmax(dim=1)]
    return (likeliest_L == ids_L).double().mean().item()


def needle_page(result: dict[str, Any]) -> RenderableType:
    """Lay out the result of `find_needles`: a row for each depth, a column for each length."""
    cells, repeats = result["cells"], result["repeats"]
    title = f"{result['model']}, {repeats} haystacks for each length, of {result['haystack']}"
    return Group(
        Text(title, style="bold"),
        Text(f"\ncopy accuracy, chance 0.25{_errors('accuracy', cells)}"),
        _grid("accuracy", cells),
        Text(f"\nlikelihood gap, nats per base, chance 0{_errors('gap', cells)}"),
        _grid("gap", cells),
    )


def _errors(name: str, cells: Sequence[dict[str, Any]]) -> str:
    errors = [cell[f"{name}_se"] for cell in cells if cell[f"{name}_se"] is not None]
    return f"; standard errors up to {max(errors):.3f}" if errors else ""


def _grid(name: str, cells: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None)
    table.add_column("depth", justify="right")
    lengths = sorted({cell["length"] for cell in cells})
    for length in lengths:
        table.add_column(format_length(length), justify="right")
    for depth in sorted({cell["depth"] for cell in cells}):
        row = [cell for cell in cells if cell["depth"] == depth]
        table.add_row(f"{depth:g} %", *(f"{cell[name]:z.3f}" for cell in row))
    return table
