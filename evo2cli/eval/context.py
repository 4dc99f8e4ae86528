"""`evo2 eval context`: loss by position in windows of a genome; docs/eval.md defines it.

L tokens, V vocabulary.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evo2cli import __version__, console
from evo2cli.errors import UserError
from evo2cli.eval.draws import draw_window
from evo2cli.eval.plots import draw_context
from evo2cli.eval.report import (
    check_output,
    mean_and_error,
    shown,
    write_table,
)
from evo2cli.figures import check_plot
from evo2cli.genome.reference import Reference
from evo2cli.journal import Recall, open_journal
from evo2cli.lengths import parse_length
from evo2cli.tables import Row, rounded
from stripedhyena2 import StripedHyena2, scoring
from stripedhyena2.fingerprint import fingerprint
from stripedhyena2.scoring import ScoringState, require_finite, token_logprobs

FIRST_STRETCH = 128  # positions; each stretch after it ends twice as far

Advance = Callable[[int], None]
OpenModel = Callable[[str], StripedHyena2]


@dataclass(frozen=True, kw_only=True)
class ContextOptions:
    """The command line of `evo2 eval context`.

    Attributes:
        genome: FASTA that windows are cut from.
        model: What is evaluated.
        against: Another model, for the same windows.
        length: Bases in a window; None for the model's context.
        windows: How many are read.
        seed: Of their places.
        output: TSV or JSON to write.
        plot: Figure to draw.

    Raises:
        UserError: A value is out of range.
    """

    genome: Path
    model: str = "nano"
    against: str | None = None
    length: int | None = None
    windows: int = 10
    seed: int = 0
    output: Path | None = None
    plot: Path | None = None

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 2:
            raise UserError(f"--length {self.length}: at least 2 bases are needed for a prediction")
        check_output(self.output)
        check_plot(self.plot)

    @classmethod
    def parse(cls, *, length: str | None, **others: Any) -> "ContextOptions":
        """The same from the words of the command line.

        Raises:
            UserError: The length is none.
        """
        return cls(length=None if length is None else parse_length(length, "--length"), **others)


@dataclass(frozen=True)
class Part:
    """Positions `start` to `end` of a window, 0-based and half-open; position 0 has no prediction.

    Attributes:
        kind: "stretch", one of those that fill the window; "short", the context that the model was
            first trained with, which extension should not harm; "all", the window.
    """

    kind: str
    start: int
    end: int


def window_parts(length: int, short: int) -> list[Part]:
    """What losses are told of: stretches, each ending twice as far as the last, then the sums."""
    borders = [0]
    while borders[-1] < length:
        borders.append(min(length, max(FIRST_STRETCH, 2 * borders[-1])))
    stretches = [Part("stretch", start, end) for start, end in pairwise(borders)]
    return [*stretches, Part("short", 0, min(short, length)), Part("all", 0, length)]


def read_context(open_model: OpenModel, options: ContextOptions) -> dict[str, Any]:
    """Measure the loss by position.

    Args:
        open_model: Called with a model's name; models are held one after the other.
        options: What is asked.

    Returns:
        evaluation, model, fingerprint, against (None without), against_fingerprint, genome, length,
        windows, seed, and rows: for each of `window_parts` the mean over windows of the mean loss
        (nats a base), with the standard error over windows (None for one); against the same of the
        other model, and difference: loss - against, in pairs.

    Raises:
        UserError: The genome, a model or an output will not do.
        UntrustedNumericsError: A log-likelihood is no finite number.
    """
    parts, found, other = _read_models(open_model, options)
    rows = loss_rows(parts, found.losses, other.losses if other else None)
    result = {
        "evaluation": "context",
        "evo2cli": __version__,
        "model": options.model,
        "fingerprint": found.fingerprint,
        "against": options.against,
        "against_fingerprint": other and other.fingerprint,
        "genome": str(options.genome),
        "length": parts[-1].end,
        "windows": options.windows,
        "seed": options.seed,
        "rows": rows,
    }
    write_table(options.output, result, rows)
    if options.plot is not None:
        draw_context(options.plot, result)
    return result


@dataclass(frozen=True)
class Reading:
    """What a model makes of the windows: its fingerprint, and the loss of each part of each."""

    fingerprint: str
    losses: list[list[float]]


@dataclass(frozen=True)
class _Reader:
    """Reads windows, the same ones for every model."""

    draw: Callable[[int], bytes]
    num_windows: int
    parts: Sequence[Part]
    recall: Recall
    advance: Advance

    def read(self, name: str, model: StripedHyena2) -> Reading:
        """Read all windows."""
        length, context = self.parts[-1].end, model.config.context
        if length > context:
            console.warn(
                f"--length {length:,}: above the {context:,} positions {name} was trained on, "
                "it extrapolates"
            )
        identity = fingerprint(model.config, model.state_dict())
        losses = []
        for index in range(self.num_windows):
            window = self.draw(index)
            key = f"{identity} {index} {zlib.crc32(window):08x}"
            compute = partial(measure, model, window, self.parts, self.advance)
            losses.append(self.recall(key, compute))
        return Reading(identity, losses)


def _read_models(
    open_model: OpenModel, options: ContextOptions
) -> tuple[list[Part], Reading, Reading | None]:
    """What losses are told of, and what the model and the other one make of it."""
    with Reference.open(options.genome) as genome:
        model = open_model(options.model)
        length = options.length or model.config.context
        draw = partial(draw_window, genome, options.genome, length, "window", options.seed, length)
        draw(0)  # a genome that is too short is told before the work
        _warn_of_overlap(options, genome, length)
        parts = window_parts(length, model.config.original_context)
        settings = ["evo2 eval context", __version__, [part.end for part in parts]]
        num_models = 1 if options.against is None else 2
        with (
            open_journal(options.output, settings) as recall,
            console.progress("context", num_models * options.windows * length, "bases") as bar,
        ):
            reader = _Reader(draw, options.windows, parts, recall, bar.advance)
            found = reader.read(options.model, model)
            del model  # one at a time in memory
            other = None
            if options.against is not None:
                other = reader.read(options.against, open_model(options.against))
    return parts, found, other


def _warn_of_overlap(options: ContextOptions, genome: Reference, length: int) -> None:
    if options.windows * length > sum(map(genome.length, genome.names)):
        console.warn(
            f"{options.windows} windows of {length:,} bases overlap in {options.genome}: standard "
            "errors come out too small, and positions mirror its regions"
        )


def measure(
    model: StripedHyena2, window: bytes, parts: Sequence[Part], advance: Advance = lambda _: None
) -> list[float]:
    """The mean loss of each part of a window, in nats a base.

    Raises:
        UntrustedNumericsError: A log-likelihood is no finite number.
    """
    so_far, pieces = ScoringState.start(model), [torch.zeros(1, dtype=torch.float64)]
    for start in range(0, len(window), scoring.CHUNK):
        piece = window[start : start + scoring.CHUNK]
        so_far, ids_L, logprobs_LV = so_far.predict(piece)
        pieces.append(-token_logprobs(logprobs_LV, ids_L).cpu())
        advance(len(piece))
    require_finite(so_far.logprob, model, window, f"a window of {len(window):,} bases")
    loss_L = torch.cat(pieces)  # its first entry is no prediction
    return [loss_L[max(1, part.start) : part.end].mean().item() for part in parts]


def loss_rows(
    parts: Sequence[Part],
    measured: Sequence[Sequence[float]],
    against: Sequence[Sequence[float]] | None,
) -> list[Row]:
    """Means and standard errors over windows, a row a part.

    Args:
        parts: Of a window.
        measured: Their losses in each window, from `measure`.
        against: The same of another model on the same windows.
    """
    rows = []
    for index, part in enumerate(parts):
        row: Row = {"part": part.kind, "start": part.start, "end": part.end}
        losses = [window[index] for window in measured]
        columns = {"loss": losses}
        if against is not None:
            columns["against"] = [window[index] for window in against]
            pairs = zip(losses, columns["against"], strict=True)
            columns["difference"] = [loss - before for loss, before in pairs]
        for name, values in columns.items():
            mean, error = mean_and_error(values)
            row[name] = rounded(mean)
            row[f"{name}_se"] = None if error is None else rounded(error)
        rows.append(row)
    return rows


def context_page(result: dict[str, Any]) -> RenderableType:
    """Lay out what `read_context` returns: a line for each part of the window."""
    windows = result["windows"]
    mean = f"mean and standard error of {windows:,}" if windows > 1 else "one window"
    table = Table(box=None)
    table.add_column("positions", justify="right")
    models, columns = f"loss of {result['model']}", ["loss"]
    if result["against"] is not None:
        models, columns = (
            f"{models} against {result['against']}",
            [*columns, "against", "difference"],
        )
    for name in columns:
        table.add_column(name, justify="right")
    for row in result["rows"]:
        label = f"{row['start']:,} - {row['end']:,}"
        if row["part"] != "stretch":
            label = f"{row['part']}: {label}"
        table.add_row(label, *(shown(row[name], row[f"{name}_se"], 4) for name in columns))
    return Group(
        Text(f"{models}, nats a base, {mean}", style="bold"),
        Text(f"{result['genome']}, windows of {result['length']:,} bases\n"),
        table,
    )
