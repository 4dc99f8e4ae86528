"""The models that ship with the package: every folder of `builtin` with a native checkpoint."""

from pathlib import Path

from stripedhyena2.checkpoint.layouts import native

BUILT_IN = Path(__file__).parents[1] / "builtin"


def built_in_models() -> list[str]:
    """The names of the built-in models, sorted."""
    return sorted(folder.name for folder in BUILT_IN.iterdir() if native.is_native(folder))


def find_built_in(path_or_name: str | Path) -> Path | None:
    """The folder of the built-in model of this name; an existing path of that name goes first."""
    name = str(path_or_name)
    return BUILT_IN / name if name in built_in_models() and not Path(name).exists() else None
