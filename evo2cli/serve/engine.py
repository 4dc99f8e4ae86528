"""One model for many requests: a thread of its own runs it, a piece of work at a time.

Between two tokens of the sequences that grow, others may join them or leave, and a piece of other
work may be done: a sequence, some alleles or a chunk are scored. Every piece is computed by the
function that the command calls, so that no result depends on what else is asked.

While the GPU computes a step, the tokens of the step before are handed over to the thread of the
event loop, which has the time to send them.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evo2cli.errors import UserError
from evo2cli.genome.genes import Genes, read_genes
from evo2cli.genome.reference import Reference
from evo2cli.models import memory_explained, open_model
from evo2cli.score.alleles import VariantScorer
from evo2cli.score.background import Background, open_background
from evo2cli.score.options import AlleleOptions
from evo2cli.score.precision import Noise, measure_noise
from evo2cli.score.strata import random_snvs
from evo2cli.serve.options import ServeOptions
from evo2cli.serve.refusal import Refusal, refusal_of
from stripedhyena2 import Request, Sample, Sampler, StripedHyena2
from stripedhyena2.errors import NonFiniteError
from stripedhyena2.generation import PREFILL_CHUNK, Rows

DEFAULT_MAX_BASES = 16_384
# Seconds between two tokens in which prompts are begun: sequences that grow wait no longer than
# this and a prompt. With one prompt between two tokens, a burst of requests would fill the rows as
# slowly as one a step, and requests of few tokens would never fill them.
JOINING_SECONDS = 0.1
EXTRA_GRACE = 5  # seconds from the refusal of jobs that are not over to the end of the server


@dataclass(frozen=True)
class Served:
    """What an engine answers requests with.

    Attributes:
        model: The model.
        genome: The genome of `--reference`, if it is given.
        max_bases: The most bases of a sequence, a window or a region.
        genes: The genes of `--gff`, if it is given.
        background: Percentiles of deltas by default windows, with `--background`.
        noise: Rounding noise of deltas by default windows, with `--precision-check`.
    """

    model: StripedHyena2
    genome: Reference | None
    max_bases: int
    genes: Genes | None
    background: Background | None
    noise: Noise | None


# Starts an iterator whose every step is a piece of work, and yields what belongs into the answer.
Work = Callable[[Served], Iterator[Any]]


@dataclass(frozen=True)
class Drawn:
    """A token that was drawn.

    Attributes:
        index: Index of the sequence in its request.
        position: Number of tokens of the sequence before it.
        token: The token.
        logprob: Its log-probability under the model, in nats.
        seconds: When it was drawn, by the clock `time.monotonic`.
        stop_reason: Why the sequence ends with it; empty if it does not.
        logits_V: The logits that it was drawn from, if they are kept.
    """

    index: int
    position: int
    token: int
    logprob: float
    seconds: float
    stop_reason: str
    logits_V: Tensor | None


class Job:
    """A request that the engine has accepted; its results are read by `async for`.

    Args:
        deadline: When it is ended if it is not done, by the clock `time.monotonic`.

    Attributes:
        is_abandoned: Whether nobody waits for the results any more.
        loop: The event loop of those who wait.
        results: What they have not yet read.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.is_abandoned = False
        self.loop = asyncio.get_running_loop()
        self.results: asyncio.Queue[Any] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for results in self.batches():
            for result in results:
                yield result

    async def batches(self) -> AsyncIterator[list[Any]]:
        """The results in lists, each of all that have come since the last."""
        end = None
        while end is None:
            found = [await self.results.get()]
            while not self.results.empty():
                found.append(self.results.get_nowait())
            if isinstance(found[-1], _End):
                end = found.pop()
            if found:
                yield found
        if end.refusal is not None:
            raise end.refusal


class Outbox:
    """Results on their way from the thread of the engine to those who wait for them.

    To wake up an event loop costs more than to handle a token, so it is done once for many.
    """

    def __init__(self) -> None:
        self._results: list[tuple[Job, Any]] = []

    def put(self, job: Job, result: Any) -> None:
        """Add a result of a job."""
        self._results.append((job, result))

    def send(self) -> None:
        """Hand over what was added."""
        results, self._results = self._results, []
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Job, Any]]] = {}
        for job, result in results:
            by_loop.setdefault(job.loop, []).append((job, result))
        for loop, several in by_loop.items():
            with suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(_deliver, several)


def _deliver(results: list[tuple[Job, Any]]) -> None:
    for job, result in results:
        job.results.put_nowait(result)


@dataclass(frozen=True)
class _End:
    """The last result of a job."""

    refusal: Refusal | None


class Task(Job):
    """A request for anything but generation; its results are those that the work yields."""

    def __init__(self, work: Work, deadline: float) -> None:
        super().__init__(deadline)
        self.work = work
        self.steps: Iterator[Any] | None = None


class Generation(Job):
    """A request for sequences; its results are pairs of an index and a `Sample`, as these end.

    Args:
        requests: What to generate.
        sampler: The distribution that tokens are drawn from.
        deadline: As for a `Job`.
        keep_logits: Keep the logits of every token.
        each_token: Whether there is also a result `Drawn` for every token.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        sampler: Sampler,
        deadline: float,
        *,
        keep_logits: bool = False,
        each_token: bool = False,
    ) -> None:
        super().__init__(deadline)
        self.waiting = deque(enumerate(requests))
        self.sampler = sampler
        self.keep_logits, self.each_token = keep_logits, each_token
        self.num_unfinished = len(requests)


@dataclass
class Counts:
    """What the engine has done since it started."""

    tokens: int = 0
    pieces: int = 0
    ended: dict[str, int] = field(default_factory=lambda: {"done": 0, "abandoned": 0, "refused": 0})


class Engine:
    """Runs the model of `options` for the jobs that are submitted.

    Args:
        options: Options of the command.
        on_failure: Called if there is a failure.
        on_ready: Called when jobs are accepted.

    Attributes:
        counts: What it has done.
        failure: Why the model could not be opened, or is run no more.
    """

    def __init__(
        self,
        options: ServeOptions,
        on_failure: Callable[[], object] = lambda: None,
        on_ready: Callable[[], object] = lambda: None,
    ) -> None:
        self.counts = Counts()
        self.failure: Exception | None = None
        self._options = options
        self._on_failure, self._on_ready = on_failure, on_ready
        self._served: Served | None = None
        self._rows: Rows
        self._changed = threading.Condition()
        self._jobs: list[Job] = []  # all that were accepted and are not over, the oldest first
        self._turns: deque[Task] = deque()  # whose turn it is
        self._to_grow: deque[Generation] = deque()
        self._growing: dict[int, tuple[Generation, int]] = {}  # by the index of the sample
        self._num_samples = 0
        self._closes_at: float | None = None
        self._outbox = Outbox()
        self._work_resumes_at = -math.inf  # by the clock `time.monotonic`
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start to load the model."""
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether jobs are accepted."""
        return self._served is not None and self._closes_at is None

    @property
    def is_loading(self) -> bool:
        """Whether jobs will be accepted once the model is loaded."""
        return self._served is None and self._closes_at is None and self.failure is None

    def require_served(self) -> Served:
        """The model and what belongs to it, if requests can be answered now.

        Raises:
            Refusal: The model is still being loaded, or the server is shutting down.
        """
        if self._closes_at is not None:
            raise Refusal(503, "the server is shutting down")
        if self._served is None:
            raise Refusal(503, "the model is being loaded; try again in a moment")
        return self._served

    @property
    def num_jobs(self) -> int:
        """Number of requests that were accepted and are not over."""
        return len(self._jobs)

    @property
    def num_growing(self) -> int:
        """Number of rows with a sequence that grows."""
        return len(self._growing)

    def deadline(self) -> float:
        """When a request that comes now must be over."""
        return time.monotonic() + self._options.timeout

    def submit(self, job: Job) -> None:
        """Accept a job.

        Raises:
            Refusal: There are too many, or none is accepted.
        """
        with self._changed:
            self.require_served()
            if len(self._jobs) >= self._options.batch_size + self._options.queue:
                raise Refusal(429, f"{len(self._jobs)} requests are being served; try again later")
            self._jobs.append(job)
            if isinstance(job, Task):
                self._turns.append(job)
            elif isinstance(job, Generation):
                self._to_grow.append(job)
            self._changed.notify()

    def close(self, grace: float) -> None:
        """Accept no more jobs, and refuse those that are not over after `grace` seconds."""
        with self._changed:
            if self._closes_at is None:
                self._closes_at = time.monotonic() + grace
            self._changed.notify()

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended."""
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            served = self._open()
        except Exception as error:
            self.failure = error
            self._on_failure()
            return
        self._served = served
        self._on_ready()
        try:
            self._serve(served)
        except Exception as error:  # a defect of ours: no request may wait for ever
            self.failure = error
            self.close(0)
            for job in self._jobs:
                self._outbox.put(job, _End(refusal_of(error)))
            self._outbox.send()
            self._on_failure()
        if served.genome is not None:
            served.genome.close()

    def _serve(self, served: Served) -> None:
        """Work until the engine is closed and no job is left."""
        while True:
            with self._changed:
                while not self._jobs and self._closes_at is None:
                    self._changed.wait()
                if not self._jobs:
                    return
            self._end_some()
            self._join_some()
            self._grow()
            self._outbox.send()
            self._work(served)
            self._outbox.send()

    def _open(self) -> Served:
        options = self._options
        genome = None if options.reference is None else Reference.open(options.reference)
        genes = None
        if genome is not None and options.gff is not None:
            genes = read_genes(options.gff)
            if not any(genes.overlapping(name, 0, genome.length(name)) for name in genome.names):
                raise UserError(
                    f"--gff {options.gff}: has no gene on a contig of {options.reference}; give "
                    "the genes of the same genome"
                )
        model = open_model(options).requires_grad_(False)
        background = noise = None
        if genome is not None:
            scorer = VariantScorer(model, genome, AlleleOptions(), brief=True)
            if options.background is not None:
                background = open_background(options.background, scorer)
            if (count := options.precision_check) is not None:
                noises = measure_noise(options, scorer, count, random_snvs(genome, count))
                noise = noises[-1] if noises else None  # against the highest precision
        max_bases = options.max_bases or min(DEFAULT_MAX_BASES, model.config.context)
        probe_L = torch.full((min(PREFILL_CHUNK, max_bases - 1),), ord("A"))
        with memory_explained(f"sequences of --max-bases {max_bases}", "lower it"):
            self._rows = Rows.within_memory(model, options.batch_size, max_bases, prompt_L=probe_L)
        return Served(model, genome, max_bases, genes, background, noise)

    def _end_some(self) -> None:
        """End jobs that nobody waits for, or that take too long."""
        now = time.monotonic()
        for job in list(self._jobs):
            if job.is_abandoned:
                self._end(job)
            elif now > job.deadline:
                what = f"not done within {self._options.timeout:g} s; ask for less at a time"
                self._end(job, Refusal(504, what))
            elif self._closes_at is not None and now > self._closes_at:
                self._end(job, Refusal(503, "the server is shutting down"))

    def _end(self, job: Job, error: BaseException | None = None) -> None:
        refusal = None if error is None else refusal_of(error)
        for index in [index for index, (owner, _) in self._growing.items() if owner is job]:
            del self._growing[index]
        for sample in self._rows.samples:
            if sample.index not in self._growing:
                self._rows.remove(sample)
        how = "refused" if refusal else "abandoned" if job.is_abandoned else "done"
        self.counts.ended[how] += 1
        with self._changed:
            self._jobs.remove(job)  # last: whoever sees no request also sees no row of it
            if isinstance(job, Task) and job in self._turns:
                self._turns.remove(job)
            elif isinstance(job, Generation) and job in self._to_grow:
                self._to_grow.remove(job)
        self._outbox.put(job, _End(refusal))

    def _join_some(self) -> None:
        """Let the next sequences grow, while rows are free and time is left."""
        until = time.monotonic() + JOINING_SECONDS
        while self._to_grow and self._rows.has_free_row and time.monotonic() < until:
            self._join_one()
            self._outbox.send()

    def _join_one(self) -> None:
        """Let the next sequence grow; generations take turns."""
        job = self._to_grow.popleft()
        position, request = job.waiting.popleft()
        if job.waiting:
            self._to_grow.append(job)
        index = self._num_samples
        self._num_samples += 1
        self._growing[index] = job, position
        try:
            sample = self._rows.add(request, job.sampler, index, keep_logits=job.keep_logits)
        except Exception as error:
            del self._growing[index]
            self._end(job, error)
        else:
            self._tell(sample)

    def _grow(self) -> None:
        """Draw a token for every sequence that grows."""
        if not self._growing:
            return
        try:
            samples = self._rows.step()
        except Exception as error:
            for job in {job for job, _ in self._growing.values()}:
                self._end(job, error)
            return
        for sample in samples:
            self._tell(sample)

    def _tell(self, sample: Sample) -> None:
        """Hand over what is new of a sample, unless its job has just ended."""
        if sample.index not in self._growing:
            return
        job, index = self._growing[sample.index]
        if sample.has_ended:
            del self._growing[sample.index]
        if sample.problem:
            self._end(job, NonFiniteError(f"sequence {index}: {sample.problem}"))
            return
        self.counts.tokens += 1
        if job.each_token:
            self._outbox.put(
                job,
                Drawn(
                    index,
                    len(sample.ids) - 1,
                    sample.ids[-1],
                    sample.logprobs[-1],
                    time.monotonic(),
                    sample.stop_reason,
                    sample.logits[-1] if job.keep_logits else None,
                ),
            )
        if sample.has_ended:
            self._outbox.put(job, (index, sample))
            job.num_unfinished -= 1
            if job.num_unfinished == 0:
                self._end(job)

    def _work(self, served: Served) -> None:
        """Do one piece of the work whose turn it is; then sequences grow for as long as it took."""
        began = time.monotonic()
        if not self._turns or (self._growing and began < self._work_resumes_at):
            return
        job = self._turns[0]
        self._turns.rotate(-1)
        try:
            if job.steps is None:
                job.steps = job.work(served)
            self._outbox.put(job, next(job.steps))
        except StopIteration:
            self._end(job)
        except Exception as error:
            self._end(job, error)
        self.counts.pieces += 1
        now = time.monotonic()
        self._work_resumes_at = now + (now - began)
