"""Files that a command shall write, checked before it begins."""

from pathlib import Path

from evo2cli.errors import UserError


def check_file(path: Path, option: str, suffixes: tuple[str, ...]) -> None:
    """Refuse a file to write that has none of `suffixes`, is a folder, or has none.

    Raises:
        UserError: So it is.
    """
    if path.suffix not in suffixes:
        raise UserError(f"{option} {path}: needs the suffix {' or '.join(suffixes)}")
    check_folder(path, option)


def check_folder(path: Path, option: str) -> None:
    """Refuse a file to write that is a folder, or whose folder is not there.

    Raises:
        UserError: So it is.
    """
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: the folder {path.parent} is missing")


def check_output(output: Path | None, *inputs: Path | None) -> None:
    """Refuse what `check_folder` does, and an output that is one of the inputs, by whatever name.

    Raises:
        UserError: So it is.
    """
    if output is None:
        return
    check_folder(output, "--output")
    for path in inputs:
        if path and output.exists() and path.exists() and output.samefile(path):
            raise UserError(f"--output {output}: would overwrite {path}; name another file")
