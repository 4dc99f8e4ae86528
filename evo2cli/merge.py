"""The parts of a sharded run of `evo2 score`, joined."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.files import check_output, open_output
from evo2cli.genome.source import read_lines
from evo2cli.score.options import Layout
from evo2cli.score.output import SHARD, index_output

LAYOUTS = {".vcf": Layout.VCF, ".tsv": Layout.TSV, ".jsonl": Layout.JSONL}


def merge_files(parts: Sequence[Path], output: Path) -> None:
    """Write one header and the records of all parts, in the order of the parts.

    Args:
        parts: VCF, TSV or JSON lines of one command that differed in --shard alone.
        output: Of the same kind; appears whole or not at all, with an index where its kind has one.

    Raises:
        UserError: A part is of another kind, is there twice, missing or out of order, or has
            another header; or a file cannot be read or written. Tables and JSON lines have no
            header that tells their run and place.
    """
    layout = _layout(output)
    for part in parts:
        if _layout(part) is not layout:
            raise UserError(f"{part}: is no {layout} like {output}; parts must be alike")
    check_output(output, *parts)
    header = _common_header(parts, layout)
    count = 0
    began: dict[bytes, Path] = {}  # parts by their first records
    with open_output(output) as write:
        write(b"".join(header))
        for part in parts:
            _, _, body = _opened(part, layout)
            first = next(body, None)
            if first is None:
                continue
            if first in began:
                raise UserError(
                    f"{part}: begins with the record that {began[first]} begins with; give each "
                    "part once"
                )
            began[first] = part
            for line in chain([first], body):
                write(line)
                count += 1
    if output.suffix == ".gz" and layout.has_index:
        index_output(output, layout)
    console.say(f"{output}: {count:,} records of {len(parts):,} parts")


def _layout(path: Path) -> Layout:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in LAYOUTS:
        raise UserError(
            f"{path}: `evo2 merge` joins {', '.join(LAYOUTS)}, and these with .gz; "
            "for BCF there is `bcftools concat`"
        )
    return LAYOUTS[suffix]


def _common_header(parts: Sequence[Path], layout: Layout) -> list[bytes]:
    """The header of all parts, without their places; refuses others than 1/N to N/N of one run."""
    headers, places = zip(*(_opened(part, layout)[:2] for part in parts), strict=True)
    expected = tuple(f"{number}/{len(parts)}" for number in range(1, len(parts) + 1))
    if any(places) and places != expected:
        told = ", ".join(place or "none" for place in places)
        raise UserError(f"{parts[0]}, ...: are the parts {told}; give all of a run, in their order")
    header: list[bytes] = headers[0]
    for part, own in zip(parts, headers, strict=True):
        if own != header:
            line = next((b for a, b in zip(header, own, strict=False) if a != b), b"(shorter)")
            raise UserError(
                f"{part}: comes from another run than {parts[0]}: its header has "
                f"{line.decode(errors='replace').strip()[:200]!r}"
            )
    return header


def _opened(path: Path, layout: Layout) -> tuple[list[bytes], str, Iterator[bytes]]:
    """Header, which part it says it is of, and records."""
    lines = read_lines(path)
    if layout is Layout.JSONL:
        return [], "", lines
    if layout is Layout.TSV:
        return [next(lines, b"")], "", lines
    header: list[bytes] = []
    shard = ""
    for line in lines:
        if not line.startswith(b"#"):
            return header, shard, chain([line], lines)
        if line.startswith(SHARD.encode()):
            shard = line.decode().removeprefix(SHARD).strip()
        else:
            header.append(line)
    return header, shard, iter(())
