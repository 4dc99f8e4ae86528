"""Journals: intermediate results of a long run, stored next to its output so that it can resume."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from evo2cli import console
from evo2cli.errors import UserError, counted
from evo2cli.files import beside, writing
from stripedhyena2 import outputs

Recall = Callable[[str, Callable[[], Any]], Any]
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def open_journal(
    output: Path | None, settings: Sequence[object], *, restart: bool = False
) -> Iterator[Recall]:
    """Keep a journal next to `output` until it is complete, so that a killed run can resume.

    Yields `recall(key, compute)`, which replays the results of an earlier run with the same
    `settings`, as long as the keys come in the same order; after that it calls `compute()` and
    stores the result. A warning counts the results of an earlier run that are discarded.

    Args:
        output: Output file, or None for stdout, which has no journal: `recall` always computes.
        settings: Everything that determines the results besides the keys, as JSON values.
        restart: Discard the results of an earlier run.

    Raises:
        UserError: The journal cannot be written, or the file of its name is not one.
    """
    path = journal_of(output)
    with keep_journal(path, settings, restart=restart) as recall:
        yield recall
    if path is not None:
        path.unlink()


def journal_of(output: Path | None) -> Path | None:
    """Path of the journal of an output; None for stdout, devices and pipes."""
    return beside(output, ".journal")


@contextmanager
def open_journals(
    paths: Sequence[Path | None], settings: Sequence[object]
) -> Iterator[list[Recall]]:
    """As `open_journal`, for several parts of an output; journals are kept until all are done.

    Args:
        paths: Journal of each part, or None for no journal.
        settings: As for `open_journal`.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(keep_journal(path, settings)) for path in paths]
        for path in filter(None, paths):
            path.unlink()


@contextmanager
def keep_journal(
    path: Path | None, settings: Sequence[object], *, restart: bool = False
) -> Iterator[Recall]:
    """As `open_journal`, but the journal is kept when the block ends; None for no journal."""
    if path is None:
        yield lambda _key, compute: compute()
        return
    with writing(path):
        journal = _Journal(path, json.dumps(settings), restart=restart)
    try:
        yield journal.recall
    finally:
        journal.close()


def recall_all(
    recall: Recall,
    items: Sequence[Item],
    compute: Callable[[Sequence[Item]], Iterator[Result]],
    key: Callable[[Item], str] = str,
) -> Iterator[Result]:
    """The result of each item, in order; those not in the journal are computed as one batch.

    Args:
        recall: As `open_journal` yields it.
        items: The items.
        compute: Computes the results of the remaining items, in order.
        key: Maps an item to its key in the journal.
    """
    computed: Iterator[Result] | None = None

    def result(index: int) -> Result:
        nonlocal computed
        if computed is None:
            computed = compute(items[index:])
        return next(computed)

    for index, item in enumerate(items):
        yield recall(key(item), partial(result, index))


class _Journal:
    """JSON lines: first the settings, then [key, result] pairs; drops an incomplete last line."""

    def __init__(self, path: Path, settings: str, *, restart: bool) -> None:
        self._path = path
        self._stream = path.open("a+b")
        # The workers of a killed command outlive it for a moment, and may still write.
        outputs.lock(self._stream.fileno(), wait=True)
        self._stream.seek(0)
        first, stored = settings.encode() + b"\n", self._stream.readline()
        if stored and not stored.startswith(b"["):
            self._stream.close()
            raise UserError(f"{path}: is not a journal; move it, or name another output")
        if stored != first or restart:
            self._discard(0)
            self._stream.write(first)
        self._replaying = True
        self._num_recalled = 0

    def recall(self, key: str, compute: Callable[[], Any]) -> Any:
        """The result of `key`: replayed from the journal, or computed and stored."""
        if self._replaying:
            offset = self._stream.tell()
            entry = _read_entry(self._stream.readline())
            if entry and entry[0] == key:
                self._num_recalled += 1
                return entry[1]
            self._stop_replaying(offset)
        result = compute()
        with writing(self._path):
            self._stream.write(json.dumps([key, result]).encode() + b"\n")
            self._stream.flush()
        return result

    def _stop_replaying(self, offset: int) -> None:
        self._replaying = False
        self._stream.seek(offset)
        self._discard(offset)
        if self._num_recalled:
            console.say(
                f"resumed after {counted(self._num_recalled, 'result')} stored in {self._path}"
            )

    def _discard(self, offset: int) -> None:
        """Cut the journal off at `offset`, and warn of the results that stood here and below."""
        num_lost = sum(_read_entry(line) is not None for line in self._stream)
        self._stream.truncate(offset)
        self._stream.seek(offset)  # `truncate` does not move the position, which `recall` reads
        if num_lost:
            console.warn(
                f"{self._path}: {counted(num_lost, 'result')} of a run with other options, another "
                "model or another input discarded"
            )

    def close(self) -> None:
        with suppress(OSError):  # a full disk, which `recall` has reported
            self._stream.close()


def _read_entry(line: bytes) -> list[Any] | None:
    """Key and result of a line, or None at the end of the file or for an incomplete line."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_entry = line.endswith(b"\n") and isinstance(entry, list) and len(entry) == 2
    return entry if is_entry else None
