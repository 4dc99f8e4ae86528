"""From a path to the tensors stored there, whichever program wrote them.

Files and folders are resolved until tensors are found, wrappers and prefixes are removed. What
cannot be read is refused with a line that says what it is.
"""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from operator import methodcaller
from pathlib import Path

from stripedhyena2.checkpoint.contents import CheckpointError
from stripedhyena2.checkpoint.files import open_tensors
from stripedhyena2.checkpoint.layouts.native import BESIDE
from stripedhyena2.checkpoint.layouts.savanna import join_ranks
from stripedhyena2.checkpoint.parts import is_part
from stripedhyena2.checkpoint.shards import shards_of
from stripedhyena2.checkpoint.tensors import Tensors

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
INDEX = ".index.json"
DISTRIBUTED = ".metadata"  # in every torch.distributed checkpoint
# Prefixes that training programs put before every name.
_PREFIXES = ("module.", "_orig_mod.", "_forward_module.", "model.")
_RANK = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_ZERO_3 = re.compile(r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
_OPTIMIZER = re.compile(r"(bf16_)?zero_pp_rank_\d+_mp_rank_\d+_optim_states\.pt")


def looks_like_weights(path: Path) -> bool:
    """Whether the name of a file suggests that it holds weights."""
    return path.suffix in SUFFIXES or is_part(path) or path.name.endswith(INDEX)


@dataclass(frozen=True)
class Source:
    """Tensors as stored in files, before their layout is known.

    Attributes:
        path: Where they were found, for messages.
        tensors: By name, without the prefixes of training programs; loaded lazily.
        blobs: Raw bytes beside them.
        files: The files that hold them.
        unwrapped: The wrappers and prefixes that were removed, outermost first.
        shape: A file that may describe the shape of the model.
    """

    path: Path
    tensors: Tensors
    blobs: dict[str, bytes] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    unwrapped: tuple[str, ...] = ()
    shape: Path | None = None


def open_source(path: Path, is_known: Callable[[Collection[str]], bool]) -> Source:
    """Find the tensors at a path.

    Args:
        path: A file, a part of one, an index of shards, or a folder.
        is_known: Whether tensors of these names are in a known layout.

    Raises:
        CheckpointError: There is no checkpoint, or more than one; or it cannot be read.
    """
    source = _open_folder(path, is_known) if path.is_dir() else _open_file(path)
    return _without_prefixes(source, is_known)


def _open_file(path: Path) -> Source:
    if path.name.endswith(INDEX):
        return _open_shards(path)
    if _OPTIMIZER.fullmatch(path.name):
        raise CheckpointError(
            f"{path}: holds the states of an optimizer, not a model; the weights are in "
            "mp_rank_00_model_states.pt beside it"
        )
    if _ZERO_3.fullmatch(path.name):
        raise CheckpointError(_zero_3(path.parent))
    if not path.exists() and path.with_name(path.name + ".part0").exists():
        path = path.with_name(path.name + ".part0")
    contents = open_tensors(path)
    return Source(
        path, contents.tensors, contents.blobs, (path,), contents.wrappers, _yml_beside(path)
    )


def _open_shards(index: Path) -> Source:
    files = tuple(shards_of(index))
    opened = [open_tensors(file) for file in files]
    tensors = Tensors.joined([contents.tensors for contents in opened])
    return Source(index, tensors, files=files, shape=_hf_config(index.parent))


def _open_folder(folder: Path, is_known: Callable[[Collection[str]], bool]) -> Source:
    names = {entry.name for entry in _entries(folder)}
    if "adapter_config.json" in names:
        raise CheckpointError(
            f"{folder}: is an adapter, not a model; give the model that it was trained on"
        )
    if (folder / DISTRIBUTED).is_file():
        # torch.distributed.checkpoint takes as long to import as the rest of torch.
        from stripedhyena2.checkpoint.distributed import open_distributed

        files = tuple(sorted(file for file in folder.iterdir() if file.is_file()))
        return Source(folder, open_distributed(folder), files=files, shape=_run_config(folder))
    ranks = sorted(name for name in names if _RANK.fullmatch(name))
    if ranks:
        return _open_ranks([folder / name for name in ranks])
    if any(_ZERO_3.fullmatch(name) for name in names):
        raise CheckpointError(_zero_3(folder))
    for pointer, form in (("latest", "{}"), ("latest_checkpointed_iteration.txt", "iter_{:0>7}")):
        if pointer in names:
            return open_source(_step_folder(folder / pointer, form), is_known)
    index = [name for name in sorted(names) if name.endswith(INDEX)]
    candidates = [folder / name for name in index] or [*_candidates(folder)]
    if len(candidates) != 1:
        found = ", ".join(candidate.name for candidate in candidates[:5])
        holds = f"several checkpoints ({found})" if candidates else "no other checkpoint"
        raise CheckpointError(
            f"{folder}: has no config.toml (of a native checkpoint) and {holds}; name the file or "
            "folder"
        )
    source = open_source(candidates[0], is_known)
    return source if source.shape else replace(source, shape=_hf_config(folder))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror})") from None


def _candidates(folder: Path) -> Iterator[Path]:
    """The files and folders in a folder that may be a checkpoint."""
    for entry in _entries(folder):
        if entry.is_dir():
            inside = {inner.name for inner in _entries(entry)}
            if inside & {"config.toml", DISTRIBUTED, "latest"} or any(
                _RANK.fullmatch(name) or _ZERO_3.fullmatch(name) for name in inside
            ):
                yield entry
        elif entry.name not in BESIDE and (entry.suffix in SUFFIXES or entry.suffix == ".part0"):
            yield entry


def _step_folder(pointer: Path, form: str) -> Path:
    """The folder of the training step that a pointer file names."""
    try:
        step = pointer.read_text(encoding="utf-8")[:100].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{pointer}: cannot be read ({error})") from None
    folder = pointer.parent / form.format(step)
    if "/" in step or not folder.is_dir():
        raise CheckpointError(f"{pointer}: names the folder {folder.name}, which is not there")
    return folder


def _open_ranks(files: list[Path]) -> Source:
    """Join the files of model-parallel ranks."""
    numbers = [int(match[1]) for file in files if (match := _RANK.fullmatch(file.name))]
    if numbers != list(range(len(numbers))):
        missing = min(set(range(len(numbers))) - set(numbers))
        raise CheckpointError(f"{files[0].parent}: mp_rank_{missing:02}_model_states.pt is missing")
    opened = [open_tensors(file) for file in files]
    folder = files[0].parent
    tensors = join_ranks([contents.tensors for contents in opened], str(folder))
    wrappers, shape = opened[0].wrappers, _yml_beside(files[0])
    return Source(folder, tensors, opened[0].blobs, tuple(files), wrappers, shape)


def _zero_3(folder: Path) -> str:
    return (
        f"{folder}: holds the shards of a ZeRO-3 run of DeepSpeed, which only DeepSpeed can join; "
        "run the zero_to_fp32.py that lies beside the checkpoint and give its result"
    )


def _yml_beside(file: Path) -> Path | None:
    """The yml with the shape beside a file of weights, as for the released files."""
    yml = file.with_suffix(".yml")
    return yml if yml.is_file() else None


def _hf_config(folder: Path) -> Path | None:
    file = folder / "config.json"
    return file if file.is_file() else None


def _run_config(folder: Path) -> Path | None:
    """The run configuration that Megatron-Bridge or NeMo 2 stores beside its tensors."""
    candidates = (folder / "run_config.yaml", folder.parent / "context" / "model.yaml")
    return next((file for file in candidates if file.is_file()), None)


def _without_prefixes(source: Source, is_known: Callable[[Collection[str]], bool]) -> Source:
    """Remove prefixes that all names share, until the names are those of a known layout."""
    tensors, blobs, removed = source.tensors, source.blobs, list(source.unwrapped)
    while not is_known(list(tensors)) and len(removed) < len(_PREFIXES):
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None)
        if prefix is None:
            break
        tensors = tensors.renamed(methodcaller("removeprefix", prefix))
        blobs = {name.removeprefix(prefix): blob for name, blob in blobs.items()}
        removed.append(prefix.removesuffix("."))
    return replace(source, tensors=tensors, blobs=blobs, unwrapped=tuple(removed))
