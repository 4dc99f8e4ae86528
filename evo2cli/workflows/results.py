"""Results of a long run: an output that appears whole or not at all, and a journal beside it."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from Bio.bgzf import BgzfWriter

from evo2cli import console
from evo2cli.errors import UserError

Row = dict[str, str | int | float | None]
Write = Callable[[bytes], object]
Recall = Callable[[str, Callable[[], Any]], Any]


@contextmanager
def open_output(path: Path | None) -> Iterator[Write]:
    """Yield what writes to `path`, or to stdout for None.

    The file gets its name when everything is written; `.gz` is written as bgzip.

    Raises:
        UserError: The file cannot be written.
    """
    if path is None:
        yield sys.stdout.buffer.write
        sys.stdout.buffer.flush()
        return
    part = path.with_name(f"{path.name}.part")
    with explained(path):
        file = part.open("wb")
        # Biopython declares no types for it.
        stream = BgzfWriter(fileobj=file) if path.suffix == ".gz" else file  # type: ignore[no-untyped-call]

    def write(data: bytes) -> None:
        with explained(path):
            stream.write(data)

    try:
        yield write
        with explained(path):
            stream.close()
            part.replace(path)
    finally:
        file.close()
        part.unlink(missing_ok=True)


@contextmanager
def open_journal(
    output: Path | None, settings: Sequence[object], *, anew: bool = False
) -> Iterator[Recall]:
    """Keep results beside `output` until it is complete; a killed run goes on where it stopped.

    Yields a function of a key and a computation. As long as the keys come as they came last time,
    under equal `settings`, it returns what was computed then. For stdout there is no journal.

    Args:
        output: The file in the making, or None for stdout.
        settings: Everything beside the keys that decides the results, as JSON values.
        anew: Forget what an earlier run has kept.
    """
    path = journal_of(output)
    if anew and path is not None:
        path.unlink(missing_ok=True)
    with open_journals([path], settings) as [recall]:
        yield recall


def journal_of(output: Path | None) -> Path | None:
    """Where the journal of an output lies; nowhere for stdout."""
    return output and output.with_name(f"{output.name}.journal")


@contextmanager
def open_journals(
    paths: Sequence[Path | None], settings: Sequence[object]
) -> Iterator[list[Recall]]:
    """As `open_journal`, for work in parts; all are kept until all of it is done.

    Args:
        paths: The journal of each part, or None for none.
        settings: As for one.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(keep_journal(path, settings)) for path in paths]
        for path in filter(None, paths):
            path.unlink()


@contextmanager
def keep_journal(path: Path | None, settings: Sequence[object]) -> Iterator[Recall]:
    """One that is still there in the end; for no path, none at all."""
    if path is None:
        yield lambda _key, compute: compute()
        return
    with explained(path):
        journal = _Journal(path, json.dumps(settings))
    try:
        yield journal.recall
    finally:
        journal.close()


class _Journal:
    """A line of settings, then a line [key, result] each; a torn last line is dropped."""

    def __init__(self, path: Path, settings: str) -> None:
        self._path = path
        self._stream = path.open("a+b")
        self._stream.seek(0)
        first = settings.encode() + b"\n"
        if self._stream.readline() != first:
            self._stream.truncate(0)
            self._stream.seek(0)  # where it now ends: `recall` asks where it is
            self._stream.write(first)
        self._replaying = True
        self._num_recalled = 0

    def recall(self, key: str, compute: Callable[[], Any]) -> Any:
        """The result of `key`, from the last run or computed and noted down."""
        if self._replaying:
            offset = self._stream.tell()
            entry = _read_entry(self._stream.readline())
            if entry and entry[0] == key:
                self._num_recalled += 1
                return entry[1]
            self._stop_replaying(offset)
        result = compute()
        self._stream.write(json.dumps([key, result]).encode() + b"\n")
        self._stream.flush()
        return result

    def _stop_replaying(self, offset: int) -> None:
        self._replaying = False
        self._stream.truncate(offset)
        if self._num_recalled:
            console.say(f"went on after {self._num_recalled:,} results kept in {self._path}")

    def close(self) -> None:
        self._stream.close()


def _read_entry(line: bytes) -> list[Any] | None:
    """The key and result of a line, or None where it is torn or ended."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if line.endswith(b"\n") else None


def rounded(nats: float) -> float:
    """To a millionth, which is finer than fp32 tells; never -0."""
    return round(nats, 6) + 0.0


def cell(value: object) -> str:
    """A value as tables and INFO show it; None, which has no value, as a dot."""
    if value is None:
        return "."
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def table_line(values: Iterable[object]) -> bytes:
    """A line of a TSV."""
    return ("\t".join(map(cell, values)) + "\n").encode(errors="surrogateescape")


def json_line(row: Mapping[str, object]) -> bytes:
    """A line of JSON."""
    return json.dumps(row, allow_nan=False).encode() + b"\n"


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """An error of the file system in the user's words.

    Raises:
        UserError: In place of it.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
