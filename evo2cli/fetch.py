"""A published model's files, brought here and checked."""

import hashlib
from pathlib import Path
from typing import Any

from evo2cli import console
from evo2cli.errors import UserError
from stripedhyena2 import CheckpointError
from stripedhyena2.checkpoint import hub
from stripedhyena2.checkpoint.published import PUBLISHED, split_name

CHUNK = 1 << 24  # bytes read at once


def fetch_model(name: str, folder: Path | None) -> dict[str, Any]:
    """Bring a published model's files here, if they are not, and read them all once.

    Args:
        name: A published name; @COMMIT may follow.
        folder: Where they shall lie; None for the hub's cache.

    Returns:
        model, folder, files (path and bytes each), sha256 of the whole file, whether that was known
        and is right (`verified`), and what `--model` takes from now on (`use`).

    Raises:
        UserError: There is no such model; its files cannot be had, or are not what was published.
    """
    model, _ = split_name(name)
    if model not in PUBLISHED:
        raise UserError(f"no published model {name!r}; there are {', '.join(PUBLISHED)}")
    try:
        here = hub.fetch(name, folder)
        files = hub.weight_files(here)
    except CheckpointError as error:
        raise UserError(str(error)) from None
    if not files:
        raise UserError(f"{here}: holds more than one .pt file; fetch into another folder")
    found, known = _sha256(files), hub.known_hash(name)
    if known is not None and found != known:
        raise UserError(
            f"{files[0]}: SHA-256 {found} is not the recorded {known}; delete the folder and fetch "
            "again"
        )
    return {
        "model": model,
        "folder": str(here),
        "files": [{"path": str(file), "bytes": file.stat().st_size} for file in files],
        "sha256": found,
        "verified": known is not None,
        "use": name if folder is None else str(here),
    }


def _sha256(files: list[Path]) -> str:
    """Of the files read as one."""
    digest = hashlib.sha256()
    total = sum(file.stat().st_size for file in files)
    with console.progress("check", total, "bytes") as bar:
        for path in files:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
                    bar.advance(len(chunk))
    return digest.hexdigest()
