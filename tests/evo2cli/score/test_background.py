"""`evo2 score --background`: percentiles among random variants, whose deltas are cached."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from evo2cli.errors import UserError
from evo2cli.score import background as score_background
from evo2cli.score.options import ScoreOptions
from evo2cli.score.run import score

HEADER = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
GENOME = "".join(np.random.default_rng(3).choice(list("ACGT"), 2000))
CHANGED = GENOME[499].translate(str.maketrans("ACGT", "CATG"))


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_background, "NULLS", 25)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An SNV, its duplicate, a deletion, and a record without a score."""
    (tmp_path / "g.fa").write_text(f">c\n{GENOME}\n")
    path = tmp_path / "v.vcf"
    records = [
        (500, GENOME[499], CHANGED),
        (500, GENOME[499], CHANGED),
        (700, GENOME[699:701], GENOME[699]),
        (900, GENOME[899], "<DEL>"),
    ]
    path.write_text(HEADER + "".join(f"c\t{p}\t.\t{r}\t{a}\t.\t.\t.\n" for p, r, a in records))
    return path


def run(source: Path, checkpoint: str, suffix: str = ".jsonl", **options) -> Path:
    output = source.with_name(f"out{suffix}")
    words = {"window": 32, "strand": "fwd", "background": source.with_name("bg.jsonl")}
    words |= {"output": output} | options
    score(
        ScoreOptions(
            inputs=(source,),
            model=checkpoint,
            reference=source.with_name("g.fa"),
            device="cpu",
            **words,
        )
    )
    return output


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_percentile_is_the_share_of_random_variants_below(source: Path, checkpoint: str) -> None:
    table = rows(run(source, checkpoint))
    kinds = {entry["kind"]: entry["deltas"] for entry in rows(source.with_name("bg.jsonl"))[1:]}
    assert len(kinds) == 2
    assert {len(deltas) for deltas in kinds.values()} == {25}
    [of_snv] = [deltas for kind, deltas in kinds.items() if "[" in kind]
    for row, deltas in zip(table, [of_snv, of_snv, kinds["deletion 1"]], strict=False):
        lower = sum(delta < row["EVO2_DELTA"] for delta in deltas)
        equal = sum(delta == row["EVO2_DELTA"] for delta in deltas)
        assert row["EVO2_PCT"] == pytest.approx(100 * (lower + equal / 2) / 25)
    assert table[3]["EVO2_PCT"] is None


def test_it_adds_a_field_and_changes_no_other(source: Path, checkpoint: str) -> None:
    for suffix in (".vcf", ".tsv", ".jsonl"):
        ranked = run(source, checkpoint, suffix).read_text()
        plain = run(source, checkpoint, suffix, background=None).read_text()
        assert "EVO2_PCT" in ranked
        assert "EVO2_PCT" not in plain
    header, *lines = [
        line.split("\t") for line in run(source, checkpoint, ".tsv").read_text().splitlines()
    ]
    column = header.index("EVO2_PCT")
    assert 0 <= float(lines[0][column]) <= 100
    assert lines[3][column] == "."
    kept = [
        {k: v for k, v in row.items() if k != "EVO2_PCT"} for row in rows(run(source, checkpoint))
    ]
    assert kept == rows(run(source, checkpoint, background=None))


def test_later_runs_use_the_file(source: Path, checkpoint: str, capsys) -> None:
    first = run(source, checkpoint).read_text()
    assert "background: 25 random variants like deletion 1 scored" in capsys.readouterr().err
    file = source.with_name("bg.jsonl")
    whole = file.read_text()
    assert run(source, checkpoint).read_text() == first
    assert "background" not in capsys.readouterr().err
    file.write_text(whole[:-40])  # killed while writing: the incomplete line is made again
    assert run(source, checkpoint).read_text() == first
    assert file.read_text() == whole


def test_a_kind_with_few_random_variants_has_no_percentile(
    source: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_background, "NULLS", 19)
    assert {row["EVO2_PCT"] for row in rows(run(source, checkpoint))} == {None}


def test_percentiles_of_random_variants_are_uniform(source: Path, checkpoint: str) -> None:
    """About half of all variants of the kind are below 50."""
    records = [
        f"c\t{start + 1}\t.\t{GENOME[start : start + 2]}\t{GENOME[start]}\t.\t.\t.\n"
        for start in range(100, 1900, 25)
    ]
    source.write_text(HEADER + "".join(records))
    found = [row["EVO2_PCT"] for row in rows(run(source, checkpoint))]
    below = sum(value < 50 for value in found)
    # Both the 25 and the 72 are samples: their errors add up.
    error = len(found) * 0.5 * math.sqrt(1 / 25 + 1 / len(found))
    assert abs(below - len(found) / 2) < 3 * error


def test_another_background_is_refused(source: Path, checkpoint: str) -> None:
    run(source, checkpoint)
    for changes in ({"window": 30}, {"strand": "both"}):
        with pytest.raises(UserError, match=r"--background .* was made with another model"):
            run(source, checkpoint, **changes)
    for text in ("something else\n", "something else", "something\nelse"):
        source.with_name("bg.jsonl").write_text(text)
        with pytest.raises(UserError, match=r"is not a background file; name another file"):
            run(source, checkpoint)
        assert source.with_name("bg.jsonl").read_text() == text  # left as it was
    with pytest.raises(UserError, match=r"would overwrite .*bg\.jsonl"):
        run(source, checkpoint, output=source.with_name("bg.jsonl"))
    with pytest.raises(
        UserError, match=r"--background.*: only for variants, and .*g\.fa is a FASTA"
    ):
        run(source.with_name("g.fa"), checkpoint)


@pytest.mark.parametrize(
    "line", ["garbage", '{"kind": "x"}', '{"kind": "x", "deltas": ["a"]}', "3"]
)
def test_a_line_of_another_file_is_refused(source: Path, checkpoint: str, line: str) -> None:
    run(source, checkpoint)
    file = source.with_name("bg.jsonl")
    count = len(file.read_text().splitlines())
    file.write_text(f"{file.read_text()}{line}\n")
    with pytest.raises(UserError, match=f"line {count + 1} is not valid"):
        run(source, checkpoint)
