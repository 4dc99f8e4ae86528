"""Parts scored apart and merged are the bytes of the whole."""

import re
from pathlib import Path

import pysam
import pytest
from typer.testing import CliRunner

from evo2cli.app import app
from evo2cli.errors import TooManySkippedError, UserError
from evo2cli.merge import merge_files
from evo2cli.score.options import ScoreOptions
from evo2cli.score.run import score

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(
    output: Path,
    checkpoint: str,
    shard: str | None = None,
    source: Path = EXAMPLES / "phix174.vcf",
    **options: float,
) -> Path:
    score(
        ScoreOptions(
            inputs=(source,),
            reference=EXAMPLES / "phix174.fa",
            model=checkpoint,
            device="cpu",
            window=64,
            strand="fwd",
            output=output,
            shard=shard,
            **options,
        )
    )
    return output


@pytest.mark.parametrize("suffix", [".vcf", ".vcf.gz", ".tsv", ".tsv.gz", ".jsonl"])
def test_parts_are_the_whole(tmp_path: Path, checkpoint: str, suffix: str) -> None:
    whole = run(tmp_path / f"whole{suffix}", checkpoint)
    parts = [run(tmp_path / f"{i}{suffix}", checkpoint, f"{i}/3") for i in (1, 2, 3)]
    assert all(part.stat().st_size < whole.stat().st_size for part in parts)
    merge_files(parts, tmp_path / f"merged{suffix}")
    assert (tmp_path / f"merged{suffix}").read_bytes() == whole.read_bytes()
    if suffix == ".vcf.gz":
        with pysam.VariantFile(str(tmp_path / f"merged{suffix}")) as merged:
            assert sum(1 for _ in merged.fetch("NC_001422.1", 0, 1000)) > 0


def test_more_parts_than_records_and_a_limit(tmp_path: Path, checkpoint: str) -> None:
    whole = run(tmp_path / "whole.tsv", checkpoint, limit=3)
    parts = [run(tmp_path / f"{i}.tsv", checkpoint, f"{i}/5", limit=3) for i in range(1, 6)]
    merge_files(parts, tmp_path / "merged.tsv")
    assert (tmp_path / "merged.tsv").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("suffix", [".vcf", ".tsv", ".jsonl"])
def test_a_part_without_a_score_does_not_stop_a_workflow(
    tmp_path: Path, checkpoint: str, suffix: str
) -> None:
    head = b"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    lost = b"chrUn\t9\t.\tA\tC\t.\t.\t.\n"
    for last, has_score in ((b"NC_001422.1\t262\t.\tT\tC,*\t.\t.\t.\n", True), (lost, False)):
        (tmp_path / "in.vcf").write_bytes(head + lost + last)
        shards = [("1/2", tmp_path / f"1{suffix}"), ("2/2", tmp_path / f"2{suffix}")]
        source = tmp_path / "in.vcf"
        parts = [run(path, checkpoint, shard, source=source) for shard, path in shards]
        merged = tmp_path / f"{has_score}{suffix}"
        if has_score:
            merge_files(parts, merged)
        else:
            with pytest.raises(TooManySkippedError, match="nothing could be scored"):
                merge_files(parts, merged)
        assert merged.read_bytes().count(b"CONTIG_MISSING") == 2 - has_score
    with pytest.raises(TooManySkippedError, match="1 of 1 have no score"):
        run(tmp_path / f"1{suffix}", checkpoint, "1/2", source=source, max_skipped=0.5)


FORMATS = pytest.mark.parametrize("suffix", [".vcf", ".tsv", ".jsonl"])


@FORMATS
def test_a_repeated_record_is_no_repeated_part(
    tmp_path: Path, checkpoint: str, suffix: str
) -> None:
    line = b"NC_001422.1\t262\t.\tT\tC\t.\t.\t.\n"
    columns = b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    (tmp_path / "same.vcf").write_bytes(b"##fileformat=VCFv4.2\n" + columns + 5 * line)
    source = tmp_path / "same.vcf"
    whole = run(tmp_path / f"whole{suffix}", checkpoint, source=source)
    parts = [run(tmp_path / f"{i}{suffix}", checkpoint, f"{i}/3", source=source) for i in (1, 2, 3)]
    merge_files(parts, tmp_path / f"merged{suffix}")
    assert (tmp_path / f"merged{suffix}").read_bytes() == whole.read_bytes()


@FORMATS
def test_parts_of_different_runs_are_refused(tmp_path: Path, checkpoint: str, suffix: str) -> None:
    one = run(tmp_path / f"1{suffix}", checkpoint, "1/2", limit=6)
    two = run(tmp_path / f"2{suffix}", checkpoint, "2/2", limit=6)
    other = tmp_path / f"other{suffix}"
    other.write_bytes(two.read_bytes().replace(b"--window 64", b"--window 65"))
    with pytest.raises(UserError, match=rf"other\{suffix}: is from another run .* --window 65"):
        merge_files([one, other], tmp_path / f"merged{suffix}")
    fewer = tmp_path / "fewer.vcf"  # the same command, with another input
    fewer.write_bytes(b"".join((EXAMPLES / "phix174.vcf").read_bytes().splitlines(True)[:-1]))
    parts = [
        run(tmp_path / f"{name}{suffix}", checkpoint, f"{i}/2", source=source)
        for i, name, source in ((1, "a", EXAMPLES / "phix174.vcf"), (2, "b", fewer))
    ]
    with pytest.raises(UserError, match=r"is from another run .*: its header has '##evo2Input="):
        merge_files(parts, tmp_path / f"merged{suffix}")
    assert not (tmp_path / f"merged{suffix}").exists()


def test_what_merge_cannot_join_is_refused(tmp_path: Path, checkpoint: str) -> None:
    one = run(tmp_path / "1.vcf", checkpoint, "1/1", limit=1)
    with pytest.raises(UserError, match=r"x\.tsv: is not \.vcf like"):
        merge_files([one, tmp_path / "x.tsv"], tmp_path / "merged.vcf")
    (tmp_path / "linked.vcf").symlink_to(one)
    with pytest.raises(UserError, match=r"would overwrite .*1\.vcf; name another file"):
        merge_files([one], tmp_path / "linked.vcf")
    with pytest.raises(UserError, match="bcftools concat"):
        merge_files([one], tmp_path / "merged.bcf")
    table = tmp_path / "x.tsv"  # of a version that did not mark tables
    table.write_text("#CHROM\n1\n")
    with pytest.raises(UserError, match="give each part once"):
        merge_files([table, table], tmp_path / "merged.tsv")


@FORMATS
def test_parts_that_are_missing_or_out_of_order_are_refused(
    tmp_path: Path, checkpoint: str, suffix: str
) -> None:
    parts = [run(tmp_path / f"{i}{suffix}", checkpoint, f"{i}/3", limit=6) for i in (1, 2, 3)]
    for given in ([0, 2], [0, 2, 1], [0, 1, 1], [1]):
        told = ", ".join(f"{parts[index]} is shard {index + 1}/3" for index in given)
        with pytest.raises(UserError, match=f"^{re.escape(told)}; give all shards"):
            merge_files([parts[index] for index in given], tmp_path / f"merged{suffix}")
    bare = tmp_path / f"bare{suffix}"
    run(bare, checkpoint, limit=6)
    with pytest.raises(UserError, match=f"2/3, {re.escape(str(bare))} is no shard; give all"):
        merge_files([*parts[:2], bare], tmp_path / f"merged{suffix}")


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "1/0"])
def test_a_shard_that_is_none_is_refused(shard: str) -> None:
    with pytest.raises(UserError, match="must be I/N with I from 1 to N"):
        ScoreOptions(inputs=(Path("x.vcf"),), shard=shard)


def test_the_command_joins(tmp_path: Path) -> None:
    for name, body in (("1", "a\n"), ("2", "b\n")):
        (tmp_path / f"{name}.tsv").write_text(f"#CHROM\n{body}")
    words = [str(tmp_path / "1.tsv"), str(tmp_path / "2.tsv"), "-O", str(tmp_path / "x.tsv")]
    assert CliRunner().invoke(app, ["merge", *words]).exit_code == 0
    assert (tmp_path / "x.tsv").read_text() == "#CHROM\na\nb\n"
