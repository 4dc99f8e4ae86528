"""The report of a step that passed its deadline; tests of ranks show that it is made."""

from pathlib import Path

import pytest

from evo2cli.training.deadline import _report


@pytest.mark.parametrize(
    ("answered", "who", "where"),
    [
        ([True], "", "the stacks of rank 0 are in own"),
        ([True, True], "all ranks answered; ", "in own, those of other ranks beside it"),
        ([True, False], "rank 1 did not answer; ", "the stacks of rank 0 are in own;"),
        ([True, False, True, False], "ranks 1, 3 did not answer; ", "those of other ranks beside"),
    ],
)
def test_the_report_names_ranks_that_did_not_answer(
    answered: list[bool], who: str, where: str
) -> None:
    line = _report(0.5, Path("own"), 0, answered)
    assert line.startswith(f"a step took longer than guard.step_deadline = 0.5 s; {who}the stacks")
    assert where in line
