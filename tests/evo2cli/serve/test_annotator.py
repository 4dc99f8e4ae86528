"""Noise and percentiles of the server are those of the command, for default windows only."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evo2cli.errors import UserError
from evo2cli.genome.reference import Reference
from evo2cli.genome.variant_names import read_variant_name
from evo2cli.score import background as score_background
from evo2cli.score.options import ScoreOptions
from evo2cli.score.precision import Noise
from evo2cli.score.run import score
from evo2cli.score.strata import random_snvs
from evo2cli.serve.native import ROW_FIELDS, Annotator
from evo2cli.serve.options import ServeOptions
from tests.evo2cli.serve.conftest import Serving, serving
from tests.ranks import free_port

VARIANTS = ["chr1-40-C-G", "chr1-90-A-T", "chr1-7-A-C"]  # REF of the last one does not match


@pytest.fixture(scope="module")
def background(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("background") / "bg.jsonl"


@pytest.fixture(scope="module")
def annotating(genome: Path, background: Path) -> Iterator[Serving]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_background, "NULLS", 8)
        patch.setattr(score_background, "MIN_NULLS", 8)
        with serving(
            reference=genome, background=background, precision_check=4, max_bases=2048
        ) as running:
            yield running


def test_percentiles_are_those_of_the_command(
    annotating: Serving, genome: Path, tmp_path: Path
) -> None:
    score(
        ScoreOptions(
            inputs=tuple(VARIANTS),
            reference=genome,
            background=tmp_path / "bg.jsonl",
            output=tmp_path / "x.jsonl",
            device="cpu",
        )
    )
    expected = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    found = annotating.post("/v1/variants", variants=VARIANTS)["variants"]
    assert [row["EVO2_PCT"] for row in found] == [row["EVO2_PCT"] for row in expected]
    assert [row["EVO2_DELTA"] for row in found] == [row["EVO2_DELTA"] for row in expected]
    assert sum(row["EVO2_PCT"] is not None for row in found) == 2
    again = annotating.post("/v1/variants", variants=VARIANTS, window=2048)["variants"]
    assert again == found  # 2,048 is the default window of this model


def test_percentiles_need_no_file_that_can_be_written(
    annotating: Serving, background: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk is no mistake of the client, and deltas are kept in memory."""
    kept = background.read_bytes()
    background.unlink()
    background.mkdir()  # a file that not even root can write
    try:
        first, again = (
            annotating.post("/v1/variants", variants=["chr1-5-T-TAA"])["variants"] for _ in range(2)
        )
    finally:
        background.rmdir()
        background.write_bytes(kept)
    assert first == again
    assert first[0]["EVO2_PCT"] is not None
    assert f"warning: {background}: cannot be written" in capsys.readouterr().err


def test_other_windows_have_no_percentiles(annotating: Serving) -> None:
    for given in ({"window": 64}, {"strand": "fwd"}, {"windows": "anchored"}):
        found = annotating.post("/v1/variants", variants=VARIANTS, **given)["variants"]
        assert [row["EVO2_PCT"] for row in found] == [None] * 3
    for path, given in (
        ("/v1/variants", {"variants": VARIANTS, "percentiles": False}),
        ("/v1/saturate", {"region": "chr1:3-4"}),
    ):
        assert all("EVO2_PCT" not in row for row in annotating.post(path, **given)["variants"])


def test_the_noise_is_measured_and_smaller_deltas_are_marked(
    annotating: Serving, genome: Path
) -> None:
    noise = annotating.client.get("/v1/metadata").json()["noise"]
    assert noise["num_alleles"] == 4
    assert noise["dtypes"] == ["fp32", "fp64"]
    assert 0 < noise["median"] <= noise["largest"] < 1e-3
    record = read_variant_name("chr1-40-C-G")
    row = dict.fromkeys(ROW_FIELDS, None) | {"EVO2_DELTA": -0.5, "EVO2_STATUS": "OK"}
    for largest, status in ((0.49, "OK"), (0.5, "NOISE")):
        annotator = Annotator(noise=Noise(4, 0.0, largest, ("fp32", "fp64")))
        assert annotator.rows(record, [row])[0]["EVO2_STATUS"] == status
    with Reference.open(genome) as opened:
        drawn = list(random_snvs(opened, 30))
        assert drawn == list(random_snvs(opened, 30))
        for record in drawn:
            assert record.reference == opened.fetch(opened.region(f"chr1:{record.start + 1}"))
            assert record.alternates[0] != record.reference
    assert len({record.start for record in drawn}) > 15


@pytest.mark.parametrize("name", ["gff", "background", "precision_check"])
def test_options_that_need_a_genome_are_refused_without_one(name: str) -> None:
    value = 3 if name == "precision_check" else Path("x")
    with pytest.raises(UserError, match="needs the genome; give --reference"):
        ServeOptions(**{name: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no gene: no line of type gene, exon or CDS"),
        ("chrX\tx\tgene\t1\t9\t.\t+\t.\tID=g\n", "has no gene on a contig of"),
        ("chr1\tx\tgene\t1001\t1009\t.\t+\t.\tID=g\n", "has no gene on a contig of"),
    ],
)
def test_a_gff_without_genes_ends_the_server(
    genome: Path,
    tmp_path: Path,
    command_line: Callable[..., tuple[int, str, str]],
    text: str,
    message: str,
) -> None:
    path = tmp_path / "x.gff3"
    path.write_text("##gff-version 3\n" + text)
    port = free_port()
    words = ("--port", str(port), "-R", str(genome), "--gff", str(path))
    code, _, said = command_line("serve", *words)
    assert code == 2
    assert message in said
    assert said.count("\n") == 1
