"""Records computed in batches have the rows that each has alone."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evo2cli.errors import UserError
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import VariantRecord
from evo2cli.score.alleles import VariantScorer
from evo2cli.score.options import AlleleOptions
from evo2cli.score.variants import score_records
from evo2cli.tables import Row
from stripedhyena2 import StripedHyena2
from stripedhyena2.errors import NonFiniteError
from stripedhyena2.packing import Packer, Shapes
from tests.evo2cli.score.test_windows import letters, single_precision, variants, write

GENOME = letters(900)
PACKED = Shapes(2048)


@pytest.fixture(scope="module")
def model(tiny_model: StripedHyena2) -> StripedHyena2:
    """In fp32, where every sum is rounded."""
    return single_precision(tiny_model)


@pytest.fixture
def genome(tmp_path: Path) -> Iterator[Reference]:
    write(tmp_path, GENOME, [])
    with Reference.open(tmp_path / "one.fa") as opened:
        yield opened


def records(count: int) -> list[VariantRecord]:
    """Records in no order; some have two alleles, and one has an allele that cannot be scored."""
    plain = [
        VariantRecord.from_columns("one", at + 1, *rest) for at, *rest in variants(GENOME, count)
    ]
    two = ",".join("ACGT".replace(GENOME[450], "")[:2])
    others = [
        VariantRecord.from_columns("one", 451, GENOME[450], two),
        VariantRecord.from_columns("one", 452, GENOME[451], "<DEL>"),
    ]
    found = plain + others
    return found[::2] + found[1::2][::-1]


def scorer_of(model: StripedHyena2, genome: Reference, windows: str, **more: Any) -> VariantScorer:
    options = AlleleOptions(window=300, windows=windows, **more)  # type: ignore[arg-type] # made choices
    return VariantScorer(model, genome, options, shapes=PACKED)


@pytest.mark.parametrize("windows", ["centred", "anchored"])
def test_rows_are_those_of_records_alone(
    model: StripedHyena2, genome: Reference, windows: str
) -> None:
    """In batches, in the order of the input; alone, each by its own scorer."""
    some = records(14)
    together = list(score_records(some, scorer_of(model, genome, windows)))
    assert [record for record, _ in together] == some
    for record, rows in together[::3]:
        assert scorer_of(model, genome, windows).score(record) == rows
    assert sum(row["EVO2_DELTA"] is not None for _, rows in together for row in rows) >= 14


@pytest.mark.parametrize("windows", ["centred", "anchored"])
def test_queueing_while_a_gpu_computes_changes_nothing(
    model: StripedHyena2, genome: Reference, windows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = records(14)
    at_once = list(score_records(some, scorer_of(model, genome, windows)))
    monkeypatch.setattr(Packer, "runs_ahead", True)
    monkeypatch.setattr("stripedhyena2.packing.MAX_TOKENS", 0)  # a few launches are a batch
    assert list(score_records(some, scorer_of(model, genome, windows))) == at_once
    monkeypatch.setattr(Packer, "is_full", True)  # a batch is one record
    assert list(score_records(some, scorer_of(model, genome, windows))) == at_once


def test_a_resumed_run_computes_the_rest(model: StripedHyena2, genome: Reference) -> None:
    some = records(14)
    whole = list(score_records(some, scorer_of(model, genome, "centred")))
    journal: list[list[Row]] = []
    for known in (0, 1, 9, 16):
        asked: list[str] = []

        def recall(
            key: str,
            compute: Callable[[], list[Row]],
            known: int = known,
            asked: list[str] = asked,
        ) -> list[Row]:
            asked.append(key)
            if len(asked) > known:
                found = compute()
                journal[len(asked) - 1 :] = [found]
            return journal[len(asked) - 1]

        scorer = scorer_of(model, genome, "centred")
        assert list(score_records(some, scorer, recall)) == whole
        assert (scorer.num_bases == 0) == (known == 16)


def test_an_error_comes_after_the_previous_rows(
    model: StripedHyena2, genome: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a journal has the previous records, as if records were scored one by one."""
    some = sorted(records(6), key=lambda record: record.start)
    right = list(scorer_of(model, genome, "centred").score_all(some))
    wrong = VariantRecord.from_columns("one", 500, "A" if GENOME[499] != "A" else "C", "G")
    for runs_ahead in (False, True):
        monkeypatch.setattr(Packer, "runs_ahead", runs_ahead)
        rows = scorer_of(model, genome, "centred", on_ref_mismatch="error").score_all(
            [*some[:4], wrong, *some[4:]]
        )
        assert [next(rows) for _ in range(4)] == right[:4]
        with pytest.raises(UserError, match="is it the right build"):
            next(rows)


def test_a_non_finite_score_comes_after_the_rows_before_it(
    model: StripedHyena2, tmp_path: Path
) -> None:
    write(tmp_path, f"{GENOME[:800]}N{GENOME[801:]}", [])
    some = [VariantRecord.from_columns("one", at, GENOME[at - 1], "<X>") for at in (1,)]
    for at in (300, 400, 700):
        other = "A" if GENOME[at - 1] != "A" else "C"
        some.append(VariantRecord.from_columns("one", at, GENOME[at - 1], other))

    def spoil(_: object, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output.masked_fill((inputs[0] == ord("N"))[..., None], torch.nan)

    with (
        Reference.open(tmp_path / "one.fa") as opened,
        model.embedding.register_forward_hook(spoil),
    ):
        rows = scorer_of(model, opened, "centred").score_all(some)
        assert [next(rows)[0]["EVO2_STATUS"] for _ in range(3)] == ["SYMBOLIC", "OK", "OK"]
        with pytest.raises(NonFiniteError, match=r"^one:700 .*first in layer embedding"):
            next(rows)
