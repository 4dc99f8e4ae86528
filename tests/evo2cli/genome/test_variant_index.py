"""By an index, the records of regions are those of a scan: the same bytes in the same order."""

import gzip
import os
import random
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import pysam
import pytest

from evo2cli.errors import UserError
from evo2cli.genome.htslib import index_variants, write_bcf
from evo2cli.genome.variant_index import find_index, index_matches
from evo2cli.score.input import count_shard, read_variants, warn_of_unused_index
from evo2cli.score.options import ScoreOptions

HEADER = (
    "##fileformat=VCFv4.2\n##contig=<ID=chr2>\n##contig=<ID=chr1>\n##contig=<ID=chrM>\n"
    "##contig=<ID=empty>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
)
KINDS = ["vcf.gz tbi", "vcf.gz csi", "bcf csi"]
REGIONS = [
    ("chr1:1-100000",),
    ("1:40000-40001", "chr1:1-5", "M"),  # out of order, other spellings
    ("chr1:100000-300000", "chr1:200000-200100", "chr2:16384-16385"),
    tuple(f"chr1:{start}-{start + 200}" for start in range(1000, 400_000, 9000)),
    ("chr2:2000000-", "chr1:390000-"),
    ("empty", "chr3", "chr1:5000000-6000000"),
]


def write(folder: Path, kind: str, *, end: str = "\n") -> Path:
    """Records close together and far apart, some with a long REF, and their index."""
    chance = random.Random(0)  # noqa: S311 - a test
    body = []
    for contig, positions in (
        ("chr1", [*range(1, 60_000, 37), *range(100_000, 400_000, 997), 3_000_000]),
        ("chr2", [5, *range(16_000, 17_000, 7), 2_500_000]),
        ("chrM", [10, 10, 11]),
    ):
        for position in positions:
            reference = "A" * chance.choice([1, 1, 1, 1, 3, 400, 20_000])
            body.append(f"{contig}\t{position}\tr{len(body)}\t{reference}\tC\t.\tPASS\tX\n")
    text = folder / "text.vcf"
    text.write_bytes((HEADER + "".join(body)).replace("\n", end).encode())
    suffix, index = kind.split()
    path = folder / f"some.{suffix}"
    if suffix == "bcf":
        write_bcf(text, path)
        index_variants(path)
    else:
        pysam.tabix_compress(os.fsencode(text), os.fsencode(path), force=True)
        names = {"filename": os.fsencode(path), "index": os.fsencode(f"{path}.{index}")}
        pysam.tabix_index(**names, preset="vcf", force=True, keep_original=True, csi=index == "csi")
    assert find_index(path) == path.with_name(f"{path.name}.{index}")
    return path


def lines(options: ScoreOptions) -> list[bytes]:
    read = partial(read_variants, options)
    shard = count_shard(options, read)
    assert shard is not None
    return [record.line for record in islice(read().records, shard.start, shard.stop)]


@pytest.mark.parametrize("kind", KINDS)
def test_regions_by_index_are_the_bytes_of_a_scan(tmp_path: Path, kind: str) -> None:
    by_index = ScoreOptions(inputs=(write(tmp_path, kind),))
    scanned = replace(by_index, inputs=(tmp_path / f"scanned.{kind.split()[0]}",))
    scanned.source.write_bytes(by_index.source.read_bytes())
    bed = tmp_path / "some.bed"
    bed.write_text("chr2\t16000\t16100\nchr1\t0\t10\n1\t399000\t500000\n")
    asked = [{"regions": regions} for regions in REGIONS]
    asked += [{"bed": bed}, {"bed": bed, "regions": ("chr1",)}, {"bed": bed, "limit": 3}]
    found = [lines(replace(by_index, **words)) for words in asked]
    assert found == [lines(replace(scanned, **words)) for words in asked]
    assert sum(map(bool, found)) == len(asked) - 1
    sharded = [replace(by_index, regions=REGIONS[2], shard=f"{i}/3") for i in (1, 2, 3)]
    assert [line for part in sharded for line in lines(part)] == found[2]


def test_line_ends_stay(tmp_path: Path) -> None:
    options = ScoreOptions(inputs=(write(tmp_path, KINDS[0], end="\r\n"),), regions=REGIONS[0])
    assert {line[-2:] for line in lines(options)} == {b"\r\n"}


def test_only_the_regions_are_read(tmp_path: Path, capsys) -> None:
    """An invalid record elsewhere, here with a field of an earlier run, is not noticed."""
    path = write(tmp_path, KINDS[0])
    text = tmp_path / "text.vcf"
    text.write_text(text.read_text() + "chrM\t12\t.\tA\tC\t.\t.\tEVO2_DELTA=1\n")
    pysam.tabix_compress(str(text), str(path), force=True)
    pysam.tabix_index(str(path), preset="vcf", force=True)
    options = ScoreOptions(inputs=(path,), regions=("chr1:1-100",))
    assert len(lines(options)) == 3
    os.utime(path, (2e9, 2e9))
    with pytest.raises(UserError, match="EVO2_ fields of an earlier run"):
        lines(options)
    warn_of_unused_index(options)
    assert "is older than some.vcf.gz, which is read without it" in capsys.readouterr().err


def indexed(path: Path, kind: str, content: bytes) -> tuple[Path, Path]:
    """A VCF (from its text) or BCF with an index that is not older; the paths of both."""
    suffix, name = kind.split()
    file = path / f"some.{suffix}"
    text = path / "text.vcf"
    text.write_bytes(content)
    if suffix == "bcf":
        write_bcf(text, file)
    else:
        pysam.tabix_compress(str(text), str(file), force=True)
    index = file.with_name(f"{file.name}.{name}")
    pysam.tabix_index(
        str(file), preset=suffix.split(".")[0], force=True, csi=name == "csi", keep_original=True
    )
    os.utime(index, (2e9, 2e9))
    return file, index


def record(contig: str, position: int) -> str:
    return f"{contig}\t{position}\tr\tA\tC\t.\tPASS\tX\n"


LAYOUTS = {
    "no records": "",
    "one record": record("chr1", 7),
    "one contig of four": "".join(record("chr1", each) for each in range(1, 90_000, 7)),
    "contigs in another order than in the header": record("chrM", 1) + record("chr2", 3_000_000),
    "the telomere": record("chr2", 0) + record("chr2", 1),
    "the end of a block": "".join(record("chr1", each) for each in range(1, 3264))
    + "chr1\t9999\t" + "r" * 200_000 + "\tA\tC\t.\tPASS\tX\n" + record("chr1", 10_000),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_an_index_belongs_to_the_file_it_was_made_of_and_to_no_other(
    tmp_path: Path, kind: str, layout: str, end: str
) -> None:
    body = LAYOUTS[layout]
    path, index = indexed(tmp_path, kind, (HEADER + body).replace("\n", end).encode())
    assert index_matches(index, path)
    kept = index.read_bytes()
    changes = [body + record("empty", 1), body + record("empty", 1) * 9000]
    if body:
        without_first = body[body.index("\n") + 1 :]
        changes += [without_first, body.replace("\tr\t", "\tsome\t", 1)]
    for changed in changes:
        path, index = indexed(tmp_path, kind, (HEADER + changed).replace("\n", end).encode())
        index.write_bytes(kept)
        assert not index_matches(index, path)


@pytest.mark.parametrize("kind", KINDS)
def test_no_index_can_lose_a_record(tmp_path: Path, kind: str, capsys) -> None:
    """Whether it is truncated, damaged, of an earlier version of the file, or not an index."""
    path = write(tmp_path, kind)
    index = find_index(path)
    assert index is not None
    chance = random.Random(1)  # noqa: S311 - a test
    whole = index.read_bytes()
    options = ScoreOptions(inputs=(path,), regions=("chr1:1-100000", "chr2", "M"))
    expected = lines(options)
    assert len(expected) > 1000
    plain = gzip.decompress(whole)
    damaged = [
        b"",
        whole[:-40],
        plain[: len(plain) // 2],
        gzip.compress(plain[:-9]),
        path.read_bytes(),
    ]
    for _ in range(12):
        bit = chance.randrange(8 * len(whole))
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(changed))
    for content in damaged:
        index.write_bytes(content)
        os.utime(index, (2e9, 2e9))
        assert lines(options) == expected
    index.write_bytes(whole[:-40])
    warn_of_unused_index(options)
    assert f"{index}: is damaged, or not the index of {path.name}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_is_used_whatever_the_name_of_the_file(tmp_path: Path, kind: str, capsys) -> None:
    folder = tmp_path / "f\udcff"
    folder.mkdir()
    options = ScoreOptions(inputs=(write(folder, kind),), regions=REGIONS[0])
    text = replace(options, inputs=(folder / "text.vcf",))
    found = lines(options)
    assert len(found) == len(lines(text)) > 1000
    warn_of_unused_index(options)
    assert "read without it" not in capsys.readouterr().err


def test_an_index_of_other_columns_loses_no_record(tmp_path: Path) -> None:
    path = write(tmp_path, KINDS[0])
    columns = {"seq_col": 0, "start_col": 1, "end_col": 1}  # REF is not read
    pysam.tabix_index(str(path), **columns, force=True, keep_original=True)
    options = ScoreOptions(inputs=(path,), regions=("chr1:1-100000",))
    text = replace(options, inputs=(tmp_path / "text.vcf",))
    assert lines(options) == lines(text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["cut off", "overwritten"])
def test_a_damaged_file_is_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str, damage: str
) -> None:
    path = write(tmp_path, kind)
    index = find_index(path)
    assert index is not None
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + (b"" if damage == "cut off" else bytes(200) + content[half:]))
    os.utime(index, (2e9, 2e9))
    with pytest.raises(UserError, match=rf"{path.name}: damaged"):
        lines(ScoreOptions(inputs=(path,), regions=("chr1", "chr2")))
    assert capfd.readouterr().err == ""


def test_bytes_that_are_not_ascii_stay(tmp_path: Path) -> None:
    """Also where a record overlaps two regions, or reaches further by END than by REF."""
    text, path = tmp_path / "text.vcf", tmp_path / "some.vcf.gz"
    body = [
        b"chr1\t0\ttelomere\tNNN\tC\t.\t.\t.\n",
        b"chr1\t10\t\xe4\xff\t" + b"A" * 40_000 + b"\tC\t.\t.\tX=\xc3\xa9\n",
        b"chr1\t20\tb\tA\t<DEL>\t.\t.\tEND=30000\n",
        b"chr1\t40000\tc\tA\tC\t.\t.\t.\n",
    ]
    text.write_bytes(HEADER.encode() + b"".join(body))
    pysam.tabix_compress(str(text), str(path))
    pysam.tabix_index(str(path), preset="vcf")
    options = ScoreOptions(inputs=(path,), regions=("chr1:1-5", "chr1:25000-25001", "chr1:40000-"))
    assert lines(options) == [body[0], body[1], body[3]]
    assert lines(options) == lines(replace(options, inputs=(text,)))
