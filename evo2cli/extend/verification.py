"""Verify an extended model: loss by position before and after, and needle recall.

docs/eval.md defines both metrics. Windows come from the held-out documents of the stage's recipe.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pydantic import JsonValue, TypeAdapter
from rich.console import Group, RenderableType
from rich.text import Text

from evo2cli import __version__, console
from evo2cli.data.documents import Documents
from evo2cli.data.sources import open_held_out, open_source
from evo2cli.eval.context import Part, context_page, loss_rows, measure, window_parts
from evo2cli.eval.needle import find_needles
from evo2cli.eval.options import NeedleOptions
from evo2cli.files import open_output
from evo2cli.genome.alphabet import ACGT
from evo2cli.models import memory_explained, open_model
from evo2cli.options import ModelOptions
from evo2cli.training.recipe import Recipe
from stripedhyena2.values import read_json

_KNOWN = TypeAdapter(dict[str, JsonValue])
MIN_WINDOWS, MAX_WINDOWS = 4, 64
TOTAL_TOKENS = 2**21  # of all windows together, within MIN_WINDOWS and MAX_WINDOWS
CANDIDATES = 4  # candidate windows per window used; those with letters other than ACGT are dropped
TOLERANCE = 0.01  # nats per base by which the loss in the original context may rise


def verify(recipe: Recipe, before: str, *, device: str = "auto") -> dict[str, Any]:
    """Measure loss and recall of a finished stage; later calls read the stored results.

    Args:
        recipe: Recipe of the stage, with a table `[extend]`.
        before: The initial weights, as `open_model` reads them.
        device: "auto", "cpu", "cuda", ...

    Returns:
        The contents of OUTPUT/verification.json. context: from `evaluate_context`, the model
        against `before` on held-out windows; None if no held-out document is long enough.
        needle: from `find_needles`, at the new length.

    Raises:
        UserError: The length does not fit the memory, or the file cannot be written.
        NonFiniteError: A log-likelihood is not a finite number.
    """
    assert recipe.extend is not None
    final, length = recipe.output / "final", recipe.extend.to
    file, provenance = recipe.output / "verification.json", final / "provenance.json"
    if file.is_file() and file.stat().st_mtime_ns >= provenance.stat().st_mtime_ns:
        return read_json(file, _KNOWN)
    options = NeedleOptions(
        model=str(final), lengths=str(length), depths="0,50,100", repeats=4, device=device
    )
    with memory_explained(
        f"{final}: is trained; verification with {length:,} positions on one device",
        "--device cpu has more memory, but is slower",
    ):
        results = {
            "evo2cli": __version__,
            "context": _compare_losses(recipe, str(final), before, device=device),
            "needle": find_needles(options),
        }
    with open_output(file) as write:
        write(json.dumps(results, allow_nan=False, indent=1).encode() + b"\n")
    return results


def verification_page(results: dict[str, Any]) -> RenderableType:
    """Lay out the result of `verify`: a table of losses, and a line about recall."""
    losses = [] if results["context"] is None else [context_page(results["context"])]
    cells = results["needle"]["cells"]
    depths = ", ".join(f"{cell['depth']:g} %" for cell in cells)
    accuracies = ", ".join(f"{cell['accuracy']:.3f}" for cell in cells)
    gaps = ", ".join(f"{cell['gap']:z.3f}" for cell in cells)
    return Group(
        *losses,
        Text(
            f"\nneedles in {cells[0]['length']:,} bases at {depths}: copied {accuracies} "
            f"(chance 0.25), gap {gaps} nats per base (chance 0)"
        ),
    )


def _compare_losses(
    recipe: Recipe, after: str, before: str, *, device: str
) -> dict[str, Any] | None:
    """The loss by position of both models on the same held-out windows."""
    assert recipe.extend is not None
    length = recipe.extend.to
    count = min(MAX_WINDOWS, max(MIN_WINDOWS, TOTAL_TOKENS // length))
    windows = held_out_windows(recipe, length, count)
    if not windows:
        console.warn(
            f"no held-out document has {length:,} bases of A, C, G and T alone: the loss by "
            "position is not measured; name one that has in data.valid"
        )
        return None
    losses = []
    with console.progress("context", 2 * len(windows) * length, "bases") as bar:
        for name in (after, before):
            model = open_model(ModelOptions(model=name, device=device))
            if name == after:
                parts = window_parts(length, model.config.original_context)
            losses.append([measure(model, window, parts, bar.advance) for window in windows])
            del model  # one at a time in memory
    rows = loss_rows(parts, *losses)
    _warn_of_harm(parts, rows)
    return {
        "evaluation": "context",
        "model": after,
        "against": before,
        "genome": "held-out documents of the recipe",
        "length": length,
        "windows": len(windows),
        "rows": rows,
    }


def _warn_of_harm(parts: Sequence[Part], rows: Sequence[dict[str, Any]]) -> None:
    """Warn if the loss in the original context rose by more than `TOLERANCE` and 2 std errors."""
    for part, row in zip(parts, rows, strict=True):
        rise, error = row["difference"], row["difference_se"] or 0
        if part.kind == "short" and rise > max(TOLERANCE, 2 * error):
            console.warn(
                f"within the first {part.end:,} positions the loss rose by {rise:.4f} nats per base"
            )


def held_out_windows(recipe: Recipe, length: int, count: int) -> list[bytes]:
    """Up to `count` held-out windows of only A, C, G and T, upper case, spread evenly.

    They are taken from consecutive, non-overlapping windows of documents that are long enough.
    """
    splits = [open_source(source.path, "valid") for source in recipe.data.train_sources]
    held_out = [documents for documents in splits if documents is not None]
    held_out += [open_held_out(path) for path in recipe.data.held_out]
    starts = [
        (documents, start) for documents in held_out for start in _window_starts(documents, length)
    ]
    windows = []
    for index in _evenly_spaced(len(starts), CANDIDATES * count):
        documents, start = starts[index]
        bases = documents.read(start, length).tobytes().upper()
        if not bases.translate(None, ACGT):
            windows.append(bases)
    return [windows[index] for index in _evenly_spaced(len(windows), count)]


def _window_starts(documents: Documents, length: int) -> Iterator[int]:
    """Offsets of windows in the token stream of `documents`."""
    offsets = documents.offsets
    # Sizes include the end-of-document byte.
    for document in np.flatnonzero(np.diff(offsets) > length).tolist():
        begin, end = int(offsets[document]), int(offsets[document + 1]) - 1
        yield from range(begin, end - length + 1, length)


def _evenly_spaced(size: int, count: int) -> list[int]:
    """Up to `count` indices below `size`, evenly spaced."""
    indices: list[int] = np.linspace(0, size - 1, min(count, size)).round().astype(int).tolist()
    return indices
