"""Load on a server that runs: clients who check every answer, and others who misbehave."""

import itertools
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.ranks import wait_until

ACCEPT = {"Accept": "application/json, text/event-stream"}
BUSY = (429, 503)  # full; loading, or shutting down
REFUSED = (400, 413, 422)

Disturbance = Callable[[httpx.Client], httpx.Response | None]  # None: the client has hung up


@dataclass(frozen=True)
class Job:
    """A request, and what its answer must be.

    Attributes:
        path: Its path.
        body: Its JSON.
        read: What is compared, from the JSON of the answer, or from a list of that of its events.
        expected: What it must be.
    """

    path: str
    body: dict[str, Any]
    read: Callable[[Any], Any]
    expected: Any


class BusyError(Exception):
    """A server that is full, ends, or is away, or a deadline."""


class WrongAnswerError(AssertionError):
    """An answer is not what it must be."""


def ask(client: httpx.Client, path: str, body: Mapping[str, Any], *, may_be_late: bool) -> Any:
    """The JSON of an answer, or the list of that of its events.

    Args:
        client: Asks.
        path: The path.
        body: Its JSON.
        may_be_late: Whether an answer of 504 is no mistake either.

    Raises:
        BusyError: There is none, and that is no mistake.
        WrongAnswerError: There is none for another reason.
    """
    allowed = (*BUSY, 504) if may_be_late else BUSY
    try:
        answer = client.post(path, json=body, headers=ACCEPT)
    except httpx.TimeoutException as error:
        raise WrongAnswerError(f"{path}: no answer within the client's time") from error
    except httpx.TransportError:
        raise BusyError("away") from None
    if answer.status_code in allowed:
        if answer.status_code in BUSY and not answer.headers.get("retry-after"):
            raise WrongAnswerError(f"{path}: {answer.status_code} without Retry-After")
        raise BusyError(str(answer.status_code))
    if answer.status_code != 200:
        raise WrongAnswerError(f"{path}: {answer.status_code} {answer.text}")
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return answer.json()
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line[:4] == "data"]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    if path == "/mcp":
        result = events[0]["result"]
        if result["isError"]:
            text = result["content"][0]["text"]
            if re.search("shutting down|are being served", text):
                raise BusyError("mcp")
            raise WrongAnswerError(text)
        return events[0]
    if "error" in events[-1]:
        status = events[-1]["error"]["code"]
        if status in allowed:
            raise BusyError(str(status))
        raise WrongAnswerError(f"{path}: {events[-1]}")
    return events


def disturbances(long_tokens: int, draw: random.Random) -> dict[str, Disturbance]:
    """What clients do who misbehave, by name.

    Args:
        long_tokens: Number of tokens that take longer than a client waits who hangs up.
        draw: Draws garbage.
    """
    generate = {"sequence": "ACGT", "num_tokens": long_tokens}
    stream = {"model": "evo2", "prompt": "A", "max_tokens": long_tokens, "stream": True}
    call = {"name": "generate_sequence", "arguments": {"prompt": "A", "n_tokens": long_tokens}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}

    def hang_up(path: str, body: dict[str, Any]) -> Disturbance:
        return lambda client: client.post(path, json=body, headers=ACCEPT, timeout=0.2)

    def garbage(path: str) -> Disturbance:
        return lambda client: client.post(path, content=draw.randbytes(1000), headers=ACCEPT)

    def leave_stream(client: httpx.Client) -> httpx.Response | None:
        with client.stream("POST", "/v1/completions", json=stream) as answer:
            if answer.status_code != 200:
                answer.read()
                return answer
            for _ in zip(range(5), answer.iter_lines(), strict=False):
                pass
        return None

    def large(num_bases: int) -> Disturbance:
        return lambda client: client.post("/v1/score", json={"sequences": ["A" * num_bases]})

    return {
        "hang-up": hang_up("/biology/arc/evo2/generate", generate),
        "hang-up, agent": hang_up("/mcp", message),
        "hang-up, stream": leave_stream,
        "garbage": garbage("/v1/score"),
        "garbage, agent": garbage("/mcp"),
        "4 MiB": large(2**22 - 100),
        "more than 4 MiB": large(2**22),
    }


class Load:
    """Clients that ask at the same time as others that misbehave.

    Args:
        url: Of the server.
        jobs: What is asked, over and over, in an order of each client's own.
        num_clients: Number of clients that ask.
        num_disturbers: Number of clients that misbehave.
        long_tokens: As for `disturbances`.
        late: A request that takes longer than the server allows, if there is one.

    Attributes:
        answered: How often each job was answered rightly, by its index.
        busy: How often it was not, without a mistake, by the reason.
        disturbed: What the others were told, by the name and the status.
        problems: What went wrong.
    """

    def __init__(
        self,
        url: str,
        jobs: Sequence[Job],
        *,
        num_clients: int,
        num_disturbers: int,
        long_tokens: int,
        late: tuple[str, dict[str, Any]] | None = None,
    ) -> None:
        self.answered: Counter[int] = Counter()
        self.busy: Counter[str] = Counter()
        self.disturbed: Counter[tuple[str, str]] = Counter()
        self.problems: list[BaseException] = []
        self._url, self._jobs, self._late, self._long_tokens = url, jobs, late, long_tokens
        self._num_clients, self._num_disturbers = num_clients, num_disturbers
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """The load lasts as long as the block."""
        self._stop.clear()
        kinds = [(self._ask, self._num_clients), (self._disturb, self._num_disturbers)]
        if self._late is not None:
            kinds.append((self._be_late, 1))
        threads = [
            threading.Thread(target=self._guarded, args=[kind, number])
            for kind, count in kinds
            for number in range(count)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop()
            for thread in threads:
                thread.join()

    def stop(self) -> None:
        """No more requests are sent."""
        self._stop.set()

    @property
    def large_bodies(self) -> int:
        """How many bodies of 4 MiB the server has read or refused."""
        counts = self.disturbed.copy().items()
        return sum(n for (name, told), n in counts if "4 MiB" in name and told != "away")

    def wait(self, *, seconds: float = 0, large_bodies: int = 0) -> None:
        """Until that time has gone by, so many of them were sent, and every job was answered again.

        Raises:
            WrongAnswerError: A job is not answered for ten minutes more.
            BaseException: What went wrong first.
        """
        before = self.answered.copy()
        earliest = time.monotonic() + seconds
        enough = self.large_bodies + large_bodies

        def unanswered() -> list[str]:
            return [
                job.path
                for index, job in enumerate(self._jobs)
                if self.answered[index] == before[index]
            ]

        def is_over() -> bool:
            late = time.monotonic() >= earliest and self.large_bodies >= enough
            return bool(self.problems) or (late and not unanswered())

        try:
            wait_until(is_over, seconds=seconds + 600)
        except AssertionError:
            raise WrongAnswerError(f"no answer: {unanswered()}; {dict(self.busy)}") from None
        if self.problems:
            raise self.problems[0]

    def _guarded(self, work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            self.problems.append(error)

    def _ask(self, number: int) -> None:
        order = list(range(len(self._jobs)))
        random.Random(number).shuffle(order)  # noqa: S311 - not for cryptography
        with httpx.Client(base_url=self._url, timeout=300) as client:
            for index in itertools.cycle(order):
                if self._stop.is_set():
                    return
                job = self._jobs[index]
                try:
                    found = ask(client, job.path, job.body, may_be_late=self._late is not None)
                except BusyError as error:
                    self.busy[str(error)] += 1
                    time.sleep(0.1)
                    continue
                if job.read(found) != job.expected:
                    raise WrongAnswerError(f"{job}: {job.read(found)}")
                self.answered[index] += 1

    def _disturb(self, number: int) -> None:
        draw = random.Random(number)  # noqa: S311 - not for cryptography
        kinds = list(disturbances(self._long_tokens, draw).items())
        with httpx.Client(base_url=self._url, timeout=300) as client:
            while not self._stop.is_set():
                name, disturb = draw.choice(kinds)
                self._note(name, disturb, client, (200, *REFUSED, *BUSY))
                time.sleep(0.1)

    def _be_late(self, _number: int) -> None:
        if self._late is None:
            return
        path, body = self._late
        with httpx.Client(base_url=self._url, timeout=3600) as client:
            while not self._stop.is_set():
                self._note("deadline", lambda c: c.post(path, json=body), client, (504, *BUSY))
                time.sleep(0.1)

    def _note(
        self, name: str, disturb: Disturbance, client: httpx.Client, allowed: Sequence[int]
    ) -> None:
        try:
            answer = disturb(client)
        except httpx.ConnectError:
            self.disturbed[name, "away"] += 1
            return
        except httpx.TransportError:
            answer = None
        if answer is None:
            self.disturbed[name, "hung up"] += 1
            return
        self.disturbed[name, str(answer.status_code)] += 1
        if answer.status_code not in allowed or "Traceback" in answer.text:
            raise WrongAnswerError(f"{name}: {answer.status_code} {answer.text}")


def metric(text: str, name: str) -> float:
    """A number of /metrics."""
    found = re.search(rf"^evo2_{re.escape(name)} (\S+)$", text, re.MULTILINE)
    if found is None:
        raise WrongAnswerError(f"/metrics has no evo2_{name}")
    return float(found[1])


def wait_until_idle(url: str) -> str:
    """Wait until no request is worked on; returns the metrics."""
    with httpx.Client(base_url=url, timeout=600) as client:
        wait_until(lambda: metric(client.get("/metrics").text, "jobs") == 0, seconds=120)
        return client.get("/metrics").text


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024
