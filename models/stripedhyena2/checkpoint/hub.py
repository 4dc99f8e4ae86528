"""Models on the Hugging Face hub: in its local cache, in a folder, or downloaded into either.

huggingface-hub downloads and resumes. If all files are present, the network is not used.
"""

import logging
import shutil
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is its client's
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from stripedhyena2.checkpoint.contents import CheckpointError
from stripedhyena2.checkpoint.parts import parts_of
from stripedhyena2.checkpoint.published import PUBLISHED, Precision, Published, split_name

_WEIGHTS = ("*.pt", "*.pt.part*")  # of the published models
# Of any other repository: weights in all layouts that can be read, and files with their shape.
PATTERNS = (
    *_WEIGHTS,
    *("*.safetensors", "*.bin", "*.pth", "*.ckpt", "*.distcp", "*.metadata", "latest*"),
    *("*.json", "*.toml", "*.yml", "*.yaml"),
)


ELSEWHERE = "run `evo2 fetch` on a machine with a network, and give its folder as the model"


def fetch(name: str, folder: Path | None = None, *, way_out: str = ELSEWHERE) -> Path:
    """The folder with the files of a model, downloaded if they are missing.

    Args:
        name: A published model, or owner/name of any repository; @COMMIT may follow.
        folder: Where to put the files; by default the cache of huggingface-hub.
        way_out: What to do without a network, for the error message.

    Raises:
        CheckpointError: Files are missing and cannot be downloaded.
    """
    present = find(name, folder)
    if present is not None:
        return present
    published, commit = _requested(name)
    repository = f"models--{published.repository.replace('/', '--')}"
    where = folder or Path(constants.HF_HUB_CACHE) / repository
    # Without a network, huggingface-hub logs five lines for every attempt.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        planned = snapshot_download(
            published.repository,
            revision=commit,
            local_dir=folder,
            allow_patterns=_patterns(published),
            dry_run=True,
        )
        if not planned:
            raise CheckpointError(f"{name}: {published.repository} has no weights at {commit}")
        missing = sum(file.file_size or 0 for file in planned if file.will_download)
        _require_space(name, missing, where)
        return Path(
            snapshot_download(
                published.repository,
                revision=commit,
                local_dir=folder,
                allow_patterns=_patterns(published),
            )
        )
    except (HTTPError, OSError) as error:
        raise CheckpointError(f"{name}: {_reason(name, where, error, way_out)}") from error


def find(name: str, folder: Path | None = None) -> Path | None:
    """The folder with all files of a model, without using the network; None if any is missing."""
    published, commit = _requested(name)
    if folder is None:
        try:
            folder = Path(
                snapshot_download(
                    published.repository,
                    revision=commit,
                    allow_patterns=_patterns(published),
                    local_files_only=True,
                )
            )
        except LocalEntryNotFoundError:
            return None
        if not published.shape:
            return folder  # huggingface-hub returns the folder of a commit once it is complete
        if commit != published.commit or not published.sizes:
            files = weight_files(folder)
            # At this commit the sizes of parts are unknown; only their number is known.
            whole = files and (files[0].suffix == ".pt" or len(files) >= len(published.sizes))
            return folder if whole else None
    sizes = tuple(file.stat().st_size for file in weight_files(folder))
    return folder if commit == published.commit and sizes and sizes == published.sizes else None


def weight_files(folder: Path) -> list[Path]:
    """The file of a released model, or its parts in order; empty unless it has just one."""
    wholes, firsts = sorted(folder.glob("*.pt")), sorted(folder.glob("*.pt.part0"))
    if len(wholes) + len(firsts) != 1:
        return []
    return wholes or parts_of(firsts[0])


def known_hash(name: str) -> str | None:
    """The SHA-256 of the file of a published model, parts joined, if it is known at this commit."""
    published, commit = _requested(name)
    return published.sha256 if commit == published.commit else None


def _requested(name: str) -> tuple[Published, str]:
    model, commit = split_name(name)
    if commit == "":
        raise CheckpointError(f"{name}: no commit after @; write {model}@main, for example")
    published = PUBLISHED.get(model, Published(model, "", Precision.BF16))
    return published, commit or published.commit


def is_repository(name: str) -> bool:
    """Whether a name has the form of a repository on the hub, owner/name."""
    try:
        validate_repo_id(split_name(name)[0])
    except HFValidationError:
        return False
    return name.count("/") == 1 and not name.startswith("/")


def _patterns(published: Published) -> list[str]:
    return [*(_WEIGHTS if published.shape else PATTERNS)]


def _require_space(name: str, missing: int, where: Path) -> None:
    """Refuse a download that does not fit on the disk, before it starts."""
    begun = sum(file.stat().st_size for file in where.rglob("*.incomplete")) if missing else 0
    existing = next(parent for parent in (where, *where.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if missing - begun > free:
        raise CheckpointError(
            f"{name}: {(missing - begun) / 1e9:,.1f} GB are missing and {where} has "
            f"{free / 1e9:,.1f} GB free; name a folder on another disk, or set HF_HOME to one"
        )


def _reason(name: str, where: Path, error: Exception, way_out: str) -> str:
    published, commit = _requested(name)
    model, _ = split_name(name)
    causes = (error, error.__cause__)
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        return f"{published.repository} has no commit {commit}; try {model}@main"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return f"{published.repository} is not on the hub, or needs a login; try `hf auth login`"
    if isinstance(error, OSError) and error.errno:
        return f"{where} cannot be written ({error.strerror})"
    what = type(causes[-1] or error).__name__
    offline = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
    if commit != "main" and find(f"{model}@main"):
        return f"the local cache has only another commit of it{offline}; use it as {model}@main"
    return (
        f"{published.repository} is not in the local cache and could not be fetched{offline}: "
        f"{what}; {way_out}"
    )
