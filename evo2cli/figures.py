"""Files of figures; matplotlib, of the extra `plots`, is loaded when one is asked for."""

from pathlib import Path
from typing import TYPE_CHECKING

from evo2cli.errors import UserError
from evo2cli.files import check_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg")


def check_plot(path: Path | None) -> None:
    """Refuse a figure that could not be drawn; None, no figure, is fine.

    Raises:
        UserError: Suffix or folder will not do, or matplotlib is not installed.
    """
    if path is None:
        return
    check_file(path, "--plot", SUFFIXES)
    new_figure(1, 1)


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "--plot needs matplotlib; pip install 'evo2cli[plots]', or leave it"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure whole or not at all.

    Raises:
        UserError: It cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        figure.savefig(part, format=path.suffix[1:], dpi=110)
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        part.unlink(missing_ok=True)
