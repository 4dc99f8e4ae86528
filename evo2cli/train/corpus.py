"""Tokenize a folder of genomes for a run, and check that no held-out sequence is in train."""

import re
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from evo2cli import console
from evo2cli.data.tokens import TokenSet
from evo2cli.errors import UserError
from evo2cli.tokenize.options import TokenizeOptions
from evo2cli.tokenize.run import tokenize_files
from evo2cli.training.recipe import WHOLE, Corpus

OTHER = "other"  # files that belong to no domain
_GENOME = re.compile(r"[^.].*\.(fa|fasta|fna)(\.(gz|bgz|bz2))?", re.IGNORECASE)
Files = dict[str, list[Path]]


def write_corpus(corpus: Corpus) -> None:
    """Write a token set for each domain of `train` and of `valid`, unless it exists.

    Raises:
        UserError: `train` or a domain has no genome, a file cannot be read, `corpus.tokens` has
            tokens of other files, or a sequence of `valid` is in `train` as well (on either strand,
            in any case, under any name).
    """
    if not corpus.path.is_dir():
        raise UserError(
            f"{corpus.path}: no such folder of genomes; name it with --data or data.corpus.path"
        )
    train = train_files(corpus)
    valid = by_domain(genomes(corpus.path / "valid"), corpus.domains)
    for stored in corpus.valid:
        if stored.name not in valid:
            raise UserError(
                f"{stored}: has tokens of other genomes; remove {corpus.tokens}, or set "
                "data.corpus.tokens"
            )
    held_out: dict[str, str] = {}
    for name, files in valid.items():
        tokens = _write(corpus.tokens / "valid" / name, files)
        held_out |= {document.sha256: document.source for document in tokens.documents()}
    for name, files in train.items():
        _refuse_held_out(corpus, _write(corpus.tokens / "train" / name, files), held_out)


def genomes(folder: Path) -> list[Path]:
    """The FASTA files of a folder, sorted by name; empty if the folder does not exist."""
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if _GENOME.fullmatch(file.name))


def train_files(corpus: Corpus) -> Files:
    """The files of each domain of `train`; reports those of no domain, which are left out."""
    folder = corpus.path / "train"
    files = genomes(folder)
    if not files:
        raise UserError(
            f"{corpus.path}: has no genomes; put FASTA files (.fa, .fna, .fasta, also .gz) into "
            f"{folder}, and those to validate on into {corpus.path / 'valid'}"
        )
    if not corpus.domains:
        return {WHOLE: files}
    groups = by_domain(files, corpus.domains)
    left_out = groups.pop(OTHER, [])
    if left_out:
        names = ", ".join(file.name for file in left_out)
        console.say(f"{folder}: left out, since they belong to no domain of the recipe: {names}")
    if missing := [domain for domain in corpus.domains if domain not in groups]:
        raise UserError(
            f"{folder}: no file name begins with {', '.join(missing)}, which the recipe has among "
            "its domains; give the shares of yours, e.g. --set 'data.corpus.domains={bacteria=1}', "
            "or {} to read all files alike"
        )
    return groups


def by_domain(files: Iterable[Path], domains: Collection[str]) -> Files:
    """Group files by the longest domain that is a prefix of their name, or under `OTHER`."""
    groups = defaultdict(list)
    for file in files:
        prefixes = [domain for domain in domains if file.name.startswith(domain)]
        groups[max(prefixes, key=len, default=OTHER)].append(file)
    return dict(groups)


def _write(folder: Path, files: Sequence[Path]) -> TokenSet:
    options = TokenizeOptions(files=tuple(files), output=folder, valid_fraction=0)
    tokenize_files(options, quiet=True)
    return TokenSet.open(folder)


def _refuse_held_out(corpus: Corpus, tokens: TokenSet, held_out: Mapping[str, str]) -> None:
    """Refuse and delete a token set that contains a held-out sequence.

    Args:
        corpus: The corpus.
        tokens: A token set of `train`.
        held_out: Maps the hash of each sequence of `valid` to its file.
    """
    for document in tokens.documents():
        if document.sha256 in held_out:
            shutil.rmtree(tokens.folder)
            raise UserError(
                f"{corpus.path / 'train' / document.source}: its sequence {document.name} is in "
                f"{corpus.path / 'valid' / held_out[document.sha256]} as well, which is held out; "
                "remove one of the two files"
            )
