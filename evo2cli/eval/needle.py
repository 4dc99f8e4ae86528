"""`evo2 eval needle`: needle-in-a-haystack recall in DNA; see docs/eval.md.

    needle = key + value
    text   = haystack that contains the needle + the needle again       `length` bases in all
    target : the value of the second needle, each base given everything before it

The needle in the haystack may be reverse complemented or mutated, and the haystack may contain
distractors: near copies of the key, each with another value.

L tokens, V vocabulary.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from evo2cli import __version__, console
from evo2cli.data.sampler import keyed_number
from evo2cli.errors import counted
from evo2cli.eval.draws import Label, draw_bases, draw_substitutions, draw_window
from evo2cli.eval.options import MUTATION_RATE, Distractors, Hidden, NeedleOptions
from evo2cli.eval.plots import draw_needle
from evo2cli.eval.report import (
    cells_by_distractors,
    check_outputs,
    estimate_columns,
    format_length,
    mean_columns,
    write_table,
)
from evo2cli.files import locks_output
from evo2cli.genome.alphabet import ACGT, reverse_complement
from evo2cli.genome.reference import Reference
from evo2cli.journal import open_journal
from evo2cli.models import open_model, warn_beyond_context
from evo2cli.ranking import RESAMPLES, mean_estimate
from evo2cli.tables import Row
from stripedhyena2 import StripedHyena2, scoring
from stripedhyena2.fingerprint import fingerprint
from stripedhyena2.progress import Progress, ignore_progress
from stripedhyena2.scoring import ScoringState, require_finite, token_logprobs

DrawHaystack = Callable[[int, int], bytes]  # called with a length and the index of a repeat


@dataclass(frozen=True)
class Trial:
    """A haystack, and a needle that is hidden in it and repeated after it.

    Attributes:
        haystack: Bases before the second needle.
        needle: Key and value.
        num_asked: Bases of the value, the target of prediction; the key is given.
        hidden: The form of the needle in the haystack, of the same length.
    """

    haystack: bytes
    needle: bytes
    num_asked: int
    hidden: bytes

    @property
    def control(self) -> bytes:
        """The control text, whose haystack has no needle."""
        return self.haystack + self.needle

    def start(self, depth: float) -> int:
        """First base of the needle; at 0 % the haystack begins with it, at 100 % it ends with it.

        Args:
            depth: Percent of the rest of the haystack that precedes the needle.
        """
        return round(depth / 100 * (len(self.haystack) - len(self.needle)))

    def text(self, depth: float) -> bytes:
        """The input of the model: `control` with `hidden` in place of bases of the haystack."""
        start = self.start(depth)
        after = self.haystack[start + len(self.hidden) :]
        return self.haystack[:start] + self.hidden + after + self.needle

    def distracted(self, depth: float, distractors: Sequence[bytes], *labels: Label) -> "Trial":
        """The trial with distractors in the haystack, away from the needle of a depth.

        They replace bases whose distance from the needle is a multiple of their length.

        Args:
            depth: Percent of the rest of the haystack that precedes the needle.
            distractors: Each as long as the needle.
            labels: Different labels give different positions.
        """
        size, start = len(self.needle), self.start(depth)
        before = range(start - size, -1, -size)
        after = range(start + size, len(self.haystack) - size + 1, size)
        starts = sorted([*before, *after], key=lambda first: keyed_number(*labels, first))
        haystack = bytearray(self.haystack)
        for first, distractor in zip(starts, distractors, strict=False):
            haystack[first : first + size] = distractor
        return replace(self, haystack=bytes(haystack))


@locks_output
def find_needles(
    options: NeedleOptions, open_model: Callable[..., StripedHyena2] = open_model
) -> dict[str, Any]:
    """Measure the recall of needles for every length, set of distractors and depth.

    Args:
        options: Texts, model and output.
        open_model: Loads the model, after the inputs have been checked.

    Returns:
        evaluation, model, fingerprint, haystack, needle_length, key_length, hidden, mutation_rate
        (None if not mutated), repeats, seed, resamples, and cells: for each length, set of
        distractors and depth the means over the repeats of copy accuracy, of exact match (whether
        all bases of a value are right) and of the likelihood gap (nats per base), with standard
        errors (None for a single repeat) and 95 % bootstrap intervals.

    Raises:
        UserError: The haystack's genome does not suffice, or a file cannot be written.
        NonFiniteError: A log-likelihood is not a finite number.
    """
    check_outputs(options)
    with _open_haystacks(options) as draw_haystack:
        for length in options.text_lengths:  # fail early if the genome is too short
            draw_haystack(length - options.needle_length, 0)
        model = open_model(options)
        longest = max(options.text_lengths)
        warn_beyond_context(model, longest, f"--lengths {longest:,}")
        identity = fingerprint(model.config, model.state_dict())
        cells = list(_measure_cells(model, identity, options, draw_haystack))
    result = {
        "evaluation": "needle",
        "evo2cli": __version__,
        "model": options.model,
        "fingerprint": identity,
        "haystack": str(options.haystack) if options.haystack else "random DNA",
        "needle_length": options.needle_length,
        "key_length": options.num_key,
        "hidden": options.hidden,
        "mutation_rate": _mutation_rate(options),
        "repeats": options.repeats,
        "seed": options.seed,
        "resamples": RESAMPLES,
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


def _mutation_rate(options: NeedleOptions) -> float | None:
    if options.hidden is not Hidden.MUTATED:
        return None
    return MUTATION_RATE if options.mutation_rate is None else options.mutation_rate


def draw_trial(options: NeedleOptions, haystack: bytes, length: int, repeat: int) -> Trial:
    """The trial of a repeat: a haystack, a random needle, and its form in the haystack."""
    labels = ("needle", options.seed, length, repeat)
    needle = draw_bases(options.needle_length, *labels)
    hidden = needle
    if (rate := _mutation_rate(options)) is not None:
        hidden = draw_substitutions(needle, round(rate * len(needle)), "mutated", *labels)
    elif options.hidden is Hidden.REVCOMP:
        hidden = reverse_complement(needle)
    return Trial(haystack, needle, options.needle_length - options.num_key, hidden)


def add_distractors(
    trial: Trial, depth: float, distractors: Distractors, options: NeedleOptions, *labels: Label
) -> Trial:
    """The trial with near copies of the key in its haystack, each followed by a random value.

    They are reverse complements if the hidden needle is one.

    Args:
        trial: The trial without them.
        depth: Where the needle will be.
        distractors: How many, and how far from the key.
        options: Options of the needle.
        labels: Different labels give different distractors.
    """
    key = trial.needle[: options.num_key]
    copies = []
    for index in range(distractors.number):
        seeds = ("distractor", *labels, distractors.distance or 0, index)
        near_key = draw_substitutions(key, distractors.distance or 0, *seeds)
        copy = near_key + draw_bases(trial.num_asked, *seeds)
        copies.append(reverse_complement(copy) if options.hidden is Hidden.REVCOMP else copy)
    return trial.distracted(depth, copies, "place", *labels)


def _measure_cells(
    model: StripedHyena2, identity: str, options: NeedleOptions, draw_haystack: DrawHaystack
) -> Iterator[Row]:
    """Measure every cell.

    Without distractors all depths of a length share haystacks, needles and controls. With them,
    each depth has its own haystack and control, because a needle must not lie on a distractor.
    """
    size, seed, depths = options.needle_length, options.seed, options.needle_depths
    settings = [
        *("evo2 eval needle", __version__, identity, size, seed, depths),
        *(options.num_key, options.hidden, _mutation_rate(options)),
    ]
    with (
        open_journal(options.output, settings) as recall,
        console.progress("needle", _num_bases(options), "bases") as bar,
    ):
        for length, distractors in product(options.text_lengths, options.distractor_sets):
            measured = []
            for repeat in range(options.repeats):
                trial = draw_trial(options, draw_haystack(length - size, repeat), length, repeat)

                def compute(
                    trial: Trial = trial,
                    labels: tuple[int, ...] = (seed, length, repeat),
                    distractors: Distractors = distractors,
                ) -> list[tuple[float, float]]:
                    if not distractors.number:
                        return measure(model, trial, depths, bar.advance)
                    pairs = []
                    for depth in depths:
                        distracted = add_distractors(trial, depth, distractors, options, *labels)
                        pairs += measure(model, distracted, [depth], bar.advance)
                    return pairs

                kind = f"{distractors.number}:{distractors.distance}"
                key = f"{length} {kind} {repeat} {zlib.crc32(trial.control):08x}"
                measured.append(recall(key, compute))
                bar.note({"length": f"{length:,}", "repeat": f"{repeat + 1}/{options.repeats}"})
            for depth, pairs in zip(depths, zip(*measured, strict=True), strict=True):
                accuracies, gaps = zip(*pairs, strict=True)
                columns = {
                    "accuracy": accuracies,
                    "exact": [float(accuracy == 1) for accuracy in accuracies],
                    "gap": gaps,
                }
                row: Row = {
                    "length": length,
                    "depth": depth,
                    "distractors": distractors.number,
                    "distance": distractors.distance,
                    "repeats": options.repeats,
                }
                for column, values in columns.items():
                    estimate = mean_estimate(values, seed=seed, name=f"{length} {depth} {kind}")
                    row |= estimate_columns(column, estimate) | mean_columns(column, values)
                yield row


def _num_bases(options: NeedleOptions) -> int:
    """Total number of bases that the model processes for all cells."""
    size, depths = options.needle_length, options.needle_depths
    total = 0
    for length, distractors in product(options.text_lengths, options.distractor_sets):
        blank = Trial(bytes(length - size), bytes(size), 1, bytes(size))
        texts = sum(length - _branch(blank, depth) for depth in depths)
        total += texts + length * (len(depths) if distractors.number else 1)
    return total * options.repeats


def measure(
    model: StripedHyena2,
    trial: Trial,
    depths: Sequence[float],
    progress: Progress = ignore_progress,
) -> list[tuple[float, float]]:
    """Copy accuracy and likelihood gap (nats per base) of a trial at each depth.

    The prefix before a needle is processed once for all depths and the control. Texts are split
    into the same chunks whatever the depths, so the results of a depth do not depend on others.

    Args:
        model: Model to evaluate.
        trial: Haystack and needle.
        depths: Percentages, ascending.
        progress: Called with the number of bases processed.

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
    """The target tokens [L], and the log-probabilities at their positions [L, V]."""
    num_given = len(text) - trial.num_asked
    given = shared.extend(text[shared.cache.position : num_given], progress)
    end, ids_L, logprobs_LV = given.predict(text[num_given:])
    require_finite(end.logprob, model, text, f"a text of {len(text):,} bases")
    progress(len(ids_L))
    return ids_L, logprobs_LV


def _copy_accuracy(ids_L: Tensor, logprobs_LV: Tensor) -> float:
    """The fraction of target tokens that are the likeliest of A, C, G and T."""
    bases = ids_L.new_tensor(list(ACGT))
    likeliest_L = bases[logprobs_LV[:, bases].argmax(dim=1)]
    return (likeliest_L == ids_L).double().mean().item()


def needle_page(result: dict[str, Any]) -> RenderableType:
    """Lay out the result of `find_needles`: a row for each depth, a column for each length."""
    cells, repeats = result["cells"], result["repeats"]
    haystacks = counted(repeats, "haystack")
    title = f"{result['model']}, {haystacks} for each length, of {result['haystack']}"
    parts: list[RenderableType] = [Text(title, style="bold")]
    hidden = {
        Hidden.EXACT: "",
        Hidden.REVCOMP: "reverse complement of the needle",
        Hidden.MUTATED: f"needle with {result['mutation_rate']} of its bases substituted",
    }[Hidden(result["hidden"])]
    if hidden:
        parts.append(Text(f"hidden: {hidden}"))
    sets = cells_by_distractors(cells)
    for kind, members in sets.items():
        if kind.number or len(sets) > 1:
            parts.append(Text(f"\n{kind}", style="bold"))
        parts += [
            Text(f"\ncopy accuracy, chance 0.25{_errors('accuracy', members)}"),
            _grid("accuracy", members),
            Text(f"\nexact match{_errors('exact', members)}"),
            _grid("exact", members),
            Text(f"\nlikelihood gap, nats per base, chance 0{_errors('gap', members)}"),
            _grid("gap", members),
        ]
    return Group(*parts)


def _errors(name: str, cells: Sequence[dict[str, Any]]) -> str:
    errors = [cell[f"{name}_se"] for cell in cells if cell[f"{name}_se"] is not None]
    return f"; standard errors up to {max(errors):.3f}" if errors else ""


def _grid(name: str, cells: Sequence[dict[str, Any]]) -> Table:
    lengths = sorted({cell["length"] for cell in cells})
    table = console.number_table("depth", *map(format_length, lengths), justify="right")
    for depth in sorted({cell["depth"] for cell in cells}):
        row = [cell for cell in cells if cell["depth"] == depth]
        table.add_row(f"{depth:g} %", *(f"{cell[name]:z.3f}" for cell in row))
    return table
