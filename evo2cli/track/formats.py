"""One value for each base of a genome, written as bedGraph, or as bigWig through pyBigWig.

Positions are 0-based, half-open and sorted in both formats.
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

PutTrack = Callable[[str, int, Sequence[float]], object]  # contig, first position, values


def check_track(path: Path | None) -> None:
    """Refuse a bigWig that could not be written, before any work.

    Raises:
        UserError: pyBigWig is not installed, or `path` is a pipe.
    """
    if path is not None and path.suffix in BIGWIG:
        import_bigwig(path)


@contextmanager
def open_track(path: Path | None, lengths: Mapping[str, int]) -> Iterator[PutTrack]:
    """Yield a function that adds values to a track: a bigWig by its suffix, or else a bedGraph.

    Args:
        path: The file, which appears when everything is written; None for stdout.
        lengths: Number of bases of each contig, in the order in which values come.

    Raises:
        UserError: The file cannot be written.
    """
    if path is not None and path.suffix in BIGWIG:
        with open_bigwig(path, lengths) as put:
            yield put
        return
    with open_output(path) as write:
        yield lambda *values: write(bedgraph_lines(*values))


def bedgraph_lines(contig: str, start: int, values: Sequence[float]) -> bytes:
    """One line for each base; values have six decimals."""
    return "".join(
        f"{contig}\t{position}\t{position + 1}\t{value:.6f}\n"
        for position, value in enumerate(values, start=start)
    ).encode(errors="surrogateescape")


def import_bigwig(path: Path) -> Any:
    """The module pyBigWig.

    Raises:
        UserError: It is not installed, or `path` is a pipe or not UTF-8.
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
def open_bigwig(path: Path, lengths: Mapping[str, int]) -> Iterator[PutTrack]:
    """Yield a function that adds values to a bigWig, which appears when everything is written.

    pyBigWig does not report that a disk is full: it leaves values out, or crashes. So it runs in a
    process of its own, which reads the file again and compares it with what was to be written.

    Args:
        path: The file.
        lengths: Number of bases of each contig, in the order in which values come.

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

        def put(contig: str, start: int, values: Sequence[float]) -> None:
            if values:
                try:
                    ours.send((contig, start, values))
                except OSError:
                    finish()

        def finish() -> None:
            trouble = "pyBigWig crashed"
            with suppress(OSError):
                ours.send(None)
            with suppress(OSError, EOFError):
                trouble = ours.recv()
            if trouble:
                raise UserError(f"{path}: cannot be written; is the disk full? ({trouble})")

        try:
            yield put
            finish()
        finally:
            ours.close()
            process.kill()
            process.join()


def _write_bigwig(path: Path, lengths: Mapping[str, int], pipe: Connection) -> None:
    """Write what comes through the pipe until None comes; answer what failed, or "" if nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # pyBigWig writes there what the answer says
    with suppress(OSError, EOFError):  # the parent is gone
        try:
            _write_and_compare(path, lengths, pipe)
        except (RuntimeError, OverflowError, TypeError) as error:
            pipe.send(f"pyBigWig: {error}")
        else:
            pipe.send("")


def _write_and_compare(path: Path, lengths: Mapping[str, int], pipe: Connection) -> None:
    """Write what comes through the pipe until None comes, and read it again.

    Raises:
        RuntimeError: The file cannot be written, or does not hold what was put into it.
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
        if stored.read() != signature:  # it stands at both ends
            raise RuntimeError("the end of the file was lost")
    file = module.open(str(path))
    for contig, start, end, checksum in written:
        if _checksum(file.values(contig, start, end)) != checksum:
            raise RuntimeError(f"values of {contig} were lost")


def _checksum(values: Sequence[float]) -> int:
    return zlib.crc32(np.asarray(values, np.float32).tobytes())
