"""Recognise the build of a human genome by the lengths of its contigs."""

from collections.abc import Mapping

# Bases of chromosomes 1 to 22, X and Y. Source: the assembly reports of NCBI.
BUILDS = {
    "NCBI36 (hg18)": """
        247249719 242951149 199501827 191273063 180857866 170899992 158821424 146274826 140273252
        135374737 134452384 132349534 114142980 106368585 100338915 88827254 78774742 76117153
        63811651 62435964 46944323 49691432 154913754 57772954""",
    "GRCh37 (hg19)": """
        249250621 243199373 198022430 191154276 180915260 171115067 159138663 146364022 141213431
        135534747 135006516 133851895 115169878 107349540 102531392 90354753 81195210 78077248
        59128983 63025520 48129895 51304566 155270560 59373566""",
    "GRCh38 (hg38)": """
        248956422 242193529 198295559 190214555 181538259 170805979 159345973 145138636 138394717
        133797422 135086622 133275309 114364328 107043718 101991189 90338345 83257441 80373285
        58617616 64444167 46709983 50818468 156040895 57227415""",
    "T2T-CHM13v2.0 (hs1)": """
        248387328 242696752 201105948 193574945 182045439 172126628 160567428 146259331 150617247
        134758134 135127769 133324548 113566686 101161492 99753195 96330374 84276897 80542538
        61707364 66210255 45090682 51324926 154259566 62460029""",
}
_CHROMOSOMES = (*map(str, range(1, 23)), "X", "Y")
_BUILD_OF = {
    (chromosome, int(length)): build
    for build, lengths in BUILDS.items()
    for chromosome, length in zip(_CHROMOSOMES, lengths.split(), strict=True)
}


def build_of(lengths: Mapping[str, int]) -> str | None:
    """The build with contigs of these names (chr1 or 1) and lengths.

    None if no build has any of them, or if they belong to more than one build.
    """
    found = {_BUILD_OF.get((name.removeprefix("chr"), length)) for name, length in lengths.items()}
    builds = found - {None}
    return builds.pop() if len(builds) == 1 else None


def disagreement(variants: Mapping[str, int], reference: Mapping[str, int]) -> str | None:
    """The message that contigs have other lengths in a VCF than in a reference, or None.

    Args:
        variants: Lengths by the header of the VCF, under the names of the reference.
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
