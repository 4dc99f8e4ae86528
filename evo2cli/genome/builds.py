"""Builds of the human and the mouse genome: lengths and accessions of their chromosomes.

Source: the assembly reports of NCBI: GCF_000001405.25 (GRCh37.p13), GCF_000001405.39 (GRCh38.p13),
GCF_009914755.1 (T2T-CHM13v2.0), GCF_000001635.26 (GRCm38.p6) and GCF_000001635.27 (GRCm39). A test
compares all chromosomes with them; patches do not change chromosomes. NCBI36 (GCF_000001405.12) has
the accession of its mitochondrion only, which UCSC kept in hg19.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

MITOCHONDRION = "MT"


@dataclass(frozen=True)
class Build:
    """A genome build.

    Attributes:
        name: The names of NCBI and UCSC, e.g. "GRCh38 (hg38)".
        lengths: Bases of each chromosome, by its plain name: 1 to 22, X, Y and MT in a human.
        accessions: The chromosome of each accession of RefSeq and GenBank.
    """

    name: str
    lengths: Mapping[str, int]
    accessions: Mapping[str, str]


def _build(
    name: str, mitochondrion: str, lengths: str, refseq: list[str], genbank: list[str]
) -> Build:
    """Create a build.

    Args:
        name: As in `Build`.
        mitochondrion: Length and accessions of MT, separated by blanks.
        lengths: Bases of the numbered chromosomes, X and Y, separated by blanks.
        refseq: Their accessions in RefSeq, in the same order; empty for none.
        genbank: Their accessions in GenBank, likewise.
    """
    sizes = lengths.split()
    chromosomes = [*map(str, range(1, len(sizes) - 1)), "X", "Y"]
    size, *accessions = mitochondrion.split()
    return Build(
        name,
        {**dict(zip(chromosomes, map(int, sizes), strict=True)), MITOCHONDRION: int(size)},
        {
            **dict.fromkeys(accessions, MITOCHONDRION),
            **dict(zip(refseq, chromosomes if refseq else [], strict=True)),
            **dict(zip(genbank, chromosomes if genbank else [], strict=True)),
        },
    )


def _refseq(first: int, versions: str) -> list[str]:
    """Accessions of RefSeq with consecutive numbers, and their versions separated by blanks."""
    return [f"NC_{number:06}.{version}" for number, version in enumerate(versions.split(), first)]


def _genbank(first: int, version: int, count: int) -> list[str]:
    """Accessions of GenBank with consecutive numbers and the same version."""
    return [f"CM{number:06}.{version}" for number in range(first, first + count)]


BUILDS = (
    _build(
        "NCBI36 (hg18)",
        "16571 NC_001807.4",  # UCSC kept this mitochondrion in its hg19
        """
        247249719 242951149 199501827 191273063 180857866 170899992 158821424 146274826 140273252
        135374737 134452384 132349534 114142980 106368585 100338915 88827254 78774742 76117153
        63811651 62435964 46944323 49691432 154913754 57772954""",
        [],
        [],
    ),
    _build(
        "GRCh37 (hg19)",
        "16569 NC_012920.1 J01415.2",
        """
        249250621 243199373 198022430 191154276 180915260 171115067 159138663 146364022 141213431
        135534747 135006516 133851895 115169878 107349540 102531392 90354753 81195210 78077248
        59128983 63025520 48129895 51304566 155270560 59373566""",
        _refseq(1, "10 11 11 11 9 11 13 10 11 10 9 11 10 8 9 9 10 9 9 10 8 10 10 9"),
        _genbank(663, 1, 24),
    ),
    _build(
        "GRCh38 (hg38)",
        "16569 NC_012920.1 J01415.2",
        """
        248956422 242193529 198295559 190214555 181538259 170805979 159345973 145138636 138394717
        133797422 135086622 133275309 114364328 107043718 101991189 90338345 83257441 80373285
        58617616 64444167 46709983 50818468 156040895 57227415""",
        _refseq(1, "11 12 12 12 10 12 14 11 12 11 10 12 11 9 10 10 11 10 10 11 9 11 11 10"),
        _genbank(663, 2, 24),
    ),
    _build(
        "T2T-CHM13v2.0 (hs1)",
        "16569 CP068254.1",
        """
        248387328 242696752 201105948 193574945 182045439 172126628 160567428 146259331 150617247
        134758134 135127769 133324548 113566686 101161492 99753195 96330374 84276897 80542538
        61707364 66210255 45090682 51324926 154259566 62460029""",
        _refseq(60925, "1 " * 24),
        [*(f"CP{number:06}.2" for number in range(68277, 68254, -1)), "CP086569.2"],
    ),
    _build(
        "GRCm38 (mm10)",
        "16299 NC_005089.1 AY172335.1",
        """
        195471971 182113224 160039680 156508116 151834684 149736546 145441459 129401213 124595110
        130694993 122082543 120129022 120421639 124902244 104043685 98207768 94987271 90702639
        61431566 171031299 91744698""",
        _refseq(67, "6 7" + " 6" * 17 + " 7 7"),
        _genbank(994, 2, 21),
    ),
    _build(
        "GRCm39 (mm39)",
        "16299 NC_005089.1 AY172335.1",
        """
        195154279 181755017 159745316 156860686 151758149 149588044 144995196 130127694 124359700
        130530862 121973369 120092757 120883175 125139656 104073951 98008968 95294699 90720763
        61420004 169476592 91455967""",
        _refseq(67, "7 8" + " 7" * 17 + " 8 8"),
        _genbank(994, 3, 21),
    ),
)
_BUILDS_OF: dict[tuple[str, int], set[str]] = defaultdict(set)
for _each in BUILDS:
    for _length in _each.lengths.items():
        _BUILDS_OF[_length].add(_each.name)


def builds_of(chromosome: str, length: int) -> set[str]:
    """The names of the builds in which a chromosome (plain name: 1, X, MT) has this length."""
    return _BUILDS_OF.get((chromosome, length), set())


def build_of(lengths: Mapping[str, int]) -> str | None:
    """The name of the build with contigs of these names (chr1 or 1) and lengths.

    None if no build has any of them, or if they belong to different builds. Lengths that several
    builds share, e.g. of the mitochondrion, do not count.
    """
    candidates = [builds_of(name.removeprefix("chr"), length) for name, length in lengths.items()]
    builds = {name for names in candidates if len(names) == 1 for name in names}
    return builds.pop() if len(builds) == 1 else None


def length_mismatch(variants: Mapping[str, int], reference: Mapping[str, int]) -> str | None:
    """The message that contigs of a VCF and of a reference differ in length; None if none does.

    Args:
        variants: Lengths in the header of the VCF, by the names of the reference.
        reference: Lengths in the reference.
    """
    differing = [name for name, length in variants.items() if reference[name] != length]
    if not differing:
        return None
    name = differing[0]
    others = f" (and {len(differing) - 1:,} more)" if len(differing) > 1 else ""
    text = (
        f"contig {name} has {variants[name]:,} bases in the VCF, but {reference[name]:,} in "
        f"the reference{others}"
    )
    guesses = [
        f"the {what} looks like {build}"
        for what, lengths in (("VCF", variants), ("reference", reference))
        if (build := build_of({name: lengths[name] for name in differing}))
    ]
    return text + (": " + ", ".join(guesses) if guesses else "")
