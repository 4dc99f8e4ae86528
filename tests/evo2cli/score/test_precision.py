"""`evo2 score --precision-check`: the noise is the difference from a run at higher precision."""

import json
import random
from pathlib import Path
from statistics import median

import pytest

from evo2cli.errors import UserError
from evo2cli.merge import merge_files
from evo2cli.score.options import ScoreOptions
from evo2cli.score.run import score
from tests.evo2cli.score.test_windows import letters, variants, write

GENOME = letters(400)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """SNVs and indels, and records that have no score."""
    return write(tmp_path, GENOME, [*variants(GENOME, 10), (3, "N", "C"), (9, GENOME[9], "<DEL>")])


def run(source: Path, checkpoint: str, name: str = "out.vcf", **options) -> Path:
    usual = {"window": 64, "dtype": "bf16", "strand": "fwd", "precision_check": 4}
    score(
        ScoreOptions(
            inputs=(source,),
            model=checkpoint,
            output=source.with_name(name),
            reference=source.with_name("one.fa"),
            device="cpu",
            **(usual | options),
        )
    )
    return source.with_name(name)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_noise_is_the_largest_difference_and_smaller_deltas_are_marked(
    source: Path, checkpoint: str, capsys
) -> None:
    coarse = rows(run(source, checkpoint, "coarse.jsonl", precision_check=None))
    fine = rows(run(source, checkpoint, "fine.jsonl", precision_check=None, dtype="fp32"))
    differences = [
        abs(one["EVO2_DELTA"] - other["EVO2_DELTA"])
        for one, other in zip(coarse, fine, strict=True)
        if one["EVO2_DELTA"] is not None
    ]
    capsys.readouterr()
    marked = rows(run(source, checkpoint, "marked.jsonl", precision_check=100))
    assert (
        f"EVO2_DELTA of {len(differences)} alleles in bf16 differs from that in fp32 by "
        f"{median(differences):.6f} nats (median), {max(differences):.6f} at most"
    ) in capsys.readouterr().err
    found = 0
    for row, plain in zip(marked, coarse, strict=True):
        status = plain["EVO2_STATUS"]
        if plain["EVO2_DELTA"] is not None and abs(plain["EVO2_DELTA"]) <= max(differences):
            status = "NOISE" if status == "OK" else f"{status}&NOISE"
            found += 1
        assert row == plain | {"EVO2_STATUS": status}
    assert 0 < found < len(differences)


def test_fp8_is_checked_against_bf16_and_fp32(source: Path, checkpoint: str, capsys) -> None:
    deltas = {
        dtype: [
            row["EVO2_DELTA"]
            for row in rows(
                run(source, checkpoint, f"{dtype}.jsonl", precision_check=None, dtype=dtype)
            )
            if row["EVO2_DELTA"] is not None
        ]
        for dtype in ("fp8", "bf16", "fp32")
    }
    capsys.readouterr()
    marked = run(source, checkpoint, "marked.vcf", precision_check=100, dtype="fp8").read_text()
    said = capsys.readouterr().err
    largest = {}
    for higher in ("bf16", "fp32"):
        differences = [abs(x - y) for x, y in zip(deltas["fp8"], deltas[higher], strict=True)]
        largest[higher] = max(differences)
        line = (
            f"EVO2_DELTA of {len(differences)} alleles in fp8 differs from that in {higher} by "
            f"{median(differences):.6f} nats (median), {max(differences):.6f} at most"
        )
        assert line in said
        assert f"##evo2Noise={line}\n" in marked
    noisy = sum(abs(delta) <= largest["fp32"] for delta in deltas["fp8"])
    assert sum(line.endswith("NOISE") for line in marked.splitlines()) == noisy > 0


def test_neither_order_nor_shards_change_a_byte(source: Path, checkpoint: str) -> None:
    whole = run(source, checkpoint).read_text()
    assert "##evo2Noise=EVO2_DELTA of 4 alleles in bf16 differs" in whole
    parts = [run(source, checkpoint, f"{i}.vcf", shard=f"{i}/2") for i in (1, 2)]
    merge_files(parts, source.with_name("merged.vcf"))
    assert source.with_name("merged.vcf").read_text() == whole
    head, body = source.read_text().split("INFO\n")
    lines = body.splitlines(keepends=True)
    random.Random(5).shuffle(lines)  # noqa: S311 - a test
    source.write_text(head + "INFO\n" + "".join(lines))
    shuffled = run(source, checkpoint).read_text()
    assert shuffled != whole
    assert sorted(shuffled.splitlines()) == sorted(whole.splitlines())


def test_fp32_is_checked_against_fp64_and_fp64_is_refused(
    source: Path, checkpoint: str, capsys
) -> None:
    assert "in fp32 differs from that in fp64" in run(source, checkpoint, dtype="fp32").read_text()
    with pytest.raises(UserError, match="--dtype fp64 is already the highest precision"):
        run(source, checkpoint, dtype="fp64")
    source.write_text(source.read_text().split("INFO\n")[0] + "INFO\n")
    assert "##evo2Noise=" not in run(source, checkpoint).read_text()
    assert "--precision-check: no allele can be scored" in capsys.readouterr().err
