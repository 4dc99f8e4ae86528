"""Context parallelism: several ranks give the scores of a single process."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evo2cli.errors import UserError
from evo2cli.options import arguments
from evo2cli.score.options import ScoreOptions
from evo2cli.score.run import score
from tests.ranks import World


def write_fasta(path: Path, *lengths: int) -> Path:
    letters = np.random.default_rng(0)
    records = [f">s{n}\n{''.join(letters.choice(list('ACGTN'), n))}\n" for n in lengths]
    path.write_text("".join(records))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tag", "num_scored", "started"),
    [((), 4, 2), (("--tag", "d__Bacteria"), 5, 1)],
    ids=["no-tag", "tag-launched"],
)
def test_context_parallel_scores_are_those_of_one_process(
    tmp_path: Path,
    command_line: Callable[..., tuple[int, str, str]],
    tag: tuple[str, ...],
    num_scored: int,
    started: int,
) -> None:
    """With ranks started by a launcher, and by the command itself."""
    fasta = write_fasta(tmp_path / "x.fa", 3, 4, 7, 1501, 1)
    words = ["score", str(fasta), "--device", "cpu", "--dtype", "fp64", "--strand", "both", *tag]
    _, alone, _ = command_line(*words)
    output = tmp_path / "shared.tsv"
    share = [*words, "--context-parallel", "2", "--output", str(output)]
    codes, said = World(started, tmp_path, "rank", share).finish()
    assert not any(codes), said
    assert f"{num_scored} of 5 records scored" in said
    rows, expected = (
        [line.split("\t") for line in text.splitlines()] for text in (output.read_text(), alone)
    )
    assert [row[:2] for row in rows] == [row[:2] for row in expected]
    assert len(rows) == 6
    for row, wanted in zip(rows[1 : num_scored + 1], expected[1 : num_scored + 1], strict=True):
        assert [float(x) for x in row[2:]] == pytest.approx(
            [float(x) for x in wanted[2:]], abs=1e-6
        )


def test_input_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    vcf = tmp_path / "x.vcf"
    vcf.write_text("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n")
    with pytest.raises(
        UserError, match=r"--context-parallel: only for sequences, and .*x\.vcf holds variants"
    ):
        score(ScoreOptions(inputs=(vcf,), context_parallel=2))
    with pytest.raises(UserError, match="cannot read stdin"):
        score(ScoreOptions(inputs=("-",), context_parallel=2))


def test_other_processes_get_the_same_options(tmp_path: Path) -> None:
    options = ScoreOptions(
        inputs=("x.fa",), strand="rc", output=tmp_path / "x.jsonl", json=True, max_skipped=0.5
    )
    assert arguments(options) == [
        "x.fa",
        "--strand",
        "rc",
        "--output",
        str(tmp_path / "x.jsonl"),
        "--json",
        "--max-skipped",
        "0.5",
    ]
    assert arguments(ScoreOptions(inputs=("x.fa",))) == ["x.fa"]
