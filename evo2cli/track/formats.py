"""One value for each base of a genome, written as bedGraph, or as bigWig through pyBigWig.

Positions are 0-based, half-open and sorted in both formats.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evo2cli.errors import UserError
from evo2cli.files import atomic_path

PutTrack = Callable[[str, int, Sequence[float]], object]  # contig, first position, values


def bedgraph_lines(contig: str, start: int, values: Sequence[float]) -> bytes:
    """One line for each base; values have six decimals."""
    return "".join(
        f"{contig}\t{position}\t{position + 1}\t{value:.6f}\n"
        for position, value in enumerate(values, start=start)
    ).encode(errors="surrogateescape")


def import_bigwig(path: Path) -> Any:
    """The module pyBigWig.

    Raises:
        UserError: It is not installed.
    """
    try:
        import pyBigWig
    except ImportError:
        raise UserError(
            f"--output {path}: bigWig needs pyBigWig; pip install 'evo2cli[bigwig]', or write "
            "x.bedgraph.gz"
        ) from None
    return pyBigWig


@contextmanager
def open_bigwig(path: Path, lengths: Mapping[str, int]) -> Iterator[PutTrack]:
    """Yield a function that adds values to a bigWig, which appears when everything is written.

    Args:
        path: The file.
        lengths: Number of bases of each contig, in the order in which values come.

    Raises:
        UserError: pyBigWig is not installed, or the file cannot be written.
    """
    module = import_bigwig(path)
    with atomic_path(path) as part:
        try:
            file = module.open(str(part), "w")
        except RuntimeError as error:
            raise UserError(f"{path}: cannot be written ({error})") from None

        def put(contig: str, start: int, values: Sequence[float]) -> None:
            if values:
                file.addEntries(contig, start, values=list(values), span=1, step=1)

        file.addHeader(list(lengths.items()))
        yield put
        file.close()
