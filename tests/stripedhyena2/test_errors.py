"""What other libraries and the system report, in one line."""

import errno
import os
from pathlib import Path

import pytest

from stripedhyena2.checkpoint.contents import CheckpointError
from stripedhyena2.checkpoint.files import writing
from stripedhyena2.errors import reason_of


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a path\nof two lines"),
        OSError("a message\nof two lines"),
        RuntimeError("\nan empty first line"),
        RuntimeError("long" * 1000),
        RuntimeError("  "),
        RuntimeError(),
    ],
)
def test_a_reason_is_one_short_line(error: Exception, tmp_path: Path) -> None:
    reason = reason_of(error)
    assert 0 < len(reason) <= 200
    assert "\n" not in reason
    with pytest.raises(CheckpointError) as raised, writing(tmp_path / "weights"):
        raise error
    assert reason in str(raised.value)
