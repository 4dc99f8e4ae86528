"""`evo2 eval pairs`: real against perturbed sequences."""

import json
from pathlib import Path

import pytest

from evo2cli.errors import UserError
from evo2cli.eval.options import PairsOptions
from evo2cli.eval.pairs import evaluate_pairs, group_row, pairs_page
from stripedhyena2 import StripedHyena2
from tests.evo2cli.score.test_windows import letters


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.csv"
    lines = ["kind,original_sequence,sequence"]
    for index in range(12):
        real = letters(40, seed=index)
        other = letters(40, seed=100 + index) if index % 2 else real + "CAG" * 4
        lines.append(f"{'codon' if index % 2 else 'repeat'},{real.lower()},{other}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_share_is_that_of_the_log_likelihoods(
    table: Path, checkpoint: str, model: StripedHyena2
) -> None:
    output = table.with_name("x.json")
    words = {"source": table, "model": checkpoint, "device": "cpu", "by": "kind"}
    result = evaluate_pairs(PairsOptions(output=output, **words))
    assert json.loads(output.read_text()) == result
    cells = [line.split(",") for line in table.read_text().splitlines()[1:]]
    for row in result["rows"]:
        own = [c[1:] for c in cells if row["group"] in ("all", c[0])]
        for reduce, field in (("sum", "share"), ("mean", "share_per_base")):
            real, other = (
                model.score([c[side].upper() for c in own], reduce=reduce) for side in (0, 1)
            )
            wins = [one > two for one, two in zip(real, other, strict=True)]
            assert row[field] == pytest.approx(sum(wins) / len(wins), abs=1e-6)
        assert row["share_low"] <= row["share"] <= row["share_high"]
    assert [row["pairs"] for row in result["rows"]] == [12, 6, 6]
    assert {row["group"] for row in result["rows"]} == {"all", "codon", "repeat"}
    assert pairs_page(result)


def test_a_longer_sequence_of_the_same_bases_is_less_likely_but_not_per_base() -> None:
    row = group_row("x", [(3.0, -0.1), (2.0, 0.0), (0.0, 0.1)], seed=0)
    assert row["share"] == pytest.approx(2.5 / 3, abs=1e-6)
    assert row["share_per_base"] == 0.5
    assert row["difference"] == pytest.approx(5 / 3, abs=1e-6)


def test_a_group_may_be_called_all(table: Path, checkpoint: str) -> None:
    table.write_text(table.read_text().replace("codon", "all"))
    words = {"source": table, "model": checkpoint, "device": "cpu", "by": "kind"}
    rows = evaluate_pairs(PairsOptions(**words))["rows"]
    assert sorted((row["group"], row["pairs"]) for row in rows) == [
        *(("all", 6), ("all", 12)),
        ("repeat", 6),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("original_sequence,seq\nACG,ACT\n", "has no column 'sequence'"),
        ("original_sequence,sequence\nACG,A-T\n", "line 2: sequence 'A-T' is not a sequence"),
        ("original_sequence,sequence\nA,ACT\n", "line 2: original_sequence 'A' is not"),
        ("original_sequence,sequence\n", "has no pairs"),
    ],
)
def test_what_is_no_pair_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        evaluate_pairs(PairsOptions(source=path))
