"""The only place that prints: data on stdout, talk and progress on stderr."""

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress, TaskID


def open_missing_streams() -> None:
    """Stand in for streams that the caller has closed: talk goes nowhere, data is an error."""
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as we run
    if sys.stdout is None:
        # Open for reading only: whoever writes hears that there is none.
        sys.stdout = Path(os.devnull).open()  # noqa: SIM115 - for as long as we run


def forget_stdout() -> None:
    """Forget what could not be written, which Python would tell of once more at the end."""
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - until the end


def write(text: str) -> None:
    """Write data to stdout as it is."""
    sys.stdout.write(text)


def write_json(value: Any) -> None:
    """Write one JSON value on one line of stdout; NaN and infinity are refused."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")


def say(message: str) -> None:
    """Tell the user something on stderr."""
    sys.stderr.write(f"evo2: {message}\n")


def warn(message: str) -> None:
    """Tell the user on stderr that something may not be as they think."""
    say(f"warning: {message}")


class _Warnings(logging.Handler):
    """Tells what the floors below log, in our words."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


def tell_warnings() -> None:
    """From now on, tell the user what the model and the kernels have to say."""
    for floor in ("stripedhyena2", "hyenakernels"):
        logging.getLogger(floor).addHandler(_Warnings(logging.WARNING))


PIPE_WIDTH = 200  # columns, where there is no terminal to ask


def write_page(page: "RenderableType", *, stderr: bool = False) -> None:
    """Write something laid out by rich to stdout, or to stderr where it is talk.

    What goes to no terminal is as wide as its lines, so that grep finds them whole.
    """
    from rich.console import Console

    out = Console(highlight=False, stderr=stderr)
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = PIPE_WIDTH
    out.print(page)


def write_description(
    description: Mapping[str, Any], colours: Mapping[str, str], indent: int = 0
) -> None:
    """Write keys and values to stdout, a line each.

    Args:
        description: Keys and values; a mapping among the values is indented.
        colours: Of the letters of `stripes` on a terminal.
        indent: Columns.
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


class ProgressBar:
    """A running task: `advance` it, and `note` what the work is at."""

    def __init__(self, progress: "Progress", task: "TaskID") -> None:
        self._progress, self._task = progress, task

    def advance(self, amount: float = 1) -> None:
        """Count `amount` more units as done."""
        self._progress.advance(self._task, amount)

    def note(self, fields: Mapping[str, object]) -> None:
        """Show `fields` at the end of the bar."""
        text = " ".join(f"{name} {value}" for name, value in fields.items())
        self._progress.update(self._task, note=text)


@contextmanager
def progress(label: str, total: float | None, unit: str) -> Iterator[ProgressBar]:
    """A bar with rate and ETA on stderr; it leaves one summary line where stderr is no terminal.

    Args:
        label: What is being done, e.g. "score".
        total: How many units there are, or None when unknown.
        unit: What is counted, e.g. "bases".
    """
    with _bars(unit) as running:
        yield ProgressBar(running, running.add_task(label, total=total, note=""))


def _bars(unit: str) -> "Progress":
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TaskProgressColumn(),
        bars.TextColumn("{task.completed:,.0f} " + unit),
        bars.TimeElapsedColumn(),
        bars.TextColumn("ETA"),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[note]}"),
    )
    return bars.Progress(*columns, console=Console(stderr=True))


SECONDS_BETWEEN_LINES = 60  # of a panel whose stderr is no terminal


class Panel:
    """Long work on stderr: a live table over a bar on a terminal, a line a minute elsewhere."""

    def __init__(self, label: str, total: int, unit: str, caption: str) -> None:
        from rich.live import Live

        self._label, self._total, self._unit, self._caption = label, total, unit, caption
        self._bars = _bars(unit)
        self._task = self._bars.add_task(label, total=total, note="")
        self._live = Live(self._bars, console=self._bars.console)
        self._is_terminal = self._bars.console.is_terminal
        self._told, self._done = -float("inf"), 0
        self._fields: dict[str, str] = {}

    def __enter__(self) -> "Panel":
        if self._is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_terminal:
            self._live.stop()

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more units as done."""
        self._done += amount
        self._bars.advance(self._task, amount)

    def show(self, fields: Mapping[str, str], *, important: bool = False) -> None:
        """Show `fields`; the last value of each stays.

        Args:
            fields: Labels and values.
            important: A line where there is no terminal, however short ago the last one was.
        """
        from time import monotonic

        from rich.console import Group
        from rich.table import Table

        self._fields.update(fields)
        if self._is_terminal:
            table = Table(caption=self._caption, caption_justify="left")
            for label in self._fields:
                table.add_column(label, justify="right")
            table.add_row(*self._fields.values())
            self._live.update(Group(table, self._bars))
        elif important or monotonic() - self._told >= SECONDS_BETWEEN_LINES:
            self._told = monotonic()
            told = ", ".join(f"{label} {value}" for label, value in self._fields.items())
            say(f"{self._label}: {self._done:,} of {self._total:,} {self._unit}; {told}")
