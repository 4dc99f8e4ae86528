"""Label bases by an annotation: exons and other features of a BED or GFF over a genome.

Sequences are windows of regions, e.g. genes, or of whole contigs. A region on the reverse strand is
reverse complemented, so that genes read forward, and features of the opposite strand are ignored.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evo2cli.errors import UserError, listed
from evo2cli.finetune.examples import Examples
from evo2cli.finetune.tasks import Labels, Task
from evo2cli.genome.alphabet import ACGT, reverse_complement, upper_dna
from evo2cli.genome.features import Feature, locate_features, read_features
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference

NONE = "none"  # the class of bases without a feature
FEATURE = "feature"  # the class of the features of a BED file


def read_annotated(
    genome: Path,
    annotation: Path,
    window: int,
    *,
    kinds: Sequence[str] = (),
    regions: Path | None = None,
    region_kind: str | None = None,
) -> tuple[Examples, Labels]:
    """Label each base by the feature that covers it.

    Args:
        genome: FASTA.
        annotation: GFF3, GTF or BED.
        window: Length of a sequence in bases; the last one of a region may be shorter.
        kinds: Feature types of a GFF, each a class; where features overlap, the type that comes
            later here wins. May be empty if the file has only one type.
        regions: GFF3, GTF or BED of the regions; None for whole contigs.
        region_kind: Feature type of the regions in a GFF.

    Returns:
        Examples whose groups are the regions, and whose chromosomes are the contigs. Windows
        without any A, C, G or T are left out.

    Raises:
        UserError: A file cannot be read, or no feature is on a contig of the genome.
    """
    features = read_features(annotation)
    kinds = tuple(kinds) or _only_kind(annotation, features)
    missing = [
        kind for kind in kinds if kind not in {feature.kind or FEATURE for feature in features}
    ]
    if missing:
        raise UserError(f"{annotation}: has no feature of type {missing[0]}; {_listed(features)}")
    classes = (NONE, *kinds)
    rows: list[tuple[str, str, NDArray[np.int64], str, str]] = []
    with Reference.open(genome) as bases:
        by_contig = defaultdict(list)
        for feature in features:
            if contig := bases.find(feature.contig):
                by_contig[contig].append(feature)
        if not by_contig:
            raise UserError(
                f"{annotation}: none of its features ({len(features):,}) is on a contig of "
                f"{genome}, which has {listed(bases.names)}"
            )
        for contig, members in _regions(bases, regions, region_kind).items():
            for strand in sorted({region.strand for region in members}):
                codes = _codes(by_contig[contig], classes, strand, bases.length(contig))
                for region in members:
                    if region.strand == strand:
                        rows += _windows(bases, contig, region, codes, window)
    if not rows:
        raise UserError(f"{regions or genome}: no window contains A, C, G or T; give other regions")
    names, sequences, tokens, contigs, groups = map(list, zip(*rows, strict=True))
    explanation = f"tokens: each base is one of {', '.join(classes)}, by {annotation.name}"
    return (
        Examples(names, sequences, labels=tokens, chromosomes=contigs, groups=groups),
        Labels(Task.TOKENS, classes, explanation),
    )


def _only_kind(annotation: Path, features: Sequence[Feature]) -> tuple[str, ...]:
    kinds = {feature.kind or FEATURE for feature in features}
    if len(kinds) > 1:
        raise UserError(
            f"{annotation}: has features of several types; choose among them with "
            f"--feature-type; {_listed(features)}"
        )
    return tuple(kinds)


def _listed(features: Sequence[Feature]) -> str:
    counts = Counter(feature.kind or FEATURE for feature in features).most_common(8)
    return "its types: " + ", ".join(f"{kind} {count:,}" for kind, count in counts)


def _regions(bases: Reference, path: Path | None, kind: str | None) -> dict[str, list[Feature]]:
    """The regions of each contig, in the order of their file."""
    if path is None:
        return {name: [Feature(name, name, ((0, bases.length(name)),))] for name in bases.names}
    by_contig = defaultdict(list)
    for region, where in locate_features(path, bases, kind):
        by_contig[where.name].append(region)
    return by_contig


def _codes(
    features: Sequence[Feature], classes: Sequence[str], strand: str, length: int
) -> NDArray[np.int8]:
    """The class index of each base of a contig, for regions on this strand."""
    codes = np.zeros(length, np.int8)
    for code, kind in enumerate(classes[1:], start=1):
        for feature in features:
            if (feature.kind or FEATURE) == kind and {feature.strand, strand} != {"+", "-"}:
                for start, end in feature.spans:
                    codes[start:end] = code
    return codes


def _windows(
    bases: Reference, contig: str, region: Feature, codes: NDArray[np.int8], window: int
) -> Iterator[tuple[str, str, NDArray[np.int64], str, str]]:
    """Name, sequence, labels, contig and group of each window, in the direction of the region."""
    for start in range(region.start, region.end, window):
        interval = Interval(contig, start, min(start + window, region.end))
        sequence, labels = upper_dna(bases.fetch(interval)), codes[start : interval.end]
        if not any(base in sequence for base in ACGT):
            continue
        if region.strand == "-":
            sequence, labels = reverse_complement(sequence), labels[::-1]
        name = f"{interval}({region.strand})" if region.strand != "." else str(interval)
        yield name, sequence.decode(), labels.astype(np.int64), contig, region.name
