"""The only module that prints: data on stdout, messages and progress on stderr."""

import codecs
import io
import json
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress
    from rich.table import Table


def replace_closed_streams() -> None:
    """Replace standard streams that are closed: a message is dropped, writing data is an error."""
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - open until the process ends
    if sys.stdout is None:
        # Open for reading only, so that writing to it fails.
        sys.stdout = Path(os.devnull).open()  # noqa: SIM115 - open until the process ends


def never_fail_encoding() -> None:
    r"""Make stdout accept any text, whatever the encoding of the locale.

    Bytes of a file name that are not UTF-8 are written unchanged, so that a printed path or command
    line can be used; a character that the encoding lacks is escaped, e.g. `\xb1`.
    """
    codecs.register_error("evo2", _bytes_or_escape)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="evo2")


def _bytes_or_escape(error: UnicodeError) -> tuple[str | bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    character = error.object[error.start]
    for handler in ("surrogateescape", "backslashreplace"):
        with suppress(UnicodeEncodeError):
            return character.encode("ascii", handler), error.start + 1
    raise error


def discard_stdout() -> None:
    """Drop buffered output, whose failure Python would report a second time at exit."""
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - open until the process ends


def write(text: str) -> None:
    """Write text to stdout unchanged."""
    sys.stdout.write(text)


def write_json(value: Any) -> None:
    """Write a JSON value to stdout on one line; NaN and infinity are errors."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")


def say(message: str) -> None:
    """Write a message to stderr."""
    sys.stderr.write(f"evo2: {message}\n")


def warn(message: str) -> None:
    """Write a warning to stderr."""
    say(f"warning: {message}")


class _Warnings(logging.Handler):
    """Prints warnings that the lower floors log."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


_WARNINGS = _Warnings(logging.WARNING)


def show_warnings() -> None:
    """Print the warnings that our packages log from now on."""
    for package in ("evo2cli", "stripedhyena2", "hyenakernels"):
        logging.getLogger(package).addHandler(_WARNINGS)


PIPE_WIDTH = 200  # columns, where the output is not a terminal


def printable(text: str) -> str:
    """Replace bytes of a file name that are not UTF-8, so that a text can be encoded."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def number_table(label: str, *names: str, justify: 'Literal["left", "right"]' = "left") -> "Table":
    """An empty table with a column of labels, then columns of numbers.

    Args:
        label: Header of the first column.
        names: Headers of the others.
        justify: Alignment of the first column.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column(label, justify=justify, overflow="fold")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def write_page(page: "RenderableType", *, stderr: bool = False) -> None:
    """Write a rich renderable to stdout, or to stderr if it is a message rather than data.

    Without a terminal, lines are not wrapped, so that grep works.
    """
    from rich.console import Console

    out = Console(highlight=False, markup=False, emoji=False, stderr=stderr)
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = PIPE_WIDTH
    out.print(page)


def write_description(
    description: Mapping[str, Any], colours: Mapping[str, str], indent: int = 0
) -> None:
    """Write keys and values to stdout, one per line.

    Args:
        description: Keys and values; nested mappings are indented.
        colours: Colours of the letters of `stripes` on a terminal.
        indent: Indentation in columns.
    """
    from rich.console import Console
    from rich.text import Text

    out = Console(highlight=False, soft_wrap=True)
    for key, value in description.items():
        label = " " * indent + key.replace("_", " ")
        if isinstance(value, Mapping):
            out.print(Text(label))
            write_description(value, colours, indent + 2)
            continue
        line = Text(f"{label:<24} ")
        if key == "stripes":
            for letter in value:
                line.append(letter, style=f"bold {colours[letter]}")
        elif key.rpartition("_")[0].endswith("bytes") or label.strip().isdigit():
            line.append(f"{value / 2**30:,.3f} GiB")
        else:
            line.append(f"{value:,}" if type(value) is int else _plain(value))
        out.print(line)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        nested = any(isinstance(entry, Mapping) for entry in value)
        return f"{len(value)} entries (--json shows them)" if nested else ", ".join(map(str, value))
    return str(value)


SECONDS_BETWEEN_LINES = 60  # of progress, where stderr is not a terminal


class ProgressBar:
    """A progress bar on stderr; without a terminal, e.g. in the log of a job, a line per minute."""

    def __init__(self, label: str, total: float | None, unit: str) -> None:
        self._progress = _bars(unit, has_end=total is not None)
        self._progress.add_task(label, total=total, note="")
        (self._task,) = self._progress.tasks
        self._unit = unit
        self._is_terminal = self._progress.console.is_terminal
        self._next_line = monotonic() + SECONDS_BETWEEN_LINES

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, amount: float = 1) -> None:
        """Advance the bar by `amount` units."""
        self._progress.advance(self._task.id, amount)
        if not self._is_terminal and monotonic() >= self._next_line:
            self._next_line = monotonic() + SECONDS_BETWEEN_LINES
            say(self._line())

    def _line(self) -> str:
        task = self._task
        total = f" of {task.total:,.0f}" if task.total else ""
        left = task.time_remaining
        eta = "" if left is None else f", ETA {timedelta(seconds=round(left))}"
        note = f"; {task.fields['note']}" if task.fields["note"] else ""
        return f"{task.description}: {task.completed:,.0f}{total} {self._unit}{eta}{note}"

    def note(self, fields: Mapping[str, object]) -> None:
        """Show `fields` at the end of the bar."""
        text = " ".join(f"{name} {value}" for name, value in fields.items())
        self._progress.update(self._task.id, note=text)


def progress(label: str, total: float | None, unit: str) -> ProgressBar:
    """Create a progress bar with elapsed time and ETA.

    Args:
        label: Name of the task, e.g. "score".
        total: Number of units, or None if unknown.
        unit: Plural noun, e.g. "bases".
    """
    return ProgressBar(label, total, unit)


def _bars(unit: str, *, has_end: bool) -> "Progress":
    from rich import progress as bars
    from rich.console import Console

    end = (bars.TextColumn("ETA"), bars.TimeRemainingColumn()) if has_end else ()
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TaskProgressColumn(),
        bars.TextColumn("{task.completed:,.0f} " + unit),
        bars.TimeElapsedColumn(),
        *end,
        bars.TextColumn("{task.fields[note]}"),
    )
    return bars.Progress(*columns, console=Console(stderr=True))


class Panel:
    """Live metrics and progress on stderr: a table and a bar; without a terminal, log lines."""

    def __init__(self, label: str, total: int, unit: str, caption: str) -> None:
        from rich.live import Live

        self._label, self._total, self._unit, self._caption = label, total, unit, caption
        self._bars = _bars(unit, has_end=True)
        self._task = self._bars.add_task(label, total=total, note="")
        self._live = Live(self._bars, console=self._bars.console)
        self._is_terminal = self._bars.console.is_terminal
        self._last_line, self._done = -float("inf"), 0
        self._fields: dict[str, str] = {}

    def __enter__(self) -> "Panel":
        if self._is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_terminal:
            self._live.stop()

    def advance(self, amount: int = 1) -> None:
        """Advance the bar by `amount` units."""
        self._done += amount
        self._bars.advance(self._task, amount)

    def show(self, fields: Mapping[str, str], *, important: bool = False) -> None:
        """Update some fields; the others keep their values.

        Args:
            fields: Labels and values.
            important: Without a terminal, print a line now, even within a minute of the last.
        """
        from rich.console import Group
        from rich.table import Table

        self._fields.update(fields)
        if self._is_terminal:
            table = Table(caption=self._caption, caption_justify="left")
            for label in self._fields:
                table.add_column(label, justify="right")
            table.add_row(*self._fields.values())
            self._live.update(Group(table, self._bars))
        elif important or monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = monotonic()
            shown = ", ".join(f"{label} {value}" for label, value in self._fields.items())
            say(f"{self._label}: {self._done:,} of {self._total:,} {self._unit}; {shown}")
