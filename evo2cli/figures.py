"""Write figures with matplotlib (the extra `plots`), which is imported only if needed."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from evo2cli.console import printable
from evo2cli.errors import UserError
from evo2cli.files import atomic_path, check_file, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg")


def check_plot(path: Path | None) -> None:
    """Check before the work begins that `--plot` can be written; None for no figure.

    Raises:
        UserError: The suffix is unknown, the folder is missing, or matplotlib is not installed.
    """
    if path is None:
        return
    check_file(path, "--plot", SUFFIXES)
    new_figure(1, 1)


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of `width` by `height` inches.

    Raises:
        UserError: matplotlib is not installed.
    """
    # Where the home cannot be written, it would tell of its cache in every run.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "--plot needs matplotlib; pip install 'evo2cli[plots]', or leave --plot out"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure file atomically.

    Texts are not parsed as math, because file names may contain a $.

    Raises:
        UserError: It cannot be written.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
        text.set_text(printable(text.get_text()))
    with writing(path), atomic_path(path) as part:
        figure.savefig(part, format=path.suffix[1:], dpi=110)
