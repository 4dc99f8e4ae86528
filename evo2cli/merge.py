"""Join the outputs of `evo2 score --shard`."""

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

    Only VCF headers say which part of which run they are; in TSV and JSON lines, a part that is
    missing, out of order or from another run is not noticed.

    Args:
        parts: VCF, TSV or JSON lines of runs that differ only in --shard.
        output: File of the same format, indexed if the format has an index.

    Raises:
        UserError: A part has another format or header, comes twice, is missing or out of order; or
            a file cannot be read or written.
    """
    layout = _layout(output)
    for part in parts:
        if _layout(part) is not layout:
            raise UserError(
                f"{part}: is not {layout} like {output}; all parts must have the same format"
            )
    check_output(output, *parts)
    header = _common_header(parts, layout)
    count = 0
    parts_by_first: dict[bytes, Path] = {}  # keys are the first records
    with open_output(output) as write:
        write(b"".join(header))
        for part in parts:
            _, _, body = _open_part(part, layout)
            first = next(body, None)
            if first is None:
                continue
            if first in parts_by_first:
                raise UserError(
                    f"{part}: has the same first record as {parts_by_first[first]}; give each "
                    "part once"
                )
            parts_by_first[first] = part
            for line in chain([first], body):
                write(line)
                count += 1
    if output.suffix == ".gz" and layout.has_index:
        index_output(output, layout)
    console.say(f"{output}: {count:,} records from {len(parts):,} parts")


def _layout(path: Path) -> Layout:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in LAYOUTS:
        raise UserError(
            f"{path}: `evo2 merge` joins {', '.join(LAYOUTS)} and these with .gz; "
            "join BCF files with `bcftools concat`"
        )
    return LAYOUTS[suffix]


def _common_header(parts: Sequence[Path], layout: Layout) -> list[bytes]:
    """The header that all parts share; they must be the shards 1/N to N/N of one run, in order."""
    headers, shards = zip(*(_open_part(part, layout)[:2] for part in parts), strict=True)
    expected = tuple(f"{number}/{len(parts)}" for number in range(1, len(parts) + 1))
    if any(shards) and shards != expected:
        found = ", ".join(shard or "none" for shard in shards)
        raise UserError(
            f"{parts[0]}, ...: are the shards {found}; give all shards of one run, in order"
        )
    header: list[bytes] = headers[0]
    for part, own in zip(parts, headers, strict=True):
        if own != header:
            line = next((b for a, b in zip(header, own, strict=False) if a != b), b"(shorter)")
            raise UserError(
                f"{part}: is from another run than {parts[0]}: its header has "
                f"{line.decode(errors='replace').strip()[:200]!r}"
            )
    return header


def _open_part(path: Path, layout: Layout) -> tuple[list[bytes], str, Iterator[bytes]]:
    """Header lines, shard such as "2/3" (empty if the header does not say), and record lines."""
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
