"""Write one value per base of a genome as bedGraph, or as bigWig with pyBigWig.

In both formats positions are 0-based, half-open and sorted.
"""

import multiprocessing
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from evo2cli.errors import UserError
from evo2cli.files import atomic_path, open_output, require_utf8
from evo2cli.processes import start_child
from evo2cli.track.options import BIGWIG

WriteTrack = Callable[[str, int, Sequence[float]], object]  # contig, first position, values


def check_track(path: Path | None) -> None:
    """Check before the work begins that a bigWig can be written.

    Raises:
        UserError: pyBigWig is not installed, or `path` is a pipe.
    """
    if path is not None and path.suffix in BIGWIG:
        import_bigwig(path)


@contextmanager
def open_track(path: Path | None, lengths: Mapping[str, int]) -> Iterator[WriteTrack]:
    """Yield a function that adds values to a track: bigWig by its suffix, otherwise bedGraph.

    Args:
        path: The file, which is written atomically; None for stdout.
        lengths: Number of bases of each contig, in the order of the values.

    Raises:
        UserError: The file cannot be written.
    """
    if path is not None and path.suffix in BIGWIG:
        with open_bigwig(path, lengths) as write_values:
            yield write_values
        return
    with open_output(path) as write:
        yield lambda *values: write(bedgraph_lines(*values))


def bedgraph_lines(contig: str, start: int, values: Sequence[float]) -> bytes:
    """One line per base, with six decimals."""
    return "".join(
        f"{contig}\t{position}\t{position + 1}\t{value:.6f}\n"
        for position, value in enumerate(values, start=start)
    ).encode(errors="surrogateescape")


def import_bigwig(path: Path) -> Any:
    """Import pyBigWig.

    Args:
        path: The file to write, for messages.

    Raises:
        UserError: It is not installed, or the path is a pipe or not UTF-8.
    """
    require_utf8(path, "bigWig")
    try:
        import pyBigWig
    except ImportError:
        raise UserError(
            f"--output {path}: bigWig needs pyBigWig; pip install 'evo2cli[bigwig]', or write "
            "x.bedgraph.gz"
        ) from None
    if path.is_fifo():
        raise UserError(
            f"--output {path}: is a pipe, and bigWig is not written from start to end; name a file"
        )
    return pyBigWig


@contextmanager
def open_bigwig(path: Path, lengths: Mapping[str, int]) -> Iterator[WriteTrack]:
    """Yield a function that adds values to a bigWig, which is written atomically.

    pyBigWig does not report a full disk: it omits values, or crashes. So it runs in a child
    process, which reads the file back and compares it with the values.

    Args:
        path: The file.
        lengths: Number of bases of each contig, in the order of the values.

    Raises:
        UserError: pyBigWig is not installed, or the file cannot be written.
    """
    import_bigwig(path)
    context = multiprocessing.get_context("spawn")
    with atomic_path(path) as part:
        ours, theirs = context.Pipe()
        process = context.Process(target=_write_bigwig, args=(part, lengths, theirs), daemon=True)
        start_child(process)
        theirs.close()

        def write(contig: str, start: int, values: Sequence[float]) -> None:
            if values:
                try:
                    ours.send((contig, start, values))
                except OSError:
                    finish()

        def finish() -> None:
            problem = "pyBigWig crashed"
            with suppress(OSError):
                ours.send(None)
            with suppress(OSError, EOFError):
                problem = ours.recv()
            if problem:
                raise UserError(f"{path}: cannot be written; is the disk full? ({problem})")

        try:
            yield write
            finish()
        finally:
            ours.close()
            process.kill()
            process.join()


def _write_bigwig(path: Path, lengths: Mapping[str, int], pipe: Connection) -> None:
    """Write values from the pipe until None; then send the problem through it, "" for success."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # pyBigWig prints errors that are sent instead
    with suppress(OSError, EOFError):  # the parent has ended
        try:
            _write_and_compare(path, lengths, pipe)
        except (RuntimeError, OverflowError, TypeError) as error:
            pipe.send(f"pyBigWig: {error}")
        else:
            pipe.send("")


def _write_and_compare(path: Path, lengths: Mapping[str, int], pipe: Connection) -> None:
    """Write values from the pipe until None, then read the file back and compare.

    Raises:
        RuntimeError: The file cannot be written, or does not hold the values.
    """
    module = import_bigwig(path)
    file = module.open(str(path), "w")
    file.addHeader(list(lengths.items()))
    written = []
    for contig, start, values in iter(pipe.recv, None):
        file.addEntries(contig, start, values=values, span=1, step=1)
        written.append((contig, start, start + len(values), _checksum(values)))
    file.close()
    with path.open("rb") as stored:
        signature = stored.read(4)
        stored.seek(-4, os.SEEK_END)
        if stored.read() != signature:  # a bigWig begins and ends with it
            raise RuntimeError("the end of the file was lost")
    file = module.open(str(path))
    for contig, start, end, checksum in written:
        if _checksum(file.values(contig, start, end)) != checksum:
            raise RuntimeError(f"values of {contig} were lost")


def _checksum(values: Sequence[float]) -> int:
    return zlib.crc32(np.asarray(values, np.float32).tobytes())
