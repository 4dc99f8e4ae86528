"""`evo2 score --saturate`: the scores of a VCF of every SNV of the region, and a heat map."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evo2cli.app import app
from evo2cli.errors import UserError
from evo2cli.saturate.plot import draw_saturation
from evo2cli.score.options import ScoreOptions
from evo2cli.score.run import score

HEADER = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
GENOME = "ACGTTGCAACGNTTAGCCATAGGCTTACGATC" * 3


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    path = tmp_path / "g.fa"
    path.write_text(f">chr1\n{GENOME}\n")
    return path


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_is_a_vcf_of_every_snv(genome: Path, checkpoint: str) -> None:
    common = {"model": checkpoint, "reference": genome, "window": 32, "device": "cpu"}
    output, figure = genome.with_name("sat.jsonl"), genome.with_name("sat.png")
    options = ScoreOptions(
        source=Path("-"), saturate="1:40-50", output=output, plot=figure, **common
    )
    score(options)
    vcf, expected = genome.with_name("v.vcf"), genome.with_name("v.jsonl")
    records = [
        f"chr1\t{place}\t.\t{GENOME[place - 1]}\t{base}\t.\t.\t.\n"
        for place in range(40, 51)
        for base in "ACGT"
        if GENOME[place - 1] not in (base, "N")
    ]
    vcf.write_text(HEADER + "".join(records))
    score(ScoreOptions(source=vcf, output=expected, **common))
    assert len(records) == 30  # one position is an N
    assert rows(output) == rows(expected)
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("length", [1, 120, 121, 3000], ids=lambda length: f"{length}bases")
def test_a_figure_of_any_length_is_drawn(tmp_path: Path, length: int) -> None:
    references = {place: "ACGT"[place % 4] for place in range(10, 10 + length) if place != 50}
    deltas = {
        place: dict.fromkeys("ACGT".replace(base, ""), None if place == 11 else -place % 3 - 1.0)
        for place, base in references.items()
    }
    figure = tmp_path / "x.svg"
    draw_saturation(figure, "chr1", references, deltas)
    assert b"<svg" in figure.read_bytes()[:1000]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": None}, "--saturate chr1:1-9: give the genome by --reference"),
        ({"saturate": "chr1"}, "--saturate chr1: write chr:from-to"),
        ({"saturate": None, "plot": Path("x.png")}, "--plot x.png: is drawn of a region"),
        ({"plot": Path("x.gif")}, "--plot x.gif: needs the suffix .png or .pdf or .svg"),
        ({"track": "entropy"}, "--track and --saturate: one at a time"),
    ],
)
def test_what_cannot_be_is_one_line(genome: Path, changes: dict, message: str) -> None:
    words = {"source": Path("-"), "saturate": "chr1:1-9", "reference": genome} | changes
    with pytest.raises(UserError) as error:
        score(ScoreOptions(**words))
    assert str(error.value).startswith(message)


def test_without_matplotlib_there_is_no_figure(
    genome: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="--plot needs matplotlib"):
        ScoreOptions(
            source=Path("-"), saturate="chr1:1-9", reference=genome, plot=genome.with_name("x.png")
        )


@pytest.mark.parametrize("words", [[], ["g.fa", "--saturate", "chr1:1-9"]], ids=["none", "both"])
def test_there_is_one_input(words: list[str]) -> None:
    result = CliRunner().invoke(app, ["score", *words])
    assert isinstance(result.exception, UserError)
    assert "give an INPUT to score, or a region by --saturate" in str(result.exception)
