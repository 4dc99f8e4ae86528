"""The command under load: every answer is that of the other commands, and nothing is left over."""

import itertools
import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from evo2cli.score import score_sequences, score_variants
from evo2cli.track.options import Value
from evo2cli.track.run import Section, section_values
from stripedhyena2 import load
from stripedhyena2.layers import default_layer
from tests.evo2cli.serve.conftest import GENOME, is_ready, wait_until
from tests.ranks import free_port

NUM_CLIENTS, NUM_DISTURBERS = 6, 3
SECONDS = 10  # of load after the restart, twice
SPARE = 64 * 2**20  # bytes by which the memory may differ; of bodies that leaked it would be more


@dataclass(frozen=True)
class Job:
    """A request, and what the other commands say.

    Attributes:
        path: Its path.
        body: Its JSON.
        read: What is compared, from the JSON of the answer.
        expected: What it must be.
    """

    path: str
    body: dict[str, Any]
    read: Callable[[Any], Any]
    expected: Any


def jobs(genome: Path) -> list[Job]:
    """Requests of all kinds, with the answers of the functions that the commands call."""
    draw = random.Random(1)  # noqa: S311 - not for cryptography
    model = load("nano").eval()
    layer = default_layer(model.config)
    found = []

    def dna() -> str:
        start = draw.randrange(100)
        return GENOME[start : start + draw.randrange(2, 60)].decode()

    def tool(name: str, arguments: dict[str, Any], field: str, expected: Any) -> Job:
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
        body = {**call, "params": {"name": name, "arguments": arguments}}
        return Job("/mcp", body, lambda a: a["result"]["structuredContent"][field], expected)

    for seed in range(3):
        text, num_tokens = dna(), draw.randrange(1, 60)
        [sample] = model.generate(text, num_tokens=num_tokens, temperature=0.7, top_k=3, seed=seed)
        asked = {"temperature": 0.7, "top_k": 3}
        body = {"sequence": text, "num_tokens": num_tokens, "random_seed": seed, **asked}
        found.append(
            Job("/biology/arc/evo2/generate", body, lambda a: a["sequence"], sample.sequence)
        )
        body = {"prompt": text, "n_tokens": num_tokens, "seed": seed, **asked}
        found.append(tool("generate_sequence", body, "generated_sequence", sample.sequence))
        several = [
            each.sequence for each in model.generate(text, num_tokens=8, num_samples=2, seed=seed)
        ]
        body = {"model": "nano", "prompt": text, "max_tokens": 8, "n": 2, "seed": seed}
        found.append(
            Job("/v1/completions", body, lambda a: [c["text"] for c in a["choices"]], several)
        )
        texts = [dna(), dna()]
        rows = list(
            score_sequences(
                [(f"sequence {i}", t) for i, t in enumerate(texts)], model, strand="both"
            )
        )
        body = {"sequences": texts, "strand": "both"}
        found.append(Job("/v1/score", body, lambda a: a["scores"], rows))
        [row] = score_sequences([("x", text)], model)
        found.append(tool("score_sequence", {"sequence": text}, "scores", [row["mean_logprob"]]))
        names = [f"chr1-{position}-G-C" for position in draw.sample([7, 11, 26, 27, 40], 2)]
        rows = list(score_variants(names, genome, model, window=32))
        body = {"variants": names, "window": 32}
        found.append(Job("/v1/variants", body, lambda a: a["variants"], rows))
        vector = model.embed([text], layers=[layer])[layer][0].tolist()
        body = {"model": "nano", "input": text}
        found.append(Job("/v1/embeddings", body, lambda a: a["data"][0]["embedding"], vector))
        section = Section("sequence", 0, b"", text.encode())
        values = [v for _, part in section_values(model, Value.LOGPROB, section) for v in part]
        rounded = [round(value, 6) + 0.0 for value in values]
        found.append(Job("/v1/track", {"sequence": text}, lambda a: a["values"], rounded))
    return found


def is_answered(client: httpx.Client, job: Job) -> bool:
    """Whether a job is answered, and rightly; not if the server is full, ends, or is away."""
    headers = {"Accept": "application/json, text/event-stream"}
    try:
        answer = client.post(job.path, json=job.body, headers=headers)
    except httpx.TransportError:
        return False
    if answer.status_code in (429, 503):
        assert answer.headers["retry-after"]
        return False
    assert answer.status_code == 200, answer.text
    text = answer.text
    if answer.headers["content-type"].startswith("text/event-stream"):
        text = text.partition("data: ")[2]
    found = json.loads(text)
    if job.path == "/mcp" and found["result"]["isError"]:
        [content] = found["result"]["content"]
        assert re.search("shutting down|are being served", content["text"]), content
        return False
    assert job.read(found) == job.expected, job
    return True


class Load:
    """Clients that ask at the same time as others that hang up, send garbage or too much."""

    def __init__(self, url: str, work: list[Job]) -> None:
        self.answered: Counter[int] = Counter()
        self.problems: list[BaseException] = []
        self.url, self._work = url, work
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """The load lasts as long as the block."""
        threads = [
            threading.Thread(target=self._guarded, args=[kind, number])
            for kind, count in ((self._ask, NUM_CLIENTS), (self._disturb, NUM_DISTURBERS))
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

    def wait(self, seconds: float = 0) -> None:
        """Until some time has gone by and every job has been answered."""
        self.answered.clear()
        earliest = time.monotonic() + seconds
        wait_until(
            lambda: (
                bool(self.problems)
                or (time.monotonic() > earliest and len(self.answered) == len(self._work))
            ),
            seconds=600,
        )
        assert self.problems == []

    def _guarded(self, work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            self.problems.append(error)

    def _ask(self, number: int) -> None:
        order = list(range(len(self._work)))
        random.Random(number).shuffle(order)  # noqa: S311 - not for cryptography
        with httpx.Client(base_url=self.url, timeout=300) as client:
            for index in itertools.cycle(order):
                if self._stop.is_set():
                    return
                if is_answered(client, self._work[index]):
                    self.answered[index] += 1
                else:
                    time.sleep(0.1)

    def _disturb(self, number: int) -> None:
        draw = random.Random(number)  # noqa: S311 - not for cryptography
        long = {"sequence": "ACGT", "num_tokens": 500}
        call = {"name": "generate_sequence", "arguments": {"prompt": "A", "n_tokens": 500}}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        accept = {"Accept": "application/json, text/event-stream"}
        with httpx.Client(base_url=self.url, timeout=0.2) as client:
            kinds: list[Callable[[], httpx.Response]] = [
                lambda: client.post("/biology/arc/evo2/generate", json=long),
                lambda: client.post("/mcp", json=message, headers=accept),
                lambda: client.post("/v1/score", content=draw.randbytes(1000)),
                lambda: client.post("/mcp", content=draw.randbytes(1000), headers=accept),
                lambda: client.post("/v1/score", json={"sequences": ["A" * (2**22 - 100)]}),
                lambda: client.post("/v1/score", json={"sequences": ["A" * 2**22]}),
            ]
            while not self._stop.is_set():
                try:
                    answer = draw.choice(kinds)()
                    assert answer.status_code in (200, 400, 413, 422, 429, 503), answer.text
                    assert "Traceback" not in answer.text
                except httpx.TransportError:
                    pass
                time.sleep(0.1)


@contextmanager
def command(port: int, genome: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command, once it is ready."""
    words = ["--port", str(port), "--max-bases", "600", "--batch-size", "4", "--queue", "8"]
    with (
        log.open("ab") as file,
        subprocess.Popen(
            [sys.executable, "-m", "evo2cli", "serve", *words, "-R", str(genome)], stderr=file
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        try:
            wait_until(lambda: is_ready(client))
            yield process
        finally:
            process.kill()


def resident(process: subprocess.Popen[bytes]) -> int:
    """Bytes of memory that a process holds."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_under_load_no_answer_is_wrong_and_nothing_leaks(genome: Path, tmp_path: Path) -> None:
    work = jobs(genome)
    log = tmp_path / "log"
    port = free_port()
    loaded = Load(f"http://127.0.0.1:{port}", work)
    with loaded.running():
        with command(port, genome, log) as process:
            loaded.wait()
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
        with command(port, genome, log) as process:
            loaded.wait(SECONDS)
            before = resident(process)
            loaded.wait(SECONDS)
            loaded.stop()
            with httpx.Client(base_url=loaded.url) as client:
                wait_until(lambda: "\nevo2_jobs 0\n" in client.get("/metrics").text)
                counts = client.get("/metrics").text
            assert "\nevo2_rows_growing 0\n" in counts
            # Some of those who hung up had been accepted.
            abandoned = re.search(r'jobs_total{how="abandoned"} (\d+)', counts)
            assert abandoned is not None
            assert float(abandoned[1]) > 0
            assert resident(process) < before + SPARE
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
    assert "Traceback" not in log.read_text()
