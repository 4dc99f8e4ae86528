"""`evo2 eval context`: loss as a function of position, in windows of a genome; see docs/eval.md."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.text import Text

from evo2cli import __version__, console
from evo2cli.eval.draws import draw_window
from evo2cli.eval.options import ContextOptions
from evo2cli.eval.plots import draw_context
from evo2cli.eval.report import check_outputs, mean_columns, write_table
from evo2cli.files import locks_output
from evo2cli.genome.reference import Reference
from evo2cli.journal import open_journal
from evo2cli.models import open_model, warn_beyond_context
from evo2cli.tables import Row, format_mean
from stripedhyena2 import StripedHyena2, scoring
from stripedhyena2.fingerprint import fingerprint
from stripedhyena2.progress import Progress, ignore_progress
from stripedhyena2.scoring import ScoringState, require_finite, token_logprobs

FIRST_SECTION = 128  # positions; the end doubles from section to section


@dataclass(frozen=True)
class Part:
    """Positions `start` to `end` of a window, 0-based and half-open; position 0 is not predicted.

    Attributes:
        kind: "stretch", one of the sections that partition the window; "short", the context length
            before extension, where the loss should not increase; "all", the whole window.
    """

    kind: str
    start: int
    end: int


def window_parts(length: int, short: int) -> list[Part]:
    """The parts of a window: sections whose ends double from 128 on, then "short" and "all"."""
    borders = [0]
    while borders[-1] < length:
        borders.append(min(length, max(FIRST_SECTION, 2 * borders[-1])))
    sections = [Part("stretch", start, end) for start, end in pairwise(borders)]
    return [*sections, Part("short", 0, min(short, length)), Part("all", 0, length)]


@locks_output
def evaluate_context(
    options: ContextOptions, open_model: Callable[..., StripedHyena2] = open_model
) -> dict[str, Any]:
    """Measure the loss as a function of position, of one model or of two on the same windows.

    Args:
        options: Windows, models and output.
        open_model: Loads a model; only one model is in memory at a time.

    Returns:
        evaluation, model, fingerprint, against and against_fingerprint (None without a second
        model), genome, length, windows, seed, and rows: see `loss_rows`.

    Raises:
        UserError: The genome, a model or an output cannot be used.
        NonFiniteError: A log-likelihood is not a finite number.
    """
    check_outputs(options, options.genome)
    other_identity: str | None = None
    other_losses: list[list[float]] | None = None
    with Reference.open(options.genome) as genome:
        model = open_model(options)
        length = options.window_length or model.config.context
        draw = partial(draw_window, genome, options.genome, length, "window", options.seed, length)
        draw(0)  # fail early if the genome is too short
        if options.windows * length > sum(map(genome.length, genome.names)):
            console.warn(
                f"{options.windows} windows of {length:,} bases must overlap in "
                f"{options.genome}: standard errors are underestimated, and a position in the "
                "window may represent few places in the genome"
            )
        parts = window_parts(length, model.config.original_context)
        settings = ["evo2 eval context", __version__, [part.end for part in parts]]
        num_models = 1 if options.against is None else 2
        with (
            open_journal(options.output, settings) as recall,
            console.progress("context", num_models * options.windows * length, "bases") as bar,
        ):

            def evaluate(name: str, model: StripedHyena2) -> tuple[str, list[list[float]]]:
                """The fingerprint of a model, and its loss in each part of each window."""
                warn_beyond_context(model, length, f"--length {length:,}, --model {name}")
                identity = fingerprint(model.config, model.state_dict())
                losses = []
                for index in range(options.windows):
                    window = draw(index)
                    key = f"{identity} {index} {zlib.crc32(window):08x}"
                    compute = partial(measure, model, window, parts, bar.advance)
                    losses.append(recall(key, compute))
                return identity, losses

            identity, losses = evaluate(options.model, model)
            del model  # free it before the other is loaded
            if options.against is not None:
                config = options.config if options.against == options.model else None
                model = open_model(replace(options, model=options.against, config=config))
                other_identity, other_losses = evaluate(options.against, model)
    rows = loss_rows(parts, losses, other_losses)
    result = {
        "evaluation": "context",
        "evo2cli": __version__,
        "model": options.model,
        "fingerprint": identity,
        "against": options.against,
        "against_fingerprint": other_identity,
        "genome": str(options.genome),
        "length": length,
        "windows": options.windows,
        "seed": options.seed,
        "rows": rows,
    }
    write_table(options.output, result, rows)
    if options.plot is not None:
        draw_context(options.plot, result)
    return result


def measure(
    model: StripedHyena2, window: bytes, parts: Sequence[Part], progress: Progress = ignore_progress
) -> list[float]:
    """The mean loss of each part of a window, in nats per base.

    Raises:
        NonFiniteError: A log-likelihood is not a finite number.
    """
    state = ScoringState.start(model)
    losses = [torch.zeros(1, dtype=torch.float64)]  # the first base is not predicted
    for start in range(0, len(window), scoring.CHUNK):
        chunk = window[start : start + scoring.CHUNK]
        state, ids_L, logprobs_LV = state.predict(chunk)
        losses.append(-token_logprobs(logprobs_LV, ids_L).cpu())
        progress(len(chunk))
    require_finite(state.logprob, model, window, f"a window of {len(window):,} bases")
    loss_L = torch.cat(losses)
    return [loss_L[max(1, part.start) : part.end].mean().item() for part in parts]


def loss_rows(
    parts: Sequence[Part],
    measured: Sequence[Sequence[float]],
    against: Sequence[Sequence[float]] | None = None,
) -> list[Row]:
    """One row per part: part, start, end; loss and its standard error over windows.

    Args:
        parts: Parts of a window.
        measured: The losses from `measure`, for each window.
        against: Those of another model on the same windows. They add the columns against and
            difference, the paired difference loss - against.
    """
    rows = []
    for index, part in enumerate(parts):
        losses = [window[index] for window in measured]
        row: Row = {"part": part.kind, "start": part.start, "end": part.end}
        row |= mean_columns("loss", losses)
        if against is not None:
            others = [window[index] for window in against]
            row |= mean_columns("against", others)
            differences = [loss - other for loss, other in zip(losses, others, strict=True)]
            row |= mean_columns("difference", differences)
        rows.append(row)
    return rows


def context_page(result: dict[str, Any]) -> RenderableType:
    """Lay out the result of `evaluate_context`: a line for each part of the window."""
    title, columns = f"loss of {result['model']}", ["loss"]
    if result["against"] is not None:
        title += f" against {result['against']}"
        columns += ["against", "difference"]
    windows = result["windows"]
    mean = f"mean and standard error of {windows:,} windows" if windows > 1 else "one window"
    table = console.number_table("positions", *columns, justify="right")
    for row in result["rows"]:
        label = f"{row['start']:,} - {row['end']:,}"
        if row["part"] != "stretch":
            label = f"{row['part']}: {label}"
        table.add_row(label, *(format_mean(row[name], row[f"{name}_se"], 4) for name in columns))
    return Group(
        Text(f"{title}, nats per base, {mean}", style="bold"),
        Text(f"{result['genome']}, windows of {result['length']:,} bases\n"),
        table,
    )
