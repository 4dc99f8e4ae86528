"""The published models by name: their shapes, and their files through huggingface-hub."""

from dataclasses import dataclass
from pathlib import Path

from stripedhyena2.checkpoint.contents import CheckpointError
from stripedhyena2.config import ModelConfig, read_config

BUILT_IN = Path(__file__).parents[1] / "builtin"


@dataclass(frozen=True)
class Published:
    """A published model: its repository on the Hugging Face hub, and whose shape it has."""

    repository: str
    shape: str


PUBLISHED = {
    "evo2_1b_base": Published("arcinstitute/evo2_1b_base", "evo2_1b_base"),
    "evo2_7b_base": Published("arcinstitute/evo2_7b_base", "evo2_7b_base"),
    "evo2_7b_262k": Published("arcinstitute/evo2_7b_262k", "evo2_7b_262k"),
    "evo2_7b": Published("arcinstitute/evo2_7b", "evo2_7b"),
    "evo2_7b_microviridae": Published("evo-design/evo-2-7b-8k-microviridae", "evo2_7b_base"),
    "evo2_20b": Published("arcinstitute/evo2_20b", "evo2_20b"),
    "evo2_40b_base": Published("arcinstitute/evo2_40b_base", "evo2_40b_base"),
    "evo2_40b": Published("arcinstitute/evo2_40b", "evo2_40b"),
}


def published_config(name: str) -> ModelConfig:
    """The shape of a published model."""
    return read_config(shapes_folder() / f"{PUBLISHED[name].shape}.toml")


def shapes_folder() -> Path:
    """Where the shipped shapes are: beside the package in a wheel, in recipes/ in a checkout."""
    installed = Path(__file__).parents[1] / "shapes"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "recipes" / "models"


def fetch(name: str) -> Path:
    """The folder that holds a published model's files; the network is used only if absent.

    Raises:
        CheckpointError: They are not here and cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository = PUBLISHED[name].repository
    try:
        here = Path(snapshot_download(repository, local_files_only=True))
        if any(here.glob("*.pt*")):
            return here
    except LocalEntryNotFoundError:
        pass  # not here at all: ask the network
    try:
        return Path(snapshot_download(repository))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{name}: {repository} is not in the local cache and could not be fetched "
            f"({type(error).__name__}); fetch it where there is a network and give its folder"
        ) from error
