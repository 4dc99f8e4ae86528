"""From FASTA to tokens on disk."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evo2cli import __version__, console
from evo2cli.data.tokens import MANIFEST, SPLITS, TokenSet, TokenWriter, count_bytes
from evo2cli.errors import UserError
from evo2cli.genome.alphabet import LETTERS, canonical, reverse_complement
from evo2cli.genome.fasta import Record, read_records
from evo2cli.genome.source import STDIN

_RNA_TO_DNA = bytes.maketrans(b"Uu", b"Tt")
_PROTEIN_ONLY = b"EFILPQXZ"
_HASH_RANGE = float(2**64)
_IS_LETTER = np.isin(np.arange(256), list(LETTERS))


@dataclass(frozen=True)
class SplitRule:
    """Which split a sequence belongs to.

    The same for a sequence, its copies and its reverse complement, on every machine: it is decided
    by a hash of the content alone.

    Attributes:
        valid_fraction: Of the sequences, that go to valid.
        test_fraction: Of the sequences, that go to test.
        reverse_complement: Whether each document is followed by its reverse complement.
    """

    valid_fraction: float
    test_fraction: float
    reverse_complement: bool

    def __post_init__(self) -> None:
        if min(self.valid_fraction, self.test_fraction) < 0 or (
            self.valid_fraction + self.test_fraction > 1
        ):
            raise UserError(
                f"--valid-fraction {self.valid_fraction} and --test-fraction {self.test_fraction} "
                "must be 0 or more, and 1 at most together"
            )

    def split(self, sha256: str) -> str:
        """The split of the sequence whose canonical form has this hash."""
        place = int(sha256[:16], 16) / _HASH_RANGE
        if place < self.valid_fraction:
            return "valid"
        return "test" if place < self.valid_fraction + self.test_fraction else "train"


@dataclass
class Notes:
    """What was met on the way: counts that are worth a line at the end, and of every byte."""

    letters: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    empty: int = 0
    rna: int = 0
    repeated_names: int = 0
    in_valid: int = 0

    def tell(self) -> None:
        """Say each of them that happened."""
        if self.empty:
            console.say(f"{self.empty:,} empty records skipped")
        if self.rna:
            console.say(f"{self.rna:,} RNA records: U was written as T")
        if self.repeated_names:
            console.warn(f"{self.repeated_names:,} records carry a name met before in their file")
        if self.in_valid:
            console.warn(
                f"{self.in_valid:,} training sequences stand in the validation files too (or their "
                "reverse complements do): left out of train"
            )


def tokenize_files(
    inputs: Sequence[Path],
    output: Path,
    *,
    valid: Sequence[Path] = (),
    valid_fraction: float | None = None,
    test_fraction: float = 0.0,
    reverse_complement: bool = False,
) -> dict[str, Any]:
    """Write the sequences of FASTA files as a token set.

    Args:
        inputs: FASTA files; `-` is stdin.
        output: The folder to make.
        valid: FASTA files whose sequences all go to the valid split.
        valid_fraction: Of the sequences of `inputs`; None is 0.05, or 0 with `valid` files.
        test_fraction: Of the sequences of `inputs`.
        reverse_complement: Follow every document by its reverse complement.

    Returns:
        The manifest.

    Raises:
        UserError: An input is no DNA, an option is out of range, or `output` is taken.
    """
    fraction = (0.0 if valid else 0.05) if valid_fraction is None else valid_fraction
    rule = SplitRule(fraction, test_fraction, reverse_complement)
    sources = [_describe(path, "train") for path in inputs]
    sources += [_describe(path, "valid") for path in valid]
    facts = {"made_by": f"evo2cli {__version__}", "options": asdict(rule), "sources": sources}
    earlier = _already_there(output, facts)
    if earlier is not None:
        console.say(f"{output}: already there, from the same files with the same options")
        return earlier
    started, notes = time.perf_counter(), Notes()
    try:
        size = sum(source["bytes"] or 0 for source in sources)
        with (
            TokenWriter(output) as writer,
            console.progress("tokenize", size or None, "bytes") as bar,
        ):
            held_out = _write_all(valid, writer, rule, notes, bar.advance, "valid", frozenset())
            _write_all(inputs, writer, rule, notes, bar.advance, None, held_out)
            letters = {chr(byte): int(n) for byte, n in enumerate(notes.letters) if n}
            manifest = writer.finish({**facts, "letters": letters})
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error})") from None
    notes.tell()
    _tell(manifest, output, rule, time.perf_counter() - started)
    return manifest


def _describe(path: Path, role: str) -> dict[str, Any]:
    """Name, size and hash of an input; stdin has only a name."""
    if path == STDIN:
        return {"name": "-", "role": role, "bytes": None, "sha256": None}
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {
            "name": path.name,
            "role": role,
            "bytes": path.stat().st_size,
            "sha256": digest,
        }
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _already_there(output: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of an earlier run that made the same; None when `output` is free.

    Raises:
        UserError: `output` holds something else.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if (output / MANIFEST).is_file():
        manifest = TokenSet.open(output).manifest
        hashed = all(source["sha256"] for source in facts["sources"])
        if hashed and all(manifest[key] == facts[key] for key in ("options", "sources")):
            return manifest
        raise UserError(
            f"{output}: holds tokens of other files or options; remove it or choose another -o"
        )
    raise UserError(f"{output}: exists and is no token set; choose another -o")


def _write_all(
    paths: Sequence[Path],
    writer: TokenWriter,
    rule: SplitRule,
    notes: Notes,
    advance: Callable[[float], None],
    split: str | None,
    held_out: frozenset[str],
) -> frozenset[str]:
    """Write every record of `paths`, to `split` or where the rule says.

    Args:
        paths: FASTA files.
        writer: Takes the documents.
        rule: Decides where `split` is None.
        notes: Counts what was met.
        advance: Moves the progress bar by bytes read.
        split: Where all records go, if not None.
        held_out: Hashes of sequences that are left out.

    Returns:
        The hashes of all sequences written.
    """
    written = set()
    for path in paths:
        names: set[str] = set()
        for name, sequence in _clean_records(path, notes, advance):
            notes.repeated_names += name in names
            names.add(name)
            sha256 = hashlib.sha256(canonical(sequence)).hexdigest()
            if sha256 in held_out:
                notes.in_valid += 1
                continue
            written.add(sha256)
            place = split or rule.split(sha256)
            strands = {"+": sequence}
            if rule.reverse_complement:
                strands["-"] = reverse_complement(sequence)
            for strand, document in strands.items():
                writer.add(
                    place,
                    document,
                    name=name,
                    source=path.name,
                    strand=strand,
                    sha256=sha256,
                )
    return frozenset(written)


def _clean_records(
    path: Path, notes: Notes, advance: Callable[[float], None]
) -> Iterator[tuple[str, bytes]]:
    """Name and sequence of the records that hold DNA, with U written as T.

    Raises:
        UserError: A record holds anything else.
    """
    for record in read_records(path, advance):
        sequence = record.sequence
        if not sequence:
            notes.empty += 1
            continue
        counts = count_bytes(sequence)
        if counts[list(b"Uu")].any():
            notes.rna += 1
            sequence = sequence.translate(_RNA_TO_DNA)
            counts = count_bytes(sequence)
        strange = bytes(np.flatnonzero(counts * ~_IS_LETTER).tolist())
        if strange:
            raise UserError(f"{path}: {_accuse(record, strange)}")
        notes.letters += counts
        yield record.name, sequence


def _accuse(record: Record, strange: bytes) -> str:
    """Name the first byte of a record that is one of the `strange`."""
    place, letter = min((record.sequence.index(byte), byte) for byte in strange)
    where = f"record {record.name!r}: {chr(letter)!r} at position {place + 1:,}"
    if letter in _PROTEIN_ONLY + _PROTEIN_ONLY.lower():
        return f"{where} is no nucleotide; this looks like protein"
    if letter in b"-.*":
        return f"{where} is an alignment gap; remove the gaps first"
    return f"{where} is no nucleotide letter (A, C, G, T, U, N or an IUPAC code)"


def _tell(manifest: dict[str, Any], output: Path, rule: SplitRule, seconds: float) -> None:
    splits = manifest["splits"]
    bases = sum(split["bases"] for split in splits.values())
    parts = ", ".join(
        f"{name} {facts['documents']:,} documents {facts['bases']:,} bases"
        for name, facts in splits.items()
    )
    console.say(f"{output}: {parts}; {bases / 1e6 / max(seconds, 1e-9):,.0f} MB/s")
    top = Counter(manifest["letters"]).most_common(6)
    console.say("letters: " + ", ".join(f"{letter} {count:,}" for letter, count in top))
    asked = {"valid": rule.valid_fraction, "test": rule.test_fraction}
    for name in SPLITS[1:]:
        if asked[name] and name not in splits:
            console.warn(
                f"the {name} split is empty: few sequences were given and all fell into train; "
                f"name files for it with --valid, or raise --{name}-fraction"
            )
