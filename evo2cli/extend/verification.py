"""What became of a model in an extension: its losses before and after, and what it recalls.

docs/eval.md defines both measures. Windows come from the held-out documents of the stage's recipe.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from evo2cli import __version__, console
from evo2cli.data.documents import Documents
from evo2cli.data.sources import open_held_out, open_source
from evo2cli.errors import UserError
from evo2cli.eval.context import (
    Part,
    context_page,
    loss_rows,
    measure,
    window_parts,
)
from evo2cli.eval.needle import NeedleOptions, find_needles
from evo2cli.files import open_output
from evo2cli.genome.alphabet import ACGT
from evo2cli.models import open_model
from evo2cli.training.recipe import Recipe
from stripedhyena2.memory import is_out_of_memory

FEWEST, MOST = 4, 64  # windows
TOKENS = 2**21  # in all windows together, where that is neither fewer nor more
CANDIDATES = 4  # places looked at for each window
DEPTHS, REPEATS = (0, 50, 100), 4  # of needles
TOLERANCE = 0.01  # nats a base that the loss in the first context may rise without a warning


def verify(recipe: Recipe, before: str, *, device: str = "auto") -> dict[str, Any]:
    """Measure what a finished stage made of its initial weights, once; later calls read it again.

    Args:
        recipe: Of the stage; its table `[extend]` says up to which position.
        before: The initial weights, as `--model` takes them.
        device: "auto", "cpu", "cuda", ...

    Returns:
        What OUTPUT/verification.json holds. context: as `eval_context.read_context`, the model
        against `before` on held-out windows; None where no held-out document has such a window.
        needle: as `eval_needle.find_needles`, at the new length.

    Raises:
        UserError: The length does not fit the device, or the file cannot be written.
        UntrustedNumericsError: A log-likelihood is no finite number.
    """
    assert recipe.extend is not None
    final, length = recipe.output / "final", recipe.extend.to
    file = recipe.output / "verification.json"
    if _is_newer(file, final / "provenance.json"):
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    options = NeedleOptions(model=str(final), lengths=(length,), depths=DEPTHS, repeats=REPEATS)
    try:
        found = {
            "evo2cli": __version__,
            "context": _losses(recipe, str(final), before, device=device),
            "needle": find_needles(lambda: open_model(str(final), device=device), options),
        }
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"{final}: is trained, but {length:,} positions do not fit the memory of one GPU for "
            "verification; --device cpu has more, if less speed"
        ) from None
    with open_output(file) as write:
        write(json.dumps(found, allow_nan=False, indent=1).encode() + b"\n")
    return found


def verification_page(found: dict[str, Any]) -> RenderableType:
    """Lay out what `verify` returns: the losses, and recall in a line."""
    losses = [] if found["context"] is None else [context_page(found["context"])]
    cells = found["needle"]["cells"]
    depths = ", ".join(f"{cell['depth']:g} %" for cell in cells)
    accuracies = ", ".join(f"{cell['accuracy']:.3f}" for cell in cells)
    gaps = ", ".join(f"{cell['gap']:z.3f}" for cell in cells)
    return Group(
        *losses,
        Text(
            f"\nneedles in {cells[0]['length']:,} bases at {depths}: copied {accuracies} "
            f"(chance 0.25), gap {gaps} nats a base (chance 0)"
        ),
    )


def _is_newer(file: Path, than: Path) -> bool:
    return file.is_file() and file.stat().st_mtime_ns >= than.stat().st_mtime_ns


def _losses(recipe: Recipe, after: str, before: str, *, device: str) -> dict[str, Any] | None:
    """The loss by position of the two models, on the same windows."""
    assert recipe.extend is not None
    length = recipe.extend.to
    windows = held_out_windows(recipe, length, min(MOST, max(FEWEST, TOKENS // length)))
    if not windows:
        console.warn(
            f"no held-out document has {length:,} bases of A, C, G and T alone: the loss by "
            "position is not measured; name one that has in data.valid"
        )
        return None
    losses = []
    with console.progress("context", 2 * len(windows) * length, "bases") as bar:
        for name in (after, before):
            model = open_model(name, device=device)
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
    """Tell if what the model could do before the extension got worse by more than chance."""
    for part, row in zip(parts, rows, strict=True):
        rise, error = row["difference"], row["difference_se"] or 0
        if part.kind == "short" and rise > max(TOLERANCE, 2 * error):
            console.warn(
                f"within the first {part.end:,} positions the loss rose by {rise:.4f} nats a base"
            )


def held_out_windows(recipe: Recipe, length: int, count: int) -> list[bytes]:
    """Up to `count` windows of A, C, G and T alone, upper case, spread evenly over the documents.

    They lie next to one another in documents that have the length, and do not overlap.
    """
    splits = [open_source(source.path, "valid") for source in recipe.data.sources]
    held_out = [documents for documents in splits if documents is not None]
    held_out += [open_held_out(path) for path in recipe.data.valid]
    places = [(documents, start) for documents in held_out for start in _places(documents, length)]
    found = []
    for index in _spread(len(places), CANDIDATES * count):
        documents, start = places[index]
        bases = documents.read(start, length).tobytes().upper()
        if not bases.translate(None, ACGT):
            found.append(bases)
    return [found[index] for index in _spread(len(found), count)]


def _places(documents: Documents, length: int) -> Iterator[int]:
    """Where windows of a source's documents begin in its stream."""
    offsets = documents.offsets
    for document in np.flatnonzero(np.diff(offsets) > length).tolist():  # each ends in one byte
        begin, end = int(offsets[document]), int(offsets[document + 1]) - 1
        yield from range(begin, end - length + 1, length)


def _spread(size: int, count: int) -> list[int]:
    """Up to `count` of `size` things, evenly spread."""
    indices: list[int] = np.linspace(0, size - 1, min(count, size)).round().astype(int).tolist()
    return indices
