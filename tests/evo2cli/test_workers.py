"""Processes do what one process does, and tell what goes wrong in one line."""

import os
from collections.abc import Iterator
from contextlib import closing
from functools import partial

import pytest

from evo2cli.errors import UserError
from evo2cli.workers import Advance, Task, WorkerError, run_tasks


def square(number: int, advance: Advance) -> tuple[int, int]:
    advance(number)
    return number**2, os.getpid()


def fail(error: Exception, _advance: Advance) -> None:
    raise error


@pytest.mark.parametrize("count", [1, 2])
def test_tasks_are_done_once_and_one_may_wait_for_others(count: int) -> None:
    found, amounts = [], list[float]()

    def tasks() -> Iterator[Task | None]:
        for number in range(5):
            yield partial(square, number)
        while len(found) < 5:
            yield None
        yield partial(square, sum(found))

    with closing(run_tasks(tasks(), count, amounts.append)) as results:
        for value, process in results:
            found.append(value)
            assert (process == os.getpid()) == (count == 1)
    assert sorted(found[:5]) == [0, 1, 4, 9, 16]
    assert found[5:] == [900]
    assert sorted(amounts) == [0, 1, 2, 3, 4, 30]


def test_an_error_of_a_task_is_raised_here(capfd: pytest.CaptureFixture[str]) -> None:
    for error, code in ((UserError("g.fa: no"), 2), (ZeroDivisionError("a bug"), 1)):
        task = partial(fail, error)
        with pytest.raises(WorkerError, match=r"g\.fa: no|ZeroDivisionError: a bug") as caught:
            list(run_tasks(iter([task]), 2, lambda _: None))
        assert (caught.value.task, caught.value.exit_code) == (task, code)
        assert not caught.value.died
    told = capfd.readouterr().err
    assert told.count("Traceback") == 1  # of the defect
    assert "a bug" in told
