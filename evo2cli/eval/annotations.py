"""What INFO says of variants, for reading alone: scored before or not, nothing is written back.

POS is 1-based only inside the line.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from evo2cli.errors import UserError
from evo2cli.genome.source import read_lines

_COLUMNS = 8  # CHROM POS ID REF ALT QUAL FILTER INFO
_DECLARED = re.compile(r'##INFO=<ID=([^,>]+),Number=([^,>]+),.*?Description="(.*)"')


@dataclass(frozen=True, slots=True)
class Declaration:
    """What the header says of an INFO key: how many values it has, and what they mean."""

    number: str
    description: str


@dataclass(frozen=True, slots=True)
class Annotated:
    """A record and its INFO; a flag has the value "".

    Attributes:
        contig: CHROM.
        start: 0-based position of the first base of REF.
        reference: REF as written.
        alternates: ALT split at its commas.
        info: Values by key, as they stand.
    """

    contig: str
    start: int
    reference: str
    alternates: tuple[str, ...]
    info: dict[str, str]

    def values(self, key: str, declared: Declaration | None) -> list[str | None]:
        """The value of each allele: its own where there is one an allele, else what all share.

        None where there is none, or a dot.
        """
        text = self.info.get(key)
        if text is None or text == ".":
            return [None] * len(self.alternates)
        shares: list[str | None] = list(text.split(","))
        if declared is not None and declared.number == "R":
            shares = shares[1:]
        elif declared is not None and declared.number not in ("A", "."):
            shares = [text]
        if len(shares) != len(self.alternates):
            shares = [text] * len(self.alternates)
        return [None if share == "." else share for share in shares]


@dataclass
class AnnotatedFile:
    """A VCF in memory.

    Attributes:
        meta: The last value of each plain `##key=value` line.
        declared: INFO keys by name.
        records: In the file's order.
    """

    meta: dict[str, str] = field(default_factory=dict)
    declared: dict[str, Declaration] = field(default_factory=dict)
    records: list[Annotated] = field(default_factory=list)

    def has(self, key: str) -> bool:
        """Whether a record carries the INFO key."""
        return any(key in record.info for record in self.records)

    def keys(self) -> list[str]:
        """INFO keys that records carry, in the order they turn up."""
        return list(dict.fromkeys(key for record in self.records for key in record.info))


def read_annotated(path: Path) -> AnnotatedFile:
    """Read a VCF: plain, gzip, bgzip or bzip2; `-` is stdin.

    Raises:
        UserError: The file cannot be read or is no VCF.
    """
    found, started = AnnotatedFile(), False
    for number, line in enumerate(read_lines(path), start=1):
        text = line.decode(errors="replace").rstrip("\r\n")
        if started:
            if text.strip():
                found.records.append(_parse(path, number, text))
        elif text.startswith("#CHROM\t"):
            started = True
        elif text.lstrip("\ufeff").startswith("##"):
            _note(found, text)
        else:
            raise UserError(f"{path}: line {number} is neither a ## line nor #CHROM: no VCF")
    if not started:
        raise UserError(f"{path}: has no #CHROM line, so this is no whole VCF")
    return found


def _note(found: AnnotatedFile, line: str) -> None:
    """Keep what a header line tells."""
    declared = _DECLARED.match(line)
    if declared:
        found.declared[declared[1]] = Declaration(declared[2], declared[3])
        return
    key, _, value = line[2:].partition("=")
    if not value.startswith("<"):
        found.meta[key] = value


def _parse(path: Path, number: int, line: str) -> Annotated:
    columns = line.split("\t", _COLUMNS)
    if len(columns) < _COLUMNS or not columns[1].isdigit():
        raise UserError(f"{path}: line {number}: no record of {_COLUMNS} columns with a whole POS")
    info = {}
    for entry in columns[7].split(";"):
        key, _, value = entry.partition("=")
        if key not in ("", "."):
            info[key] = value
    alternates = tuple(columns[4].split(","))
    return Annotated(columns[0], int(columns[1]) - 1, columns[3], alternates, info)
