"""Load on a running server: clients that check every response, and clients that misbehave."""

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
    """A request with the expected response.

    Attributes:
        path: Its path.
        body: Its JSON.
        read: Extracts what is compared from the JSON of the response, or of its list of events.
        expected: The expected value.
    """

    path: str
    body: dict[str, Any]
    read: Callable[[Any], Any]
    expected: Any


class BusyError(Exception):
    """The server is full, shutting down or not running, or a deadline has passed."""


class WrongAnswerError(AssertionError):
    """A response is not the expected one."""


def ask(client: httpx.Client, path: str, body: Mapping[str, Any], *, may_be_late: bool) -> Any:
    """The JSON of a response, or the list of the JSON of its events.

    Args:
        client: The client.
        path: The path.
        body: The JSON of the request.
        may_be_late: Whether the status 504 is acceptable.

    Raises:
        BusyError: There is none for an acceptable reason.
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
    """Misbehaviour of clients, by name.

    Args:
        long_tokens: Number of tokens that take longer than a disconnecting client waits.
        draw: Source of random bytes.
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
    """Clients that check responses, at the same time as clients that misbehave.

    Args:
        url: URL of the server.
        jobs: Requests, which each client repeats in its own order.
        num_clients: Number of clients that check responses.
        num_disturbers: Number of clients that misbehave.
        long_tokens: As for `disturbances`.
        late: A request that takes longer than the server allows; None for none.

    Attributes:
        answered: Number of right responses by the index of the job.
        busy: Number of acceptable failures by reason.
        disturbed: Responses to misbehaving clients, by name and status.
        problems: Errors.
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
        """Run the clients for the duration of the block."""
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
        """Send no more requests."""
        self._stop.set()

    @property
    def large_bodies(self) -> int:
        """Number of bodies of 4 MiB that the server has read or refused."""
        counts = self.disturbed.copy().items()
        return sum(n for (name, told), n in counts if "4 MiB" in name and told != "away")

    def wait(self, *, seconds: float = 0, large_bodies: int = 0) -> None:
        """Wait for some time, for some large bodies, and for a response to every job.

        Raises:
            WrongAnswerError: A job has no response within ten more minutes.
            BaseException: The first error of a client.
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
    """The value of a metric of /metrics."""
    found = re.search(rf"^evo2_{re.escape(name)} (\S+)$", text, re.MULTILINE)
    if found is None:
        raise WrongAnswerError(f"/metrics has no evo2_{name}")
    return float(found[1])


def wait_until_idle(url: str) -> str:
    """Wait until no request is in progress; return the metrics."""
    with httpx.Client(base_url=url, timeout=600) as client:
        wait_until(lambda: metric(client.get("/metrics").text, "jobs") == 0, seconds=120)
        return client.get("/metrics").text


def resident(pid: int) -> int:
    """Resident memory of a process in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024
