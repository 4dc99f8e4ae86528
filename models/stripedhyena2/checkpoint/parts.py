"""Files that were split into parts, read as one without a second copy on disk."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from stripedhyena2.checkpoint.contents import CheckpointError
from stripedhyena2.values import require_regular

_PART = re.compile(r"\.part(\d+)$")


def is_part(path: Path) -> bool:
    """Whether a file is a part of another, NAME.partN."""
    return _PART.search(path.name) is not None


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of a file, or of all parts of one."""
    if is_part(path):
        with io.BufferedReader(JoinedParts(parts_of(path))) as joined:
            yield cast(io.BufferedReader, joined)
    else:
        with path.open("rb") as file:
            yield file


def parts_of(path: Path) -> list[Path]:
    """All parts of the file that `path` (NAME.partN) is a part of, in order.

    Raises:
        CheckpointError: A part is missing, or is not a regular file.
    """
    whole = _PART.sub("", path.name)
    numbers = sorted(
        int(match[1])
        for sibling in path.parent.glob(f"{whole}.part*")
        if (match := _PART.search(sibling.name))
    )
    if numbers != list(range(len(numbers))) or not numbers:
        missing = next(number for number in range(len(numbers) + 1) if number not in numbers)
        raise CheckpointError(f"{path.parent / whole}.part{missing}: this part is missing")
    parts = [path.parent / f"{whole}.part{number}" for number in numbers]
    for part in parts:
        require_regular(part, CheckpointError)
    return parts


class JoinedParts(io.RawIOBase):
    """Several files read as one, without a second copy on disk."""

    def __init__(self, paths: list[Path]) -> None:
        self._files = [path.open("rb") for path in paths]
        self._sizes = [path.stat().st_size for path in paths]
        self._position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move within the joined bytes."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: sum(self._sizes)}
        self._position = origin[whence] + offset
        return self._position

    def tell(self) -> int:
        """The position of the next byte."""
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # any writable buffer
        """Fill `buffer` from the file that holds the current position."""
        start = 0
        for file, size in zip(self._files, self._sizes, strict=True):
            if self._position < start + size:
                file.seek(self._position - start)
                count = file.readinto(buffer)
                self._position += count
                return count
            start += size
        return 0

    def close(self) -> None:
        """Close every part."""
        for file in self._files:
            file.close()
        super().close()
