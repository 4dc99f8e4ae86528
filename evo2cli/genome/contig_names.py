"""Synonyms of contig names: chr17, 17, NC_000017.11 and CM000679.2; and those of a user's file.

A prefix chr (also Chr, as in Arabidopsis and rice, or CHR) makes no difference, and M and Mt are
MT. Accessions of RefSeq and GenBank belong to a chromosome of one build, so two of different builds
never name the same contig.

Source: the columns Sequence-Name, GenBank-Accn and RefSeq-Accn of the assembly reports of NCBI that
`evo2cli.genome.builds` lists. The name of the mitochondrion, MT or chrM, is that of all of them.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from evo2cli.errors import UserError
from evo2cli.genome.builds import BUILDS, MITOCHONDRION, builds_of
from evo2cli.genome.formats import Wanted, refuse_other
from evo2cli.genome.source import numbered_lines

# Columns of an assembly report of NCBI that hold names: its own, GenBank's, RefSeq's and UCSC's.
_REPORT, _REPORT_COLUMNS = "# Sequence-Name", (0, 4, 6, 9)
_NO_NAME = "na"
_PREFIXES = ("chr", "Chr", "CHR")
_MITOCHONDRIA = ("M", "Mt", MITOCHONDRION)

# Chromosome and builds by accession; accessions by chromosome.
_BY_ACCESSION: dict[str, tuple[str, set[str]]] = {}
_ACCESSIONS: dict[str, list[str]] = defaultdict(list)
for _build in BUILDS:
    for _accession, _chromosome in _build.accessions.items():
        if _accession not in _BY_ACCESSION:
            _BY_ACCESSION[_accession] = (_chromosome, set())
            _ACCESSIONS[_chromosome].append(_accession)
        _BY_ACCESSION[_accession][1].add(_build.name)


def plain_name(contig: str) -> str:
    """The name of a contig without chr, MT for M, and 17 for an accession of chromosome 17."""
    if contig in _BY_ACCESSION:
        return _BY_ACCESSION[contig][0]
    bare = contig[3:] if contig.startswith(_PREFIXES) else contig
    return MITOCHONDRION if bare in _MITOCHONDRIA else bare


def builds_named(contig: str) -> set[str]:
    """The names of the builds that an accession belongs to; none for other names."""
    return _BY_ACCESSION[contig][1] if contig in _BY_ACCESSION else set()


def is_other_build(contig: str, length: int) -> bool:
    """Whether a chromosome has the length of another build than that of its accession.

    Args:
        contig: A name; only an accession can be of another build.
        length: Bases of the chromosome in a genome.
    """
    actual = builds_of(plain_name(contig), length)
    named = builds_named(contig)
    return bool(named and actual) and named.isdisjoint(actual)


@lru_cache(maxsize=1 << 14)
def _synonyms(name: str) -> tuple[str, ...]:
    """All synonyms of a contig name, beginning with itself."""
    plain, builds = plain_name(name), builds_named(name)
    bare = _MITOCHONDRIA if plain == MITOCHONDRION else (plain,)
    short = [prefix + name for prefix in ("", *_PREFIXES) for name in bare]
    accessions = [
        accession
        for accession in _ACCESSIONS.get(plain, ())
        if not builds or builds & builds_named(accession)
    ]
    return tuple(dict.fromkeys([name, *short, *accessions]))


class ContigNames:
    """Finds contigs by any of their names.

    Args:
        groups: Further synonyms, a group for each contig.

    Raises:
        ValueError: A name is in two groups.
    """

    def __init__(self, groups: Iterable[Collection[str]] = ()) -> None:
        self._group: dict[str, tuple[str, ...]] = {}
        for group in groups:
            for plain in dict.fromkeys(map(plain_name, group)):
                if plain in self._group:
                    raise ValueError(f"{plain} is a name of two contigs")
                self._group[plain] = tuple(group)

    def plain(self, name: str) -> str:
        """A key for comparisons: the same for all names of a contig."""
        plain = plain_name(name)
        return plain_name(self._group[plain][0]) if plain in self._group else plain

    def find(self, name: str, known: Collection[str]) -> str | None:
        """The synonym of a name that is in `known`, e.g. chr1 or NC_000001.11 for 1.

        None if there is none, or if several accessions match.
        """
        if name in known:
            return name
        names = (name, *self._group.get(plain_name(name), ()))
        matches = [synonym for each in names for synonym in _synonyms(each) if synonym in known]
        is_clear = len({match for match in matches if match in _BY_ACCESSION}) <= 1
        return matches[0] if matches and (is_clear or matches[0] not in _BY_ACCESSION) else None


DEFAULT_NAMES = ContigNames()  # without a user's file


def read_contig_names(path: Path | None) -> ContigNames:
    """Read synonyms: one contig per line with two or more names, or an assembly report of NCBI.

    Columns are separated by tabs, or else by commas or blanks, and may be empty; lines that begin
    with `#` are comments. Without a file, the result is `DEFAULT_NAMES`.

    Raises:
        UserError: The file cannot be read, a line has one name only, or a name is in two lines.
    """
    if path is None:
        return DEFAULT_NAMES
    lines_of: dict[str, int] = {}
    groups = []
    for number, names in _read_groups(path):
        if len(names) == 1:
            raise UserError(
                f"{path}: line {number}: {names[0]!r} is alone; a line holds two or more names of "
                "a contig, with tabs"
            )
        for plain in dict.fromkeys(map(plain_name, names)):
            first = lines_of.setdefault(plain, number)
            if first != number:
                raise UserError(
                    f"{path}: line {number}: {plain} is also in line {first}; a name belongs to "
                    "one contig"
                )
        groups.append(names)
    if not groups:
        raise UserError(f"{path}: has no line with two or more names of a contig")
    return ContigNames(groups)


def _read_groups(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the 1-based number of each line with names, and the names."""
    is_report = False
    with numbered_lines(path) as lines:
        for number, line in lines:
            text = line.decode(errors="surrogateescape").strip("\r\n")
            is_report = is_report or text.startswith(_REPORT)
            if text.startswith("#") or not text.strip():
                if number == 1:
                    refuse_other(path, line, Wanted.NAMES)
                continue
            columns = text.split("\t") if "\t" in text else text.replace(",", " ").split()
            if is_report:
                columns = [columns[index] for index in _REPORT_COLUMNS if index < len(columns)]
                columns = [name for name in columns if name != _NO_NAME]
            names = list(dict.fromkeys(name.strip() for name in columns if name.strip()))
            if names and not (is_report and len(names) == 1):
                yield number, names


def describe_build(contig: str, lengths: Mapping[str, int]) -> str:
    """The end of the message that a genome has no such contig: which builds these are.

    Args:
        contig: Name of the missing contig.
        lengths: Lengths of the contigs of the genome.

    Returns:
        Text that begins with ";", or "" for a name that is not an accession.
    """
    named = builds_named(contig)
    if not named:
        return ""
    plain = plain_name(contig)
    text = f"; {contig} is chromosome {plain} of {' and '.join(sorted(named))}"
    actual: set[str] = set()
    for name, length in lengths.items():
        if plain_name(name) == plain:
            actual |= builds_named(name) or builds_of(plain, length)
    return f"{text}, and the genome looks like {' or '.join(sorted(actual))}" if actual else text
