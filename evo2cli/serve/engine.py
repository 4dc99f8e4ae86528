"""The engine: a thread that runs one model for many requests, with continuous batching.

Between two decoding steps, sequences join and leave the batch, and a step of other work may run: a
sequence, some alleles or a chunk are scored. Every step calls the function that the command calls,
so no result depends on the other requests.

While the GPU computes a decoding step, the tokens of the previous step are passed to the thread of
the event loop, which sends them.
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
# Seconds between two decoding steps in which prefills may begin: running sequences wait at most for
# them and one prefill. With a single prefill per step, a burst of requests would fill the batch
# slowly, and requests for a few tokens would never fill it.
ADMISSION_SECONDS = 0.1
EXTRA_GRACE = 5  # seconds from the refusal of unfinished jobs to the end of the server


@dataclass(frozen=True)
class Served:
    """The model and the data that the engine has loaded.

    Attributes:
        model: The model.
        genome: The genome of `--reference`; None without one.
        max_bases: Maximum number of bases of a sequence, a window or a region.
        genes: The genes of `--gff`; None without them.
        background: Percentiles for default windows, with `--background`.
        noise: Rounding noise for default windows, with `--precision-check`.
    """

    model: StripedHyena2
    genome: Reference | None
    max_bases: int
    genes: Genes | None
    background: Background | None
    noise: Noise | None


# Creates an iterator that computes a part of the work in each step, and yields results.
Work = Callable[[Served], Iterator[Any]]


@dataclass(frozen=True)
class SampledToken:
    """A sampled token.

    Attributes:
        index: Index of the sequence in its request.
        position: Number of generated tokens before it.
        token: The token.
        logprob: Its log-probability under the model, in nats.
        seconds: Time of sampling, by `time.monotonic`.
        stop_reason: Why the sequence ends with it; empty if it does not.
        logits_V: The logits that it was sampled from, if they are kept.
    """

    index: int
    position: int
    token: int
    logprob: float
    seconds: float
    stop_reason: str
    logits_V: Tensor | None


class Job:
    """A request for the engine; its results are read by `async for`.

    Args:
        deadline: Time at which it is refused if it is not finished, by `time.monotonic`.

    Attributes:
        is_abandoned: Whether the client has disconnected, so that the results are not needed.
        loop: The event loop that reads the results.
        results: Results that have not been read yet.
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
        """Yield the results in lists: all that are available at a time."""
        end = None
        while end is None:
            batch = [await self.results.get()]
            while not self.results.empty():
                batch.append(self.results.get_nowait())
            if isinstance(batch[-1], _End):
                end = batch.pop()
            if batch:
                yield batch
        if end.refusal is not None:
            raise end.refusal


class Outbox:
    """Results on their way from the thread of the engine to event loops.

    Waking up an event loop costs more than handling a token, so results are sent in batches.
    """

    def __init__(self) -> None:
        self._results: list[tuple[Job, Any]] = []

    def put(self, job: Job, result: Any) -> None:
        """Add a result of a job."""
        self._results.append((job, result))

    def send(self) -> None:
        """Send all results that were added."""
        results, self._results = self._results, []
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Job, Any]]] = {}
        for job, result in results:
            by_loop.setdefault(job.loop, []).append((job, result))
        for loop, several in by_loop.items():
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_deliver, several)


def _deliver(results: list[tuple[Job, Any]]) -> None:
    for job, result in results:
        job.results.put_nowait(result)


@dataclass(frozen=True)
class _End:
    """The last result of a job."""

    refusal: Refusal | None


class Task(Job):
    """A request for anything but generation; the work yields its results."""

    def __init__(self, work: Work, deadline: float) -> None:
        super().__init__(deadline)
        self.work = work
        self.steps: Iterator[Any] | None = None


class Generation(Job):
    """A request for sequences; a finished sequence gives a result (index, `Sample`).

    Args:
        requests: The sequences to generate.
        sampler: The distribution that tokens are sampled from.
        deadline: As for `Job`.
        keep_logits: Keep the logits of every token.
        each_token: Also give a result `SampledToken` for every token.
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
        self.pending = deque(enumerate(requests))
        self.sampler = sampler
        self.keep_logits, self.each_token = keep_logits, each_token
        self.num_unfinished = len(requests)


@dataclass
class Counts:
    """Statistics since the engine has started.

    Attributes:
        tokens: Sampled tokens.
        pieces: Steps of work other than generation.
        ended: Finished jobs by outcome.
    """

    tokens: int = 0
    pieces: int = 0
    ended: dict[str, int] = field(default_factory=lambda: {"done": 0, "abandoned": 0, "refused": 0})


class Engine:
    """Loads the model and runs it for the jobs that are submitted.

    Args:
        options: Options of the command.
        on_failure: Called after a failure.
        on_ready: Called when the engine begins to accept jobs.

    Attributes:
        counts: Statistics.
        failure: The error that stopped the engine; None without one.
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
        self._jobs: list[Job] = []  # all unfinished ones, the oldest first
        self._tasks: deque[Task] = deque()  # round robin
        self._generations: deque[Generation] = deque()  # with pending sequences; round robin
        self._running: dict[int, tuple[Generation, int]] = {}  # by index of the sample
        self._num_samples = 0
        self._closes_at: float | None = None
        self._outbox = Outbox()
        self._next_task_at = -math.inf  # by `time.monotonic`
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread, which loads the model first."""
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
        """The model and the data, if jobs are accepted.

        Raises:
            Refusal: The model is being loaded, or the server is shutting down.
        """
        if self._closes_at is not None:
            raise Refusal(503, "the server is shutting down")
        if self._served is None:
            raise Refusal(503, "the model is being loaded; try again in a moment")
        return self._served

    @property
    def num_jobs(self) -> int:
        """Number of unfinished jobs."""
        return len(self._jobs)

    @property
    def num_running(self) -> int:
        """Number of sequences in the decoding batch."""
        return len(self._running)

    def deadline(self) -> float:
        """The deadline of a request that comes now, by `time.monotonic`."""
        return time.monotonic() + self._options.timeout

    def submit(self, job: Job) -> None:
        """Accept a job.

        Raises:
            Refusal: There are too many jobs, or none are accepted.
        """
        with self._changed:
            self.require_served()
            if len(self._jobs) >= self._options.batch_size + self._options.queue:
                raise Refusal(429, f"{len(self._jobs)} requests are being served; try again later")
            self._jobs.append(job)
            if isinstance(job, Task):
                self._tasks.append(job)
            elif isinstance(job, Generation):
                self._generations.append(job)
            self._changed.notify()

    def close(self, grace: float) -> None:
        """Accept no more jobs, and refuse those that are unfinished after `grace` seconds."""
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
        except Exception as error:  # a bug of ours: no request may wait for ever
            self.failure = error
            self.close(0)
            for job in self._jobs:
                self._outbox.put(job, _End(refusal_of(error)))
            self._outbox.send()
            self._on_failure()
        if served.genome is not None:
            served.genome.close()

    def _serve(self, served: Served) -> None:
        """Run jobs until the engine is closed and no job is left."""
        while True:
            with self._changed:
                while not self._jobs and self._closes_at is None:
                    self._changed.wait()
                if not self._jobs:
                    return
            self._end_expired()
            self._admit()
            self._decode()
            self._outbox.send()
            self._run_task(served)
            self._outbox.send()

    def _open(self) -> Served:
        """Load the model and the data, and allocate the decoding batch."""
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

    def _end_expired(self) -> None:
        """End abandoned jobs, and refuse those after their deadline."""
        now = time.monotonic()
        for job in list(self._jobs):
            if job.is_abandoned:
                self._end(job)
            elif now > job.deadline:
                message = f"not done within {self._options.timeout:g} s; ask for less at a time"
                self._end(job, Refusal(504, message))
            elif self._closes_at is not None and now > self._closes_at:
                self._end(job, Refusal(503, "the server is shutting down"))

    def _end(self, job: Job, error: BaseException | None = None) -> None:
        """Finish a job, or refuse it for an error, and free its rows."""
        refusal = None if error is None else refusal_of(error)
        for index in [index for index, (owner, _) in self._running.items() if owner is job]:
            del self._running[index]
        for sample in self._rows.samples:
            if sample.index not in self._running:
                self._rows.remove(sample)
        how = "refused" if refusal else "abandoned" if job.is_abandoned else "done"
        self.counts.ended[how] += 1
        with self._changed:
            self._jobs.remove(job)  # after its rows: `num_jobs` is 0 only when `num_running` is
            if isinstance(job, Task) and job in self._tasks:
                self._tasks.remove(job)
            elif isinstance(job, Generation) and job in self._generations:
                self._generations.remove(job)
        self._outbox.put(job, _End(refusal))

    def _admit(self) -> None:
        """Add pending sequences to the batch, while rows are free and time is left."""
        until = time.monotonic() + ADMISSION_SECONDS
        while self._generations and self._rows.has_free_row and time.monotonic() < until:
            self._admit_one()
            self._outbox.send()

    def _admit_one(self) -> None:
        """Prefill the next sequence; generations take turns."""
        job = self._generations.popleft()
        position, request = job.pending.popleft()
        if job.pending:
            self._generations.append(job)
        index = self._num_samples
        self._num_samples += 1
        self._running[index] = job, position
        try:
            sample = self._rows.add(request, job.sampler, index, keep_logits=job.keep_logits)
        except Exception as error:
            del self._running[index]
            self._end(job, error)
        else:
            self._publish(sample)

    def _decode(self) -> None:
        """Run a decoding step: a token for every sequence in the batch."""
        if not self._running:
            return
        try:
            samples = self._rows.step()
        except Exception as error:
            for job in {job for job, _ in self._running.values()}:
                self._end(job, error)
            return
        for sample in samples:
            self._publish(sample)

    def _publish(self, sample: Sample) -> None:
        """Add the results of the last token of a sample, unless its job has just ended."""
        if sample.index not in self._running:
            return
        job, index = self._running[sample.index]
        if sample.has_ended:
            del self._running[sample.index]
        if sample.problem:
            self._end(job, NonFiniteError(f"sequence {index}: {sample.problem}"))
            return
        self.counts.tokens += 1
        if job.each_token:
            self._outbox.put(
                job,
                SampledToken(
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

    def _run_task(self, served: Served) -> None:
        """Run a step of the next task; afterwards, decoding gets as much time as it took."""
        started = time.monotonic()
        if not self._tasks or (self._running and started < self._next_task_at):
            return
        job = self._tasks[0]
        self._tasks.rotate(-1)
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
        self._next_task_at = now + (now - started)
