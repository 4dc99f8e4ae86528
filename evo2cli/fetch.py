"""Download the files of a published model and verify their checksum."""

import hashlib
from pathlib import Path
from typing import Any

from evo2cli import console
from evo2cli.errors import UserError
from stripedhyena2.checkpoint import hub
from stripedhyena2.checkpoint.published import PUBLISHED, split_name

CHUNK = 1 << 24  # bytes read at once


def fetch_model(name: str, folder: Path | None) -> dict[str, Any]:
    """Download the files of a published model unless they are here, and compute their SHA-256.

    Args:
        name: Name of a published model; @COMMIT may follow.
        folder: Where to put the files; None for the cache of the Hugging Face hub.

    Returns:
        model, folder, files (path and bytes of each), sha256 of the files joined, verified (True
        if it equals the recorded one, False if none is recorded), and use (what `--model` takes).

    Raises:
        UserError: There is no such model, or the SHA-256 differs from the recorded one.
        CheckpointError: Its files cannot be downloaded.
    """
    model, _ = split_name(name)
    if model not in PUBLISHED:
        raise UserError(f"{name}: not a published model; these are: {', '.join(PUBLISHED)}")
    location = hub.fetch(name, folder)
    files = hub.weight_files(location)
    if not files:
        raise UserError(f"{location}: holds more than one .pt file; fetch into another folder")
    sha256, recorded = _sha256(files), hub.known_hash(name)
    if recorded is not None and sha256 != recorded:
        raise UserError(
            f"{files[0]}: SHA-256 {sha256} is not the recorded {recorded}; delete the folder "
            "and fetch again"
        )
    return {
        "model": model,
        "folder": str(location),
        "files": [{"path": str(file), "bytes": file.stat().st_size} for file in files],
        "sha256": sha256,
        "verified": recorded is not None,
        "use": name if folder is None else str(location),
    }


def _sha256(files: list[Path]) -> str:
    """SHA-256 of the files joined."""
    digest = hashlib.sha256()
    total = sum(file.stat().st_size for file in files)
    with console.progress("check", total, "bytes") as bar:
        for path in files:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
                    bar.advance(len(chunk))
    return digest.hexdigest()
