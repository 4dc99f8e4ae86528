"""`evo2 eval traitgym`: features of variants, by chromosomes."""

import json
from pathlib import Path

import numpy as np
import pytest

from evo2cli.errors import UserError
from evo2cli.eval import traitgym
from evo2cli.eval.options import TraitGymOptions
from evo2cli.eval.traitgym import (
    evaluate_traitgym,
    predict_left_out,
    read_labelled,
    traitgym_page,
)
from evo2cli.score.options import ScoreOptions
from evo2cli.score.run import score
from tests.evo2cli.score.test_windows import letters

sklearn_metrics = pytest.importorskip("sklearn.metrics")
CHROMOSOMES = {"chr1": 40, "2": 25, "NC_000003.12": 30, "chrX": 20, "chrY": 4}  # Y: one label


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Variants of which the second channel of the embedding tells the label, and -llr a little."""
    chance = np.random.default_rng(0)
    lines = ["chrom\tpos\tref\talt\tlabel\tllr\tabsllr\tembedding_0\tembedding_1"]
    for chromosome, count in CHROMOSOMES.items():
        for index in range(count):
            causal = index % 5 == 0 and chromosome != "chrY"
            llr = chance.normal() - causal
            hidden = [chance.normal(), 3 * causal + chance.normal()]
            values = [llr, abs(llr), *hidden] if index != 7 else [".", ".", ".", "."]
            cells = [chromosome, index + 1, "A", "C", causal, *values]
            lines.append("\t".join(map(str, cells)))
    path = tmp_path / "features.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_auprc_is_the_mean_over_chromosomes_weighted_by_their_variants(table, tmp_path):
    output = tmp_path / "x.json"
    result = evaluate_traitgym(TraitGymOptions(source=table, output=output))
    assert json.loads(output.read_text()) == result
    assert result["left_out"] == 4
    assert result["chromosomes"] == ["1", "2", "3", "X"]
    found = read_labelled(TraitGymOptions(source=table))
    rows = {row["predictor"]: row for row in result["rows"]}
    for name, sign in (("llr", -1), ("absllr", 1)):
        total, variants = 0.0, 0
        for chromosome in result["chromosomes"]:
            own = found.chromosomes == chromosome
            ap = sklearn_metrics.average_precision_score(
                found.positive[own], sign * found.values[name][own]
            )
            total, variants = total + own.sum() * ap, variants + own.sum()
        row = rows[f"-{name}" if sign < 0 else name]
        assert row["auprc"] == pytest.approx(total / variants, abs=1e-6)
        assert row["auprc_low"] <= row["auprc"] <= row["auprc_high"]
    assert rows["logistic, embedding"]["auprc"] > 0.8 > rows["-llr"]["auprc"]
    assert set(rows) == {"-llr", "absllr", "logistic, embedding", "logistic, all features"}
    assert traitgym_page(result)


def test_no_model_sees_the_chromosome_that_it_predicts(table):
    found = read_labelled(TraitGymOptions(source=table))
    x_VF = np.stack(list(found.values.values()), axis=1)
    chosen = ["1", "2", "3", "X"]
    before = predict_left_out(found, x_VF, chosen)
    own = found.chromosomes == "2"
    turned = found.positive.copy()
    turned[own] = ~turned[own]
    other = traitgym.Labelled(found.chromosomes, turned, found.values, 0)
    after = predict_left_out(other, x_VF, chosen)
    assert np.array_equal(before[own], after[own])
    assert not np.array_equal(before[~own], after[~own])


def test_from_parquet_to_features_to_the_metric(tmp_path, checkpoint):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    contig = letters(300)
    (tmp_path / "g.fa").write_text("".join(f">chr{n}\n{contig}\n" for n in range(1, 5)))
    rows = [
        {
            "chrom": str(chromosome),
            "pos": at + 1,
            "ref": contig[at],
            "alt": "A" if contig[at] != "A" else "C",
            "label": at % 3 == 0,
        }
        for chromosome in range(1, 5)
        for at in range(100, 106)
    ]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "test.parquet")
    output = tmp_path / "features.parquet"
    words = {"features": "llr,absllr,embedding", "pool": "center:8", "window": 32}
    score(
        ScoreOptions(
            inputs=(tmp_path / "test.parquet",), reference=tmp_path / "g.fa", output=output,
            model=checkpoint, device="cpu", strand="fwd", **words,
        )
    )  # fmt: skip
    result = evaluate_traitgym(TraitGymOptions(source=output))
    assert (result["positives"], result["negatives"]) == (8, 16)
    assert len(result["rows"]) == 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("label", "causal", "has no column 'label'"),
        ("chrom", "chr", "has no column 'chrom'"),
        ("False", "maybe", "line 3: label 'maybe' is not a label"),
        ("\t.\t.\t.\t.", "\tx\t.\t.\t.", "line 9: llr 'x' is not a number"),
        ("True", "False", "no chromosome has variants of both labels"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(table, old, new, message):
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        evaluate_traitgym(TraitGymOptions(source=table))


@pytest.mark.parametrize(
    ("features", "message"),
    [("llr,x", "has no column 'x'"), ("pos", None), ("embedding,llr", None)],
)
def test_features_may_be_named(table, features, message):
    options = TraitGymOptions(source=table, features=features)
    if message is None:
        assert list(read_labelled(options).values) == {
            "pos": ["pos"], "embedding,llr": ["embedding_0", "embedding_1", "llr"]
        }[features]  # fmt: skip
        return
    with pytest.raises(UserError, match=message):
        read_labelled(options)
