"""`evo2 saturate`: the scores of a VCF of every SNV of the regions, and a heat map."""

import gzip
import json
import signal
import sys
from pathlib import Path

import pysam
import pytest
from typer.testing import CliRunner

from evo2cli.app import app
from evo2cli.errors import UserError
from evo2cli.journal import _Journal
from evo2cli.merge import merge_files
from evo2cli.saturate.options import SaturateOptions
from evo2cli.saturate.plot import Site, draw_saturation
from evo2cli.saturate.run import saturate
from evo2cli.score.options import ScoreOptions
from evo2cli.score.run import score
from tests.ranks import Hold, World

HEADER = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
GENOME = "ACGTTGCAACGNTTAGCCATAGGCTTACGATC" * 3


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    path = tmp_path / "g.fa"
    path.write_text(f">chr1\n{GENOME}\n>chr2\n{GENOME}\n")
    return path


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_is_a_vcf_of_every_snv(genome: Path, checkpoint: str) -> None:
    common = {"model": checkpoint, "reference": genome, "window": 32, "device": "cpu"}
    output, figure = genome.with_name("sat.jsonl"), genome.with_name("sat.png")
    regions = ("1:40-50", "chr2:3-4")
    saturate(SaturateOptions(regions=regions, output=output, plot=figure, **common))
    vcf, expected = genome.with_name("v.vcf"), genome.with_name("v.jsonl")
    records = [
        f"{contig}\t{position}\t.\t{GENOME[position - 1]}\t{base}\t.\t.\t.\n"
        for contig, first, last in (("chr1", 40, 50), ("chr2", 3, 4))
        for position in range(first, last + 1)
        for base in "ACGT"
        if GENOME[position - 1] not in (base, "N")
    ]
    vcf.write_text(HEADER + "".join(records))
    score(ScoreOptions(inputs=(vcf,), output=expected, **common))
    assert len(records) == 36  # one position is an N
    assert rows(output) == rows(expected)
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_shards_and_devices_give_the_same_bytes(genome: Path, checkpoint: str, capsys) -> None:
    def run(name: str, **words) -> Path:
        options = {"reference": genome, "window": 32, "model": checkpoint, "device": "cpu"} | words
        path = genome.with_name(name)
        saturate(SaturateOptions(regions=("1:30-40", "chr2:3-4"), output=path, **options))
        return path

    whole = run("whole.vcf")
    assert "##evo2Command=evo2 saturate 1:30-40 chr2:3-4 --model" in whole.read_text()
    merge_files([run(f"{i}.vcf", shard=f"{i}/2") for i in (1, 2)], genome.with_name("merged.vcf"))
    assert genome.with_name("merged.vcf").read_bytes() == whole.read_bytes()
    assert run("two.vcf", device="cpu,cpu", shard="2/2").read_bytes() == (
        genome.with_name("2.vcf").read_bytes()
    )
    capsys.readouterr()
    run("none.vcf", dry_run=True)
    assert "39 of 39 alleles would be scored" in capsys.readouterr().err
    assert not genome.with_name("none.vcf").exists()


def write_bed(genome: Path) -> Path:
    """Intervals in any order that overlap and touch, with any name of their contig."""
    path = genome.with_name("x.bed")
    path.write_text(
        "track name=x\nchr2\t2\t4\tlast\n1\t45\t50\nNC_000001.11\t39\t46\n"
        "chr1\t50\t51\nchr1\t9\t9\n"
    )
    return path


def test_a_bed_file_gives_the_union_of_its_intervals_in_the_order_of_the_genome(
    genome: Path, checkpoint: str
) -> None:
    common = {"model": checkpoint, "reference": genome, "window": 32, "device": "cpu"}
    one, other = genome.with_name("one.tsv.gz"), genome.with_name("other.tsv.gz")
    saturate(SaturateOptions(bed=write_bed(genome), output=one, **common))
    saturate(SaturateOptions(regions=("1:40-51", "chr2:3-4"), output=other, **common))
    assert gzip.decompress(one.read_bytes()) == gzip.decompress(other.read_bytes())
    with pysam.TabixFile(str(one)) as table:
        found = [line.split("\t")[1] for line in table.fetch("chr1", 44, 46)]
    assert found == ["45"] * 3 + ["46"] * 3


@pytest.mark.slow
def test_shards_of_a_bed_file_and_devices_give_the_same_bytes(
    genome: Path, checkpoint: str
) -> None:
    common = {"reference": genome, "window": 32, "model": checkpoint, "bed": write_bed(genome)}

    def run(name: str, **words) -> bytes:
        path = genome.with_name(name)
        saturate(SaturateOptions(output=path, **({"device": "cpu"} | common | words)))
        return path.read_bytes()

    whole = run("whole.vcf")
    for index in (1, 2, 3):
        run(f"{index}.vcf", shard=f"{index}/3")
    parts = [genome.with_name(f"{index}.vcf") for index in (1, 2, 3)]
    merge_files(parts, genome.with_name("merged.vcf"))
    assert genome.with_name("merged.vcf").read_bytes() == whole
    assert run("two.vcf", device="cpu,cpu") == whole


@pytest.mark.parametrize("score", ["delta", "next-base"])
def test_a_killed_run_over_a_bed_file_resumes_to_the_same_bytes(
    genome: Path, checkpoint: str, score: str
) -> None:
    output = genome.with_name("killed.tsv")
    words = {"bed": write_bed(genome), "reference": genome, "model": checkpoint, "output": output}
    words |= {"window": 32, "device": "cpu", "score": score}
    arguments = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    saturate(SaturateOptions(**words))
    whole = output.read_bytes()
    output.unlink()
    hold = Hold(_Journal, "recall", call=5)
    killed = World(1, genome.parent, "killed", ["saturate", *arguments], hold)
    journal = output.with_name(f"{output.name}.journal")
    assert killed.end_held(signal.SIGKILL) == [-signal.SIGKILL]
    assert len(journal.read_text().splitlines()) == 6
    saturate(SaturateOptions(**words))
    assert output.read_bytes() == whole
    assert not journal.exists()


@pytest.mark.parametrize("length", [1, 120, 121, 3000], ids=lambda length: f"{length}bases")
def test_a_figure_of_any_length_is_drawn(tmp_path: Path, length: int) -> None:
    sites = {}
    for position in range(10, 10 + length):
        base = "ACGT"[position % 4]
        delta = None if position == 11 else -position % 3 - 1.0
        if position != 50:
            sites[position] = Site(base, dict.fromkeys("ACGT".replace(base, ""), delta))
    figure = tmp_path / "x.svg"
    draw_saturation(figure, [("chr1", sites)])
    assert b"<svg" in figure.read_bytes()[:1000]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regions": ("chr1",)}, "chr1: write a region as chr:from-to"),
        ({"regions": ()}, "give regions, or a BED file with --bed"),
        ({"bed": Path("x.bed")}, "give regions, or a BED file with --bed, not both"),
        ({"score": "ref", "plot": Path("x.png")}, "--plot needs EVO2_DELTA, which --score ref"),
        ({"plot": Path("x.gif")}, "--plot x.gif: needs the suffix .png or .pdf or .svg"),
    ],
)
def test_invalid_options_are_refused_in_one_line(genome: Path, changes: dict, message: str) -> None:
    words = {"regions": ("chr1:1-9",), "reference": genome} | changes
    with pytest.raises(UserError) as error:
        saturate(SaturateOptions(**words))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chr1\t90\t97\n", "reaches beyond base 96, where chr1 ends"),
        ("chr7\t1\t2\n", "the genome has no contig chr7"),
        ("chr1\t5\t5\n", "has no interval with a base"),
    ],
)
def test_a_bed_file_of_another_genome_is_refused_in_one_line(
    genome: Path, text: str, message: str
) -> None:
    bed = genome.with_name("x.bed")
    bed.write_text(text)
    with pytest.raises(UserError, match=f"^--bed {bed}: .*{message}"):
        saturate(SaturateOptions(bed=bed, reference=genome))


def test_without_matplotlib_a_figure_is_refused(
    genome: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="--plot needs matplotlib"):
        SaturateOptions(regions=("chr1:1-9",), reference=genome, plot=genome.with_name("x.png"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["saturate", "chr1:1-9"], "--reference"),
        (["saturate", "chr1:1-9", "-R", "g.fa", "--indel-mode", "fixed"], "No such option"),
        (
            ["score", "--saturate", "chr1:1-9"],
            "--saturate: use `evo2 saturate REGION -R genome.fa`",
        ),
        (["score", "--plot=x.png"], "--plot: use `evo2 saturate REGION -R genome.fa --plot x.png`"),
        (["score", "g.fa", "--track", "entropy"], "--track: use `evo2 track genome.fa"),
    ],
)
def test_errors_of_wrong_command_lines_say_what_to_do(words: list[str], message: str) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code != 0
    assert message in result.output + str(result.exception)
