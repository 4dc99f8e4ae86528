"""How the engine shares its time, by a fake clock that only work advances."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from evo2cli.serve import engine as engines
from evo2cli.serve.answers import collect
from evo2cli.serve.engine import ADMISSION_SECONDS, Engine, Generation, Job, Task
from evo2cli.serve.refusal import Refusal
from stripedhyena2 import Request, Sample, Sampler, Uniforms
from stripedhyena2.dna import ACGT
from stripedhyena2.generation import Alphabet
from tests.evo2cli.serve.conftest import Serving
from tests.stripedhyena2.test_generation import Script, broken_for

BASES = Alphabet(tuple(ACGT))


def request(num_tokens: int, number: int = 0) -> Request:
    return Request(torch.tensor(list(b"ACGT")), num_tokens, Uniforms(number), BASES)


def generation(engine: Engine, *requests: Request) -> Generation:
    return Generation(requests, Sampler(), engine.deadline())


def answers(engine: Engine, jobs: Callable[[], list[Job]]) -> list[Any]:
    """The results or errors of jobs, all of which are queued before the engine begins with them."""
    is_held, may_begin = threading.Event(), threading.Event()

    def hold(_: object) -> Iterator[None]:
        is_held.set()
        may_begin.wait()
        yield

    async def ask() -> list[Any]:
        holding = asyncio.create_task(collect(engine, Task(hold, engine.deadline())))
        await asyncio.to_thread(is_held.wait)
        asked = [asyncio.create_task(collect(engine, job)) for job in jobs()]
        await asyncio.sleep(0)  # lets each begin, and so be submitted
        may_begin.set()
        await holding
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(ask())


@dataclass
class Watch:
    """A fake clock, and a log: a letter for each prefill, decoding step and step of other work."""

    now: float = 0.0
    done: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    def monotonic(self) -> float:
        return self.now

    def note(self, what: str) -> None:
        self.now += self.seconds[what]
        self.done += what

    def work(self, pieces: int) -> Callable[[object], Iterator[int]]:
        def work(_: object) -> Iterator[int]:
            for piece in range(pieces):
                self.note("w")
                yield piece

        return work


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """A prefill takes 30 ms, a decoding step 10 and a step of other work 200."""
    clock = Watch(seconds={"p": 0.03, "s": 0.01, "w": 0.2})
    rows = engines.Rows
    add, step = rows.add, rows.step

    def watched_add(*given: Any, **options: Any) -> Sample:
        clock.note("p")
        return add(*given, **options)

    def watched_step(of: engines.Rows) -> list[Sample]:
        clock.note("s")
        return step(of)

    monkeypatch.setattr(rows, "add", watched_add)
    monkeypatch.setattr(rows, "step", watched_step)
    monkeypatch.setattr(engines, "time", clock)
    return clock


def test_many_prompts_at_once_do_not_starve_a_running_sequence(
    server: Serving, watch: Watch
) -> None:
    """The others have one token each, so they need no row, and a row is always free."""
    engine = server.engine
    running, *others = answers(
        engine,
        lambda: [
            generation(engine, request(60)),
            *(generation(engine, *(request(1, i) for i in range(10))) for _ in range(4)),
        ],
    )
    assert [len(each) for each in (running, *others)] == [1, 10, 10, 10, 10]
    ((_, sample),) = running
    assert len(sample.ids) == 60
    assert watch.done.count("p") == 41
    # A token in each step: it never waits for more than a few prefills.
    assert watch.done.count("s") == 59
    waits = watch.done.split("s")
    most = 1 + int(ADMISSION_SECONDS / watch.seconds["p"])
    assert max(map(len, waits)) == most
    assert waits[: 41 // most] == ["p" * most] * (41 // most)


def test_free_rows_are_filled_before_the_first_step(server: Serving, watch: Watch) -> None:
    engine = server.engine
    answers(engine, lambda: [generation(engine, *(request(5, i) for i in range(4)))])
    assert watch.done == "pppp" + "s" * 4


def test_generation_and_other_work_get_half_of_the_time_each(server: Serving, watch: Watch) -> None:
    """Work is followed by as much time for decoding; without a running sequence, by more work."""
    engine = server.engine
    generated, first, second = answers(
        engine,
        lambda: [
            generation(engine, request(100)),
            Task(watch.work(5), engine.deadline()),
            Task(watch.work(3), engine.deadline()),
        ],
    )
    assert (len(generated), first, second) == (1, [0, 1, 2, 3, 4], [0, 1, 2])
    before, *after = watch.done.split("w")
    assert before == "pss"  # the task that held the engine ends after the first step
    steps = round(watch.seconds["w"] / watch.seconds["s"])
    assert [len(each) for each in after[:4]] == [pytest.approx(steps, abs=1)] * 4
    assert after[5:] == ["", "", ""]
    assert watch.done.count("s") == 99


def test_nan_ends_only_its_own_request(server: Serving) -> None:
    """With the other sequences of that request, and while the next step is running."""
    engine, prompt_L = server.engine, torch.tensor(list(b"GATTACA"))

    def others() -> list[Job]:
        several = [request(40, number) for number in (2, 3, 4)]
        return [generation(engine, request(40, 1)), generation(engine, *several)]

    def with_broken() -> list[Job]:
        broken = Request(prompt_L, 9, Uniforms(0), Script(b"ACGZACGTA"))
        return [generation(engine, broken, request(400)), *others()]

    expected = answers(engine, others)
    refused = engine.counts.ended["refused"]
    with broken_for(server.model, ord("Z")):
        error, *found = answers(engine, with_broken)
    assert isinstance(error, Refusal)
    assert error.status == 500
    assert "sequence 0: the logits of token 5 after the prompt are not finite" in error.message
    assert "first in layer embedding" in error.message
    assert list(map(sorted_bits, found)) == list(map(sorted_bits, expected))
    assert engine.counts.ended["refused"] == refused + 1
    assert engine.num_running == 0


def sorted_bits(found: list[tuple[int, Sample]]) -> list[Any]:
    return sorted((index, each.ids, each.logprobs, each.drawn_logprobs) for index, each in found)
