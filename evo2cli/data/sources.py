"""Open the data sources of a recipe, in any of the supported formats."""

from pathlib import Path

from evo2cli.data.documents import ArrayDocuments, Documents
from evo2cli.data.jsonl import JsonlDocuments, is_jsonl
from evo2cli.data.megatron import MAGIC, MegatronDocuments, beside
from evo2cli.data.tokens import TokenSet
from evo2cli.errors import UserError
from evo2cli.files import reading
from evo2cli.genome.source import first_bytes
from stripedhyena2.values import require_regular

__all__ = ["Documents", "open_held_out", "open_source"]

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ")  # gzip, bzip2, zstd, xz
_SUPPORTED = "a folder of `evo2 tokenize`, a Megatron .bin or a .jsonl"


def open_source(path: Path, split: str) -> Documents | None:
    """The documents of a source.

    The format is detected from the content: a folder of `evo2 tokenize`; a Megatron or Savanna data
    set, named by its .bin, its .idx or the common prefix of both; or a .jsonl with a "text" in each
    line. Only token sets have splits; any other source is a train split as a whole. To validate on
    it, list it in `data.valid`, which `open_held_out` opens.

    The first time, a Megatron or .jsonl source is read in full and its index cached: let one
    process per machine open it before the others.

    Args:
        path: A path in `data.sources`.
        split: "train", "valid" or "test".

    Returns:
        None if the source has no documents in that split.

    Raises:
        UserError: `path` is not a complete data set in a supported format.
    """
    if path.is_dir():
        return _open_tokens(TokenSet.open(path), path, split)
    if split != "train":
        return None
    with reading(path):
        return _open_file(path)


def open_held_out(path: Path) -> Documents:
    """The documents of a held-out set, i.e. of an entry of `data.valid`.

    Returns:
        The valid split of a token set, or its train split if it has none; all of any other source.

    Raises:
        UserError: As `open_source`, or a token set has only a test split.
    """
    documents = open_source(path, "valid") or open_source(path, "train")
    if documents is None:
        raise UserError(f"{path}: has neither a valid nor a train split; name another source")
    return documents


def _open_tokens(tokens: TokenSet, path: Path, split: str) -> Documents | None:
    if split not in tokens.splits:
        return None
    stored = tokens.split(split)
    facts = {"split": split, "manifest": tokens.manifest}
    return ArrayDocuments(str(path), stored.tokens, stored.offsets, facts)


def _open_file(path: Path) -> Documents:
    if not path.exists():
        if any(beside(path, suffix).is_file() for suffix in (".bin", ".idx")):
            return MegatronDocuments(str(path), path)
        raise UserError(f"{path}: no such file or folder; a source is {_SUPPORTED}")
    require_regular(path, UserError)
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
    if path.suffix in (".bin", ".idx") or start == MAGIC:
        return MegatronDocuments(str(path), path.with_suffix(""))
    if start.startswith(_COMPRESSED):
        raise UserError(
            f"{path}: is compressed, so windows cannot be read from it; convert it first: "
            f"evo2 tokenize {path} -o {path.name.partition('.')[0]}"
        )
    if is_jsonl(path):
        return JsonlDocuments(str(path), path)
    if first_bytes(path).lstrip().startswith(b">"):
        raise UserError(f"{path}: is FASTA; convert it first: evo2 tokenize {path} -o {path.stem}")
    reason = "not a known format" if start else "is empty"
    raise UserError(f"{path}: {reason}; a source is {_SUPPORTED}")
