"""htslib through pysam: reading and writing BCF, indexing, and regions of an indexed file.

A BCF is read as the VCF text that htslib writes for it, and written from our text. This keeps
values, but not bytes: htslib stores numbers in 32 bits, and adds header lines for undeclared keys.
"""

import os
import shutil
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pysam
import pysam.bcftools
from pysam.utils import SamtoolsError

from evo2cli.errors import UserError
from evo2cli.files import atomic_path, temporary_folder
from evo2cli.genome.interval import ENDLESS, Interval
from evo2cli.genome.regions import Regions
from evo2cli.genome.source import STDIN, check_end_of_pipe, read_lines

BCF_MAGIC = b"BCF"
_DAMAGED = "damaged, or of a kind that htslib cannot read; get the whole file"
_BAD_INDEX = "not an index that htslib can read; make it again, e.g. with `bcftools index -f`"
_JOIN = 1 << 14  # bases between regions that are read together: the smallest bin of an index


def bytes_of(path: Path) -> Any:
    """A path for pysam, as bytes: pysam cannot encode the text of a name that is not UTF-8.

    pysam accepts bytes, although its type hints do not say so.
    """
    return os.fsencode(path)


def read_bcf(path: Path) -> Generator[bytes, None, None]:
    """Stream a BCF (`-` is stdin) as the lines of a VCF, header first.

    Raises:
        UserError: It cannot be read, or is damaged.
    """
    with (
        _on_disk(path) as stored,
        _one_line_errors(path, _DAMAGED),
        pysam.VariantFile(bytes_of(stored)) as file,
    ):
        yield from str(file.header).encode().splitlines(keepends=True)
        for record in file:
            yield str(record).encode()


def read_vcf_spans(
    path: Path, index: Path, regions: Regions, line_end: bytes
) -> Generator[tuple[Interval, bytes], None, None]:
    """Stream the lines of an indexed VCF that overlap `regions`, in file order.

    Each line comes with the span that it overlaps; a line that overlaps two spans comes twice.

    Args:
        path: Sorted VCF, compressed with bgzip.
        index: Its index.
        regions: Regions close to each other are joined into one span, including the gap.
        line_end: Line end of the file, which htslib removes.

    Raises:
        UserError: It cannot be read, or is damaged.
    """
    with _one_line_errors(index, _BAD_INDEX):
        # latin-1 maps every byte to one character and back.
        file = pysam.TabixFile(bytes_of(path), index=bytes_of(index), encoding="latin-1")
    with _one_line_errors(path, _DAMAGED), file:
        for span in regions.spans(file.contigs, join=_JOIN):
            for line in file.fetch(span.name, span.start, _stop(span)):
                yield span, line.encode("latin-1") + line_end


def read_bcf_spans(
    path: Path, index: Path, regions: Regions
) -> Generator[tuple[Interval, bytes], None, None]:
    """As `read_vcf_spans`, for an indexed BCF.

    Raises:
        UserError: It cannot be read, or is damaged.
    """
    with _one_line_errors(index, _BAD_INDEX):
        file = pysam.VariantFile(bytes_of(path), index_filename=bytes_of(index))
        if file.index is None:
            raise ValueError("damaged")
    with _one_line_errors(path, _DAMAGED), file:
        first_records = {}
        for contig in map(str, file.header.contigs):
            if regions.spans([contig]) and next(file.fetch(contig), None) is not None:
                first_records[contig] = file.tell()
        # The header may list contigs in another order than the records.
        in_file_order = sorted(first_records, key=lambda contig: first_records[contig])
        for span in regions.spans(in_file_order, join=_JOIN):
            for record in file.fetch(span.name, span.start, _stop(span)):
                yield span, str(record).encode()


def _stop(span: Interval) -> int | None:
    return None if span.end >= ENDLESS else span.end


def write_bcf(text: Path, path: Path) -> None:
    """Convert VCF text, plain or bgzipped, to BCF.

    Raises:
        UserError: htslib cannot parse a record, or the file cannot be written.
    """
    problem = "htslib cannot write this as BCF; name an output that ends in .vcf.gz"
    with _one_line_errors(path, problem):
        with pysam.VariantFile(bytes_of(text)) as file:
            num_lines = len(file.header.records)
            for _ in file:  # htslib adds a header line for every undeclared key and contig
                pass
            header = str(file.header).encode()
            is_complete = len(file.header.records) == num_lines
        if is_complete:
            _view_as_bcf(text, path)
            return
        complete = path.with_name(f"{path.name}.vcf")
        try:
            with complete.open("wb") as file:
                file.write(header)
                file.writelines(line for line in read_lines(text) if not line.startswith(b"#"))
            _view_as_bcf(complete, path)
        finally:
            complete.unlink(missing_ok=True)


def _view_as_bcf(text: Path, path: Path) -> None:
    """Convert with the bcftools in pysam, since pysam's own writer adds END to some records."""
    files = (bytes_of(path), bytes_of(text))
    arguments = ("--no-version", "--output-type", "b", "--output", *files)
    pysam.bcftools.view(*arguments, catch_stdout=False)


def index_variants(path: Path) -> None:
    """Write the index of a sorted BCF (`.csi`) or bgzipped VCF (`.tbi`, or `.csi`) beside it.

    Raises:
        UserError: htslib cannot index it.
    """
    if path.suffix == ".bcf":
        _write_index(path, ".csi", preset="bcf")
        return
    try:
        _write_index(path, ".tbi", preset="vcf")
    except UserError:  # a contig of more than 512 million bases needs a CSI
        _write_index(path, ".csi", preset="vcf", csi=True)


def index_table(path: Path) -> None:
    """Write the `.tbi` of a sorted, bgzipped table whose first columns are contig and 1-based POS.

    Raises:
        UserError: htslib cannot index it.
    """
    _write_index(path, ".tbi", seq_col=0, start_col=1, end_col=1, meta_char="#")


def _write_index(path: Path, suffix: str, **layout: Any) -> None:
    with (
        _one_line_errors(path, "cannot be indexed"),
        atomic_path(path.with_name(path.name + suffix)) as part,
    ):
        names = {"filename": bytes_of(path), "index": bytes_of(part)}
        pysam.tabix_index(**names, force=True, keep_original=True, **layout)


@contextmanager
def silent_htslib() -> Iterator[None]:
    """Keep htslib from writing to stderr; its errors are still raised."""
    verbosity = pysam.set_verbosity(0)
    try:
        yield
    finally:
        pysam.set_verbosity(verbosity)


@contextmanager
def _on_disk(path: Path) -> Iterator[Path]:
    """Yield a path that htslib can open; stdin is copied to a temporary file."""
    if path != STDIN:
        yield path
        return
    with temporary_folder() as folder:
        copy = folder / "stdin.bcf"
        with copy.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        check_end_of_pipe(path, sys.stdin.buffer)  # htslib would only warn
        yield copy


@contextmanager
def _one_line_errors(path: Path, problem: str) -> Iterator[None]:
    """Convert errors of htslib to `UserError`, and keep htslib from writing to stderr."""
    with silent_htslib():
        try:
            yield
        except UserError:
            raise
        except (OSError, ValueError, NotImplementedError, SamtoolsError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: {problem} ({reason})") from None
