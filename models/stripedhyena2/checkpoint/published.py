"""The published models by name: shape, files, and the precision that they need.

Commits, sizes and SHA-256 were recorded by several public projects; they have not been verified on
the files. A name may request another commit, as in evo2_7b@main.
"""

from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from pathlib import Path

from stripedhyena2.config import ModelConfig, read_config

LICENSE = "Apache-2.0"  # of the published weights


class Precision(StrEnum):
    """The precision that the input projections of a published model need.

    The losses in nats per base are NVIDIA's, at 8,192 bases.

    BF16: no FP8 needed: 0.995 with and without it (7B, 1M).
    FP8: rounding to FP8, on any hardware: 1.077 with, 1.243 without (1B).
    HOPPER: FP8 with the short accumulators of Hopper GPUs: 0.922 there, 1.79 on Blackwell, 1.70
        without FP8 (40B). 20B is reported to need the same.
    """

    BF16 = "bf16"
    FP8 = "fp8"
    HOPPER = "fp8, Hopper"


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        repository: Its repository on the Hugging Face hub.
        shape: Name of the shape file in recipes/models.
        precision: The precision that it needs.
        commit: The commit to fetch unless the name gives another; "main" if none is known.
        sizes: Bytes of its file, or of each of its parts; empty if unknown.
        sha256: SHA-256 of the whole file, parts joined; None if unknown.
    """

    repository: str
    shape: str
    precision: Precision
    commit: str = "main"
    sizes: tuple[int, ...] = ()
    sha256: str | None = None


PUBLISHED = {
    "evo2_1b_base": Published(
        "arcinstitute/evo2_1b_base",
        "evo2_1b_base",
        Precision.FP8,
        commit="2279e1df422c991037470302360edd40d0d2ea1e",
        sizes=(2_698_327_083,),
        sha256="8ffba7d0e6445a8f2c92d9ff1c4e772c7f73ca9179f5e0c699b8b0ca1b966f64",
    ),
    "evo2_7b_base": Published(
        "arcinstitute/evo2_7b_base",
        "evo2_7b_base",
        Precision.BF16,
        commit="074097e9dc788e8bfe045d6495b9f6153a7c6bfc",
        sizes=(13_006_429_947,),
        sha256="d8a0e775a5d849921b8725837c6a3cbc71fa15e712f4189a2ed52ef955aad29b",
    ),
    "evo2_7b_262k": Published(
        "arcinstitute/evo2_7b_262k",
        "evo2_7b_262k",
        Precision.BF16,
        commit="27c4f055e8b729a27ab5c3e6c8b9c35367a76fba",
        sizes=(13_860_249_112,),
        sha256="887d009cb9eaf059e4cc4304861d7196f378c085581a1d9c037b4f8ba6ad623a",
    ),
    "evo2_7b": Published(
        "arcinstitute/evo2_7b",
        "evo2_7b",
        Precision.BF16,
        commit="bda0089f92582d5baabf0f22d9fc85f3588f6b58",
        sizes=(13_766_621_200,),
        sha256="c66645929dc1b9c631f5be656da8726f38946315dc9167000a615dd626fcecf4",
    ),
    "evo2_7b_microviridae": Published(
        "evo-design/evo-2-7b-8k-microviridae", "evo2_7b_base", Precision.BF16
    ),
    "evo2_20b": Published(
        "arcinstitute/evo2_20b",
        "evo2_20b",
        Precision.HOPPER,
        commit="8b0f0a9a70c66367ed181a17d049b95699a28fed",
        sizes=(47_945_795_557,),
        sha256="979b345dc700a9cae6b63f570d9b3f438e31a68dd8dc0bc0d8d2a0fcd3caf791",
    ),
    "evo2_40b_base": Published(
        "arcinstitute/evo2_40b_base",
        "evo2_40b_base",
        Precision.HOPPER,
        commit="a91f87a93194a23d553186b11e11c55d66456d55",
        sizes=(40_340_310_342, 40_340_310_341),
    ),
    "evo2_40b": Published(
        "arcinstitute/evo2_40b",
        "evo2_40b",
        Precision.HOPPER,
        commit="d529aa57c30771814217ad89baaeaf6e2315c7d7",
        sizes=(41_126_745_847, 41_126_745_847),
        sha256="dd299612b1c1cdded0dfdcaf4d16f98fc97458261d80f4d662429f0ccb316bc3",
    ),
}

_NAMES = {published.repository: name for name, published in PUBLISHED.items()}


def split_name(name: str) -> tuple[str, str | None]:
    """Split a name into model and requested commit: evo2_7b@main is evo2_7b, main.

    The repository of a published model is translated to the name of the model.
    """
    model, separator, commit = name.partition("@")
    return _NAMES.get(model, model), commit if separator else None


def published_config(name: str) -> ModelConfig:
    """The shape of a published model."""
    return read_config(recipes_folder() / "models" / f"{PUBLISHED[name].shape}.toml")


def needed_precision(config: ModelConfig) -> Precision:
    """The precision that a published model with these stripes and this width needs."""
    for name, published in PUBLISHED.items():
        shape = published_config(name)
        if (shape.stripes, shape.width) == (config.stripes, config.width):
            return published.precision
    return Precision.BF16


def recipes_folder() -> Path:
    """The folder of the shipped recipes, with the shapes of models in models/.

    A wheel has them inside this package; a source tree (also an editable install) in recipes/.
    """
    package = Path(str(resources.files("stripedhyena2")))
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"
