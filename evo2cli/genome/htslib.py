"""What htslib does better than we could, through pysam: BCF in and out, and indexes.

BCF comes in as the VCF text that htslib spells for it, and goes out from our text. Values are kept,
bytes cannot be: htslib holds numbers in 32 bits, and describes what a header leaves undescribed.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pysam
import pysam.bcftools
from pysam.utils import SamtoolsError

from evo2cli.errors import UserError
from evo2cli.genome.interval import Interval
from evo2cli.genome.source import STDIN, read_lines

BCF_MAGIC = b"BCF"
_NOT_READ = "damaged, or of a kind htslib does not read"
_LAST_POSITION = 2**31 - 1  # of a BCF


def read_bcf(path: Path) -> Iterator[bytes]:
    """Stream a BCF (`-` is stdin) as the lines of a VCF, header first.

    Raises:
        UserError: It cannot be read, or proves damaged.
    """
    with (
        _stored(path) as place,
        _explained(path, _NOT_READ),
        pysam.VariantFile(str(place)) as file,
    ):
        yield from str(file.header).encode().splitlines(keepends=True)
        for record in file:
            yield str(record).encode()


def read_bcf_spans(
    path: Path, spans: Iterable[Interval]
) -> Iterator[tuple[Interval, Iterator[bytes]]]:
    """Stream the lines of an indexed BCF that may touch each span.

    Raises:
        UserError: It cannot be read, or proves damaged.
    """
    with _explained(path, _NOT_READ), pysam.VariantFile(str(path)) as file:
        for span in spans:
            found = file.fetch(span.name, span.start, min(span.end, _LAST_POSITION))
            yield span, (str(record).encode() for record in found)


def bcf_contigs(path: Path) -> list[str]:
    """The contigs of a BCF's header, as its index counts them.

    Raises:
        UserError: It cannot be read, or proves damaged.
    """
    with _explained(path, _NOT_READ), pysam.VariantFile(str(path)) as file:
        return [str(name) for name in file.header.contigs]


def write_bcf(text: Path, path: Path) -> None:
    """Turn VCF text, plain or bgzipped, into a BCF.

    Raises:
        UserError: htslib does not understand a record, or the file cannot be written.
    """
    with _explained(path, "htslib cannot write this as BCF; name an output that ends in .vcf.gz"):
        with pysam.VariantFile(str(text)) as file:
            described = len(file.header.records)
            for _ in file:  # htslib describes in its header whatever it meets undescribed
                pass
            header = str(file.header).encode()
            is_whole = len(file.header.records) == described
        if is_whole:
            _copy(text, path)
            return
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".vcf") as whole:
            whole.write(header)
            whole.writelines(line for line in read_lines(text) if not line.startswith(b"#"))
            whole.flush()
            _copy(Path(whole.name), path)


def _copy(text: Path, path: Path) -> None:
    """By bcftools, which pysam brings: its own way of writing records adds an END to some."""
    arguments = ("--no-version", "--output-type", "b", "--output", str(path), str(text))
    pysam.bcftools.view(*arguments, catch_stdout=False)


def index_variants(path: Path) -> None:
    """Leave the index of a sorted BCF (`.csi`) or bgzipped VCF (`.tbi`) beside it.

    Raises:
        UserError: htslib finds no way to index it.
    """
    with _explained(path, "cannot be indexed"):
        if path.suffix == ".bcf":
            # Its annotations forget this preset.
            pysam.tabix_index(str(path), preset="bcf", force=True, keep_original=True)  # type: ignore[arg-type]
            return
        try:
            pysam.tabix_index(str(path), preset="vcf", force=True, keep_original=True)
        except OSError:  # a contig of more than 512 million bases needs the other kind
            pysam.tabix_index(str(path), preset="vcf", force=True, keep_original=True, csi=True)


def index_table(path: Path) -> None:
    """Leave the `.tbi` of a sorted, bgzipped table beside it: contig and 1-based position first.

    Raises:
        UserError: htslib finds no way to index it.
    """
    with _explained(path, "cannot be indexed"):
        pysam.tabix_index(
            str(path),
            force=True,
            keep_original=True,
            seq_col=0,
            start_col=1,
            end_col=1,
            meta_char="#",
        )


@contextmanager
def _stored(path: Path) -> Iterator[Path]:
    """The path of a file that htslib can open; what comes by stdin is put aside."""
    if path != STDIN:
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=".bcf") as aside:
        shutil.copyfileobj(sys.stdin.buffer, aside)
        aside.flush()
        yield Path(aside.name)


@contextmanager
def _explained(path: Path, trouble: str) -> Iterator[None]:
    """Errors of htslib in one line of ours; what it says on stderr is held back."""
    told = pysam.set_verbosity(0)
    try:
        yield
    except (OSError, ValueError, NotImplementedError, SamtoolsError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: {trouble} ({reason})") from None
    finally:
        pysam.set_verbosity(told)
