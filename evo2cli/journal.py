"""Journals: results of a long run kept beside its output, so that a killed run resumes."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from evo2cli import console
from evo2cli.files import writing

Recall = Callable[[str, Callable[[], Any]], Any]


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
    with writing(path):
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
            console.say(f"resumed after {self._num_recalled:,} results kept in {self._path}")

    def close(self) -> None:
        self._stream.close()


def _read_entry(line: bytes) -> list[Any] | None:
    """The key and result of a line, or None where it is torn or ended."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if line.endswith(b"\n") else None
