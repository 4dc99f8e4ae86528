"""Concatenate the outputs of `evo2 score --shard`."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from evo2cli import console
from evo2cli.errors import TooManySkippedError, UserError, counted
from evo2cli.files import check_output, open_output
from evo2cli.genome.source import read_lines
from evo2cli.genome.vcf import Status
from evo2cli.score.options import Layout
from evo2cli.score.output import SHARD, SHARD_KEY, SHARDED_INPUT, index_output

_STATUS = b"EVO2_STATUS"
_UNSCORED = frozenset(status.encode() for status in Status if not status.is_scored)
LAYOUTS = {".vcf": Layout.VCF, ".tsv": Layout.TSV, ".jsonl": Layout.JSONL}


@dataclass(frozen=True)
class _Head:
    """The header of a part.

    Attributes:
        path: File of the part.
        shard: Its shard, such as "2/3"; empty if not recorded.
        marks: Header lines to drop in the merged file; identical in all parts.
        header: Header lines to keep.
    """

    path: Path
    shard: str
    marks: list[bytes]
    header: list[bytes]


def merge_files(paths: Sequence[Path], output: Path) -> None:
    """Write one header, then the records of all parts in order.

    Args:
        paths: VCF, TSV or JSON lines of runs that differ only in --shard.
        output: File of the same format, indexed if the format has an index.

    Raises:
        UserError: Parts differ in format or run, or are missing, repeated or out of order; or a
            file cannot be read or written.
        TooManySkippedError: No allele has a score; the output is complete.
    """
    layout = _layout(output)
    for path in paths:
        if _layout(path) is not layout:
            raise UserError(
                f"{path}: is not {layout} like {output}; all parts must have the same format"
            )
    check_output(output, *paths)
    heads = [_open_part(path, layout)[0] for path in paths]
    _check_order(heads)
    _check_run(heads)
    count, has_score = 0, False
    status_of = _status_reader(layout, heads[0].header)
    with open_output(output) as write:
        write(b"".join(heads[0].header))
        for path in paths:
            for line in _open_part(path, layout)[1]:
                write(line)
                count += 1
                has_score = has_score or not _UNSCORED.issuperset(status_of(line))
    if output.suffix == ".gz" and layout.has_index:
        index_output(output, layout)
    console.say(f"{output}: {counted(count, 'record')} from {counted(len(paths), 'part')}")
    if count and not has_score:
        raise TooManySkippedError(f"{output}: nothing could be scored: no record has a score")


def _status_reader(layout: Layout, header: Sequence[bytes]) -> Callable[[bytes], list[bytes]]:
    """What reads the EVO2_STATUS of each allele in a line; empty where there is none."""
    if layout is Layout.TSV:
        names = b"".join(header[-1:]).split()
        if _STATUS not in names:  # of a version that did not write it
            return lambda _: [b""]
        column = names.index(_STATUS)
        return lambda line: [line.rstrip().split(b"\t")[column]]
    form = re.compile(_STATUS + (b"=" if layout is Layout.VCF else b'": "') + rb'([^;"\s]*)')
    return lambda line: b",".join(form.findall(line)).split(b",")


def _layout(path: Path) -> Layout:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in LAYOUTS:
        raise UserError(
            f"{path}: `evo2 merge` joins {', '.join(LAYOUTS)} and these with .gz; "
            "join BCF files with `bcftools concat`"
        )
    return LAYOUTS[suffix]


def _check_order(parts: Sequence[_Head]) -> None:
    """Refuse parts that are not the shards 1/N to N/N, in order."""
    shards = [part.shard for part in parts]
    if any(shards):
        if shards != [f"{number}/{len(parts)}" for number in range(1, len(parts) + 1)]:
            listing = ", ".join(
                f"{part.path} is {f'shard {part.shard}' if part.shard else 'no shard'}"
                for part in parts
            )
            raise UserError(f"{listing}; give all shards of one run, in order")
        return
    seen: set[Path] = set()
    for part in parts:  # tables of versions that did not record the shard
        if part.path.resolve() in seen:
            raise UserError(f"{part.path}: is given twice; give each part once")
        seen.add(part.path.resolve())


def _check_run(parts: Sequence[_Head]) -> None:
    """Refuse parts of different runs."""
    first = parts[0]
    for part in parts:
        if (part.marks, part.header) != (first.marks, first.header):
            lines, expected = [*part.marks, *part.header], [*first.marks, *first.header]
            line = next((b for a, b in zip(expected, lines, strict=False) if a != b), b"(shorter)")
            raise UserError(
                f"{part.path}: is from another run than {first.path}: its header has "
                f"{line.decode(errors='replace').strip()[:200]!r}"
            )


def _open_part(path: Path, layout: Layout) -> tuple[_Head, Iterator[bytes]]:
    """The header of a part, and the lines of its records."""
    lines: Iterator[bytes] = read_lines(path)
    head: list[bytes] = []
    if layout is Layout.JSONL:
        first = next(lines, b"")
        head = _json_marks(first)
        lines = lines if head else chain(filter(None, [first]), lines)
    else:
        for line in lines:
            head.append(line)
            if not line.startswith(b"##"):  # the names of the columns
                break
    shard, marks, header = "", list[bytes](), list[bytes]()
    for line in head:
        if line.startswith(SHARD.encode()):
            shard = line.decode().removeprefix(SHARD).strip()
        elif line.startswith(b"##" if layout is not Layout.VCF else SHARDED_INPUT.encode()):
            marks.append(line)
        else:
            header.append(line)
    return _Head(path, shard, marks, header), lines


def _json_marks(line: bytes) -> list[bytes]:
    """The marks in the first JSON line; empty if that line is a record."""
    if line.startswith(f'{{"{SHARD_KEY}": '.encode()):
        with suppress(ValueError):  # truncated
            return [f"{mark}\n".encode() for mark in json.loads(line)[SHARD_KEY]]
    return []
