"""Download the files of a published model and verify their checksum."""

from pathlib import Path
from typing import Any

from evo2cli.errors import UserError
from evo2cli.files import sha256 as sha256_of
from stripedhyena2.checkpoint import hub
from stripedhyena2.checkpoint.published import PUBLISHED, split_name


def fetch_model(name: str, folder: Path | None) -> dict[str, Any]:
    """Download the files of a published model, unless they exist, and verify their SHA-256.

    Args:
        name: Name of a published model, optionally with @COMMIT.
        folder: Folder for the files; None for the Hugging Face cache.

    Returns:
        model, folder, files (path and bytes of each), sha256 of the concatenated files, verified
        (True if it equals the recorded one, False if none is recorded), and use (the value for
        `--model`).

    Raises:
        UserError: There is no such model, or the SHA-256 differs from the recorded one.
        CheckpointError: The files cannot be downloaded.
    """
    model, _ = split_name(name)
    if model not in PUBLISHED:
        raise UserError(f"{name}: not a published model; these are: {', '.join(PUBLISHED)}")
    way_out = "run this command on a machine with a network, and copy the folder that it names"
    location = hub.fetch(name, folder, way_out=way_out)
    files = hub.weight_files(location)
    if not files:
        raise UserError(f"{location}: holds more than one .pt file; fetch into another folder")
    sha256, recorded = sha256_of(files), hub.known_hash(name)
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
