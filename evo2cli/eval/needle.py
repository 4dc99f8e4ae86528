"""`evo2 eval needle`: whether a model recalls a needle from its haystack; docs/eval.md defines it.

    text = haystack with the needle in it + needle        `length` bases in all
    asked: the last bases of the second needle, given all that stands before each

L tokens, V vocabulary.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from evo2cli import __version__, console
from evo2cli.errors import UserError
from evo2cli.eval.draws import draw_bases, draw_window
from evo2cli.eval.plots import draw_needle
from evo2cli.eval.report import (
    check_output,
    length_label,
    mean_and_error,
    write_table,
)
from evo2cli.figures import check_plot
from evo2cli.genome.alphabet import ACGT
from evo2cli.genome.reference import Reference
from evo2cli.journal import open_journal
from evo2cli.lengths import parse_length
from evo2cli.tables import Row, rounded
from stripedhyena2 import StripedHyena2, scoring
from stripedhyena2.fingerprint import fingerprint
from stripedhyena2.scoring import ScoringState, require_finite, token_logprobs

SHORTEST = 32  # bases of a needle: 16, its key, stand by chance nowhere in a million random bases

Advance = Callable[[int], None]
DrawHaystack = Callable[[int, int], bytes]  # of so many bases, for a repeat


@dataclass(frozen=True, kw_only=True)
class NeedleOptions:
    """The command line of `evo2 eval needle`.

    Attributes:
        model: Its name, for the record.
        lengths: Bases of whole texts.
        depths: Percent of the haystack that stands before the needle.
        haystack: FASTA that haystacks are cut from; None for random bases.
        needle_length: Bases of a needle.
        repeats: Haystacks for each length.
        seed: Of haystacks and needles.
        output: TSV or JSON to write.
        plot: Figure to draw.

    Raises:
        UserError: A value is out of range.
    """

    model: str = "nano"
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    haystack: Path | None = None
    needle_length: int = 100
    repeats: int = 10
    seed: int = 0
    output: Path | None = None
    plot: Path | None = None

    def __post_init__(self) -> None:
        if self.needle_length < SHORTEST:
            raise UserError(
                f"--needle-length {self.needle_length}: half of it must be one of its kind in a "
                f"haystack; give {SHORTEST} or more"
            )
        for length in self.lengths:
            if length < 2 * self.needle_length:
                raise UserError(
                    f"--lengths {length}: too short for a needle of {self.needle_length} bases and "
                    f"its copy; {2 * self.needle_length} is the least"
                )
        for depth in self.depths:
            if not 0 <= depth <= 100:
                raise UserError(f"--depths {depth:g}: a percentage lies in 0 to 100")
        check_output(self.output)
        check_plot(self.plot)

    @classmethod
    def parse(cls, *, lengths: str, depths: str, **others: Any) -> "NeedleOptions":
        """The same from lists with commas, in order and each value once.

        Raises:
            UserError: One of them is no length, or no number.
        """
        parsed = {parse_length(text, "--lengths") for text in lengths.split(",")}
        return cls(lengths=tuple(sorted(parsed)), depths=_parse_depths(depths), **others)


def _parse_depths(texts: str) -> tuple[float, ...]:
    depths = set()
    for text in texts.split(","):
        try:
            depth = float(text)
        except ValueError:
            raise UserError(f"--depths {text}: not a percentage such as 50") from None
        depths.add(int(depth) if depth.is_integer() else depth)
    return tuple(sorted(depths))


@dataclass(frozen=True)
class Trial:
    """A haystack, and the needle that is hidden in it and asked for behind it."""

    haystack: bytes
    needle: bytes

    @property
    def num_asked(self) -> int:
        """Bases to tell: the second half of the needle. The first half, given, is the key."""
        return len(self.needle) // 2

    @property
    def control(self) -> bytes:
        """The text without the needle in the haystack, whose own bases stand in its place."""
        return self.haystack + self.needle

    def start(self, depth: float) -> int:
        """Where the needle begins: at 0 % with the haystack, at 100 % it ends with it."""
        return round(depth / 100 * (len(self.haystack) - len(self.needle)))

    def text(self, depth: float) -> bytes:
        """What the model reads: as long as `control`, other than it at the needle's place only."""
        start = self.start(depth)
        after = self.haystack[start + len(self.needle) :]
        return self.haystack[:start] + self.needle + after + self.needle


def find_needles(open_model: Callable[[], StripedHyena2], options: NeedleOptions) -> dict[str, Any]:
    """Ask for needles at every length and depth.

    Args:
        open_model: Called once the options are known to be good.
        options: What is asked.

    Returns:
        evaluation, model, fingerprint, haystack, needle_length, key_length, repeats, seed, and
        cells: for each length and depth the mean of copy accuracy and of likelihood gap (nats a
        base) over the repeats, with standard errors (None for one repeat).

    Raises:
        UserError: The haystack's genome will not do, or a file cannot be written.
        UntrustedNumericsError: A log-likelihood is no finite number.
    """
    with _open_haystacks(options) as draw_haystack:
        for length in options.lengths:  # what cannot be drawn is told before hours of work
            draw_haystack(length - options.needle_length, 0)
        model = open_model()
        _warn_of_extrapolation(options, model)
        identity = fingerprint(model.config, model.state_dict())
        cells = list(_cells(model, identity, options, draw_haystack))
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


def _warn_of_extrapolation(options: NeedleOptions, model: StripedHyena2) -> None:
    longest, context = max(options.lengths), model.config.context
    if longest > context:
        console.warn(
            f"--lengths {longest:,}: above the {context:,} positions the model was trained on, "
            "it extrapolates"
        )


def _cells(
    model: StripedHyena2, identity: str, options: NeedleOptions, draw_haystack: DrawHaystack
) -> Iterator[Row]:
    """Measure every cell; of a length all depths share their haystacks, needles and controls."""
    size, seed, depths = options.needle_length, options.seed, options.depths
    settings = ["evo2 eval needle", __version__, identity, size, seed, depths]
    with (
        open_journal(options.output, settings) as recall,
        console.progress("needle", _num_bases(options), "bases") as bar,
    ):
        for length in options.lengths:
            found = []
            for repeat in range(options.repeats):
                haystack = draw_haystack(length - size, repeat)
                trial = Trial(haystack, draw_bases(size, "needle", seed, length, repeat))
                key = f"{length} {repeat} {zlib.crc32(trial.control):08x}"
                found.append(recall(key, partial(measure, model, trial, depths, bar.advance)))
                bar.note({"length": f"{length:,}", "repeat": f"{repeat + 1}/{options.repeats}"})
            for depth, measures in zip(depths, zip(*found, strict=True), strict=True):
                yield _cell(length, depth, measures)


def _cell(length: int, depth: float, measures: Sequence[Sequence[float]]) -> Row:
    row: Row = {"length": length, "depth": depth, "repeats": len(measures)}
    for name, values in zip(("accuracy", "gap"), zip(*measures, strict=True), strict=True):
        mean, error = mean_and_error(values)
        row[name] = rounded(mean)
        row[f"{name}_se"] = None if error is None else rounded(error)
    return row


def _num_bases(options: NeedleOptions) -> int:
    """Bases that `measure` runs through the model, over all trials."""
    count = 0
    for length in options.lengths:
        trial = Trial(bytes(length - options.needle_length), bytes(options.needle_length))
        count += length + sum(length - _branch(trial, depth) for depth in options.depths)
    return count * options.repeats


def measure(
    model: StripedHyena2, trial: Trial, depths: Sequence[float], advance: Advance = lambda _: None
) -> list[tuple[float, float]]:
    """Copy accuracy and likelihood gap (nats a base) of a trial at each of `depths`, ascending.

    What stands before a needle is computed once for all depths and the control. Every text is cut
    into the same pieces whichever depths are asked, so that a depth's numbers are its own.

    Raises:
        UntrustedNumericsError: A log-likelihood is no finite number.
    """
    shared, read = ScoringState.start(model), 0
    right, sums = [], []
    for depth in depths:
        branch = _branch(trial, depth)
        shared = shared.extend(trial.haystack[read:branch], advance)
        read = branch
        ids_L, logprobs_LV = _answer(model, shared, trial, trial.text(depth), advance)
        right.append(_share_right(ids_L, logprobs_LV))
        sums.append(token_logprobs(logprobs_LV, ids_L).sum().item())
    ids_L, logprobs_LV = _answer(model, shared, trial, trial.control, advance)
    without = token_logprobs(logprobs_LV, ids_L).sum().item()
    return [
        (accuracy, (total - without) / trial.num_asked)
        for accuracy, total in zip(right, sums, strict=True)
    ]


def _branch(trial: Trial, depth: float) -> int:
    """Where the text of a depth leaves the shared way: at the last border of pieces before it."""
    return trial.start(depth) // scoring.CHUNK * scoring.CHUNK


def _answer(
    model: StripedHyena2, shared: ScoringState, trial: Trial, text: bytes, advance: Advance
) -> tuple[Tensor, Tensor]:
    """Tokens [L] that are asked for, and log-probabilities [L, V] in their places."""
    asked = len(text) - trial.num_asked
    before = shared.extend(text[shared.cache.position : asked], advance)
    end, ids_L, logprobs_LV = before.predict(text[asked:])
    require_finite(end.logprob, model, text, f"a text of {len(text):,} bases")
    advance(len(ids_L))
    return ids_L, logprobs_LV


def _share_right(ids_L: Tensor, logprobs_LV: Tensor) -> float:
    """The share of tokens that are the likeliest of A, C, G and T."""
    bases = ids_L.new_tensor(list(ACGT))
    guessed_L = bases[logprobs_LV[:, bases].argmax(dim=1)]
    return (guessed_L == ids_L).double().mean().item()


def needle_page(result: dict[str, Any]) -> RenderableType:
    """Lay out what `find_needles` returns: depths down, lengths across."""
    cells, repeats = result["cells"], result["repeats"]
    title = f"{result['model']}, {repeats} haystacks a length, of {result['haystack']}"
    return Group(
        Text(title, style="bold"),
        Text(f"\ncopy accuracy, chance 0.25{_errors('accuracy', cells)}"),
        _grid("accuracy", cells),
        Text(f"\nlikelihood gap, nats a base, chance 0{_errors('gap', cells)}"),
        _grid("gap", cells),
    )


def _errors(name: str, cells: Sequence[dict[str, Any]]) -> str:
    errors = [cell[f"{name}_se"] for cell in cells if cell[f"{name}_se"] is not None]
    return f"; standard errors to {max(errors):.3f}" if errors else ""


def _grid(name: str, cells: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None)
    table.add_column("depth", justify="right")
    lengths = sorted({cell["length"] for cell in cells})
    for length in lengths:
        table.add_column(length_label(length), justify="right")
    for depth in sorted({cell["depth"] for cell in cells}):
        row = [cell for cell in cells if cell["depth"] == depth]
        table.add_row(f"{depth:g} %", *(f"{cell[name]:z.3f}" for cell in row))
    return table
