"""`evo2 serve` against the decoder's own rate, by number of clients, and under mixed load.

    python -m tests.benchmarks.serving --model evo2_7b --random --minutes 4 --results DIR

It starts the server itself. `--minutes 0` leaves out the mixed load, `--clients` without a number
the speed.
"""

import argparse
import asyncio
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from evo2cli import console
from tests.benchmarks.gpu import Report, cell
from tests.benchmarks.serving_server import Memory, Rates, random_dna
from tests.evo2cli.serve.conftest import is_ready
from tests.evo2cli.serve.load import Job, Load, ask, metric, wait_until_idle
from tests.ranks import wait_until

GENOME_BASES = 200_000
SHARE = 0.9  # of the decoder's own rate, at least
MEMORY_SHARE = 0.03  # by which memory may differ
SECONDS_TO_START = 600
VOLATILE = ("id", "created", "elapsed_ms")  # what differs in every answer

ABOUT = """\
# Speed of the server

`evo2 serve` and its clients in two processes of one machine.

Beside the decoder: {batch} clients ask at once for {tokens} tokens each after {prompt:,} bases of
their own, from the first request to the last token. Generation is the same without a server, in
the same process before it listens: prompts are read and tokens drawn as `evo2 generate` does it.
Steps are those of the decoder alone, with nothing drawn.

By number of clients: each client streams one completion of {short} tokens after the other, each
after {prompt:,} bases of its own. The first token is counted from the request, and waiting for a
row belongs to it. Gaps are between the tokens of a sequence.

Mixed load: {askers} clients ask for generations, streams, scores, variants, embeddings, tracks and
layers. Each answer is compared, bit for bit, with that of the first server when nothing else was
asked. Others hang up, send garbage, 4 MiB and more, or ask for what takes longer than `--timeout`.
In the middle the server is ended by SIGTERM under load, and started again. Memory is read when
nothing is asked.

Command: `{command}`"""


@dataclass(frozen=True)
class Server:
    """The server's process.

    Attributes:
        process: The process.
        url: Where it listens.
        folder: Of its files.
    """

    process: subprocess.Popen[bytes]
    url: str
    folder: Path

    @property
    def port(self) -> int:
        return httpx.URL(self.url).port or 80

    def memory(self) -> Memory:
        """What it holds when it next says so."""
        path = self.folder / "memory.json"
        path.unlink(missing_ok=True)
        wait_until(path.exists)
        return Memory(**json.loads(path.read_text()))

    def rates(self) -> Rates:
        """The rates of its decoder."""
        return Rates(**json.loads((self.folder / "rates.json").read_text()))


@contextmanager
def started(asked: argparse.Namespace, folder: Path, *, with_rates: bool) -> Iterator[Server]:
    """The server, once it is ready."""
    port = free_port(asked)
    options = {
        "model": asked.model,
        "port": port,
        "batch_size": asked.batch,
        "queue": max([64, *asked.clients]),
        "max_bases": asked.max_bases,
        "timeout": asked.timeout,
        "reference": str(folder / "genome.fa"),
    }
    words = ["--options", json.dumps(options), "--memory", str(folder / "memory.json")]
    words += ["--prompt", str(asked.prompt), "--tokens", str(asked.tokens)]
    words += ["--random"] if asked.random else []
    words += ["--rates", str(folder / "rates.json")] if with_rates else []
    url = f"http://127.0.0.1:{port}"
    with (
        (folder / "log").open("ab") as log,
        subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.serving_server", *words], stderr=log
        ) as process,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        try:
            wait_until(
                lambda: is_ready(client) or process.poll() is not None, seconds=SECONDS_TO_START
            )
            if process.poll() is not None:
                raise SystemExit(f"the server ended: {(folder / 'log').read_text()[-2000:]}")
            say("the server is ready")
            yield Server(process, url, folder)
        finally:
            process.kill()


def free_port(asked: argparse.Namespace) -> int:
    """The port that was asked for, or one that is free; a later server gets the same one."""
    if asked.port == 0:
        with socket.create_server(("127.0.0.1", 0)) as free:
            asked.port = free.getsockname()[1]
    port: int = asked.port
    return port


@dataclass(frozen=True)
class Completion:
    """A completion as its client saw it.

    Attributes:
        asked: When it was asked for, in seconds.
        times: When each token came; of a whole answer, when that came, once for each token.
    """

    asked: float
    times: Sequence[float]


async def complete(
    port: int, prompt: str, tokens: int, *, stream: bool, timeout: float = 3600
) -> Completion:
    """Ask for a completion, with as little work in the client as possible."""
    fields = {"model": "evo2", "prompt": prompt, "max_tokens": tokens, "stream": stream}
    body = json.dumps(fields).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        began = time.perf_counter()
        writer.write(head.encode() + body)
        times: list[float] = []
        text = b""
        async with asyncio.timeout(timeout):
            while part := await reader.read(2**16):
                now = time.perf_counter()
                seen = text[-6:] + part  # an event may begin in the part before
                times += [now] * seen.count(b"data: {")
                text = text + part if not stream else text[-100:] + part
                if not times and b" 200 " not in text[:20] and len(text) > 20:
                    raise RuntimeError(text[:500].decode())
    finally:
        writer.close()
    if not stream:
        answer = json.loads(text.partition(b"\r\n\r\n")[2])
        times = [now] * answer["usage"]["completion_tokens"]
    elif b"[DONE]" not in text:
        raise RuntimeError(text[-500:].decode())
    if len(times) != tokens:
        raise RuntimeError(f"{len(times)} tokens came, of {tokens}")
    return Completion(began, times)


def completions(
    server: Server, clients: int, rounds: int, length: int, tokens: int, *, stream: bool
) -> list[Completion]:
    """Of clients that each ask for one after the other, all at the same time."""
    draw = random.Random(clients)  # noqa: S311 - not for cryptography

    async def several(prompts: Sequence[str]) -> list[Completion]:
        return [await complete(server.port, prompt, tokens, stream=stream) for prompt in prompts]

    async def everyone() -> list[list[Completion]]:
        return await asyncio.gather(
            *(several([random_dna(draw, length) for _ in range(rounds)]) for _ in range(clients))
        )

    return [each for found in asyncio.run(everyone()) for each in found]


def rate(found: Sequence[Completion]) -> float:
    """Tokens a second, from the first request to the last token."""
    took = max(each.times[-1] for each in found) - min(each.asked for each in found)
    return sum(len(each.times) for each in found) / took


def rate_together(found: Sequence[Completion]) -> float:
    """Tokens a second while all sequences grow; NaN if they never do together."""
    first, last = max(each.times[0] for each in found), min(each.times[-1] for each in found)
    count = sum(first < when <= last for each in found for when in each.times)
    return count / (last - first) if last > first else float("nan")


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def say(what: str) -> None:
    """Tell of progress, by the clock."""
    console.say(f"{datetime.now(UTC):%H:%M:%S} {what}")


def beside_decoder(asked: argparse.Namespace, server: Server, report: Report) -> list[str]:
    """The first table; the limits that are not kept."""
    rates = server.rates()
    columns = ["", "tokens/s", "of generation", "of steps"]

    def add(name: str, value: float) -> float:
        share = value / rates.generation
        shares = [cell(share, 2), cell(value / rates.steps, 2)]
        say(f"{name}: {value:,.0f} tokens/s")
        report.add("Beside the decoder", columns, [name, cell(value, 0), *shares])
        return share

    add("steps", rates.steps)
    add("generation", rates.generation)
    shares = []
    for stream, name in ((False, "whole answers"), (True, "streams")):
        # The second time, the operating system and the allocators are warm.
        for _ in range(2):
            found = completions(server, asked.batch, 1, asked.prompt, asked.tokens, stream=stream)
        shares.append(add(f"server, {name}", rate(found)))
    add("server, streams, while all grow", rate_together(found))
    return [] if min(shares) >= SHARE else [f"the server reaches {SHARE} of generation"]


def by_clients(asked: argparse.Namespace, server: Server, report: Report) -> None:
    """The second table."""
    columns = ["clients", "first token, p50, s", "p99, s", "gap, p50, ms", "p99, ms", "tokens/s"]
    for clients in asked.clients:
        rounds = max(2, 10 // clients)
        found = completions(server, clients, rounds, asked.prompt, asked.short, stream=True)
        firsts = [each.times[0] - each.asked for each in found]
        gaps = [
            1e3 * (after - before)
            for each in found
            for before, after in zip(each.times, each.times[1:], strict=False)
        ]
        row = [f"{clients}", *(cell(quantile(firsts, share), 3) for share in (0.5, 0.99))]
        row += [*(cell(quantile(gaps, share), 1) for share in (0.5, 0.99)), cell(rate(found), 0)]
        say(f"by number of clients: {row}")
        report.add("By number of clients", columns, row)


def constant(found: Any) -> Any:
    """An answer or a list of events, without what differs each time."""
    if isinstance(found, list):
        return [constant(each) for each in found]
    return {key: value for key, value in found.items() if key not in VOLATILE}


def mixed_jobs(asked: argparse.Namespace, server: Server, genome: str) -> list[Job]:
    """Requests of all kinds, with the answers when nothing else is asked."""
    draw = random.Random(1)  # noqa: S311 - not for cryptography
    longest = asked.max_bases // 4
    bodies: list[tuple[str, dict[str, Any]]] = []

    def dna(least: int = 2) -> str:
        length = draw.randrange(least, longest)
        start = draw.randrange(len(genome) - length)
        return genome[start : start + length]

    def variant() -> str:
        position = draw.randrange(len(genome))
        ref = genome[position]
        return f"chr1-{position + 1}-{ref}-{draw.choice([b for b in 'ACGT' if b != ref])}"

    for seed in range(3):
        num = draw.randrange(20, 100)
        tuned = {"temperature": draw.choice([0.7, 1.0, 1.3]), "top_k": draw.choice([0, 3, 4])}
        generate = {"num_tokens": num, "random_seed": seed, "enable_sampled_probs": True, **tuned}
        complete = {"model": "evo2", "max_tokens": num, "seed": seed, "logprobs": 1, **tuned}
        echo = {"model": "evo2", "max_tokens": 0, "echo": True, "logprobs": 1}
        own = {"tokens": num, "seed": seed, "max_homopolymer": 4, "stream": True}
        bodies += [
            ("/biology/arc/evo2/generate", {"sequence": dna(), **generate}),
            ("/v1/completions", {"prompt": dna(), "n": 2, **complete}),
            ("/v1/completions", {"prompt": dna(), "stream": True, **complete}),
            ("/v1/completions", {"prompt": [dna(), dna()], **echo}),
            ("/v1/generate", {"prompt": dna(), **own}),
            ("/v1/score", {"sequences": [dna(), dna()], "strand": "both"}),
            ("/v1/variants", {"variants": [variant(), variant()], "window": longest}),
            ("/v1/embeddings", {"model": "evo2", "input": dna(), "pool": "last"}),
            ("/v1/track", {"sequence": dna()}),
            (
                "/biology/arc/evo2/forward",
                {"sequence": dna()[:50], "output_layers": ["blocks.1", "output_layer"]},
            ),
        ]
    found = []
    with httpx.Client(base_url=server.url, timeout=3600) as client:
        for path, body in bodies:
            answer = constant(ask(client, path, body, may_be_late=False))
            found.append(Job(path, body, constant, answer))
    return found


def mixed(asked: argparse.Namespace, server: Server, genome: str, report: Report) -> list[str]:
    """The mixed load, which ends the server; the limits that are not kept."""
    spell = 60 * asked.minutes / 4
    tokens = asked.max_bases - 4
    late = {"model": "evo2", "prompt": "ACGT", "max_tokens": tokens, "n": asked.late}
    readings: list[tuple[Memory, str]] = []

    def read(when: str, server: Server) -> None:
        metrics = wait_until_idle(server.url)
        memory = server.memory()
        readings.append((memory, metrics))
        columns = ["when idle", "GPU tensors, GiB", "GPU reserved, GiB", "host, GiB"]
        sizes = (memory.allocated, memory.reserved, memory.resident)
        row = [when, *(cell(size / 2**30, 3) for size in sizes)]
        row += [cell(metric(metrics, name), 0) for name in ("jobs", "rows_growing")]
        row += [cell(metric(metrics, "tokens_total"), 0)]
        say(f"memory: {row}")
        report.add("Memory", [*columns, "requests left", "rows left", "tokens drawn"], row)

    jobs = mixed_jobs(asked, server, genome)
    load = Load(
        server.url,
        jobs,
        num_clients=asked.askers,
        num_disturbers=asked.askers // 4,
        long_tokens=tokens,
        late=("/v1/completions", late),
    )
    began = time.monotonic()
    with load.running():
        load.wait(seconds=spell)
    read("first server, after a quarter", server)
    with load.running():
        load.wait(seconds=spell)
        server.process.send_signal(signal.SIGTERM)
        ended = server.process.wait(120)
        with started(asked, server.folder, with_rates=False) as again:
            load.wait(seconds=spell)
            load.stop()
            read("second server, after a quarter", again)
            with load.running():
                load.wait(seconds=spell)
            read("second server, after two quarters", again)
            again.process.send_signal(signal.SIGTERM)
            ended = ended or again.process.wait(120)
    columns, table = ["what", "how often"], "Mixed load"
    report.add(
        table, columns, ["minutes, with the restart", cell((time.monotonic() - began) / 60, 1)]
    )
    kinds: Counter[str] = Counter()
    for index, count in load.answered.items():
        kinds[f"right: `{jobs[index].path}`"] += count
    counts = dict(sorted(kinds.items()))
    counts |= {f"told to come again: {why}": n for why, n in sorted(load.busy.items())}
    counts |= {f"{name}: {status}": n for (name, status), n in sorted(load.disturbed.items())}
    for name, count in counts.items():
        report.add(table, columns, [name, cell(count, 0)])
    report.add(table, columns, ["wrong answers", cell(len(load.problems), 0)])
    for problem in load.problems:
        console.warn(f"{type(problem).__name__}: {str(problem)[:2000]}")
    (before, _), (after, metrics) = readings[-2:]
    # What the allocator of the GPU keeps for reuse depends on the shapes that were asked for.
    sizes = [(before.allocated, after.allocated), (before.resident, after.resident)]
    limits = {
        "every answer is right": not load.problems,
        "memory is kept": all(new <= (1 + MEMORY_SHARE) * old for old, new in sizes),
        "no request is left": metric(metrics, "jobs") == metric(metrics, "rows_growing") == 0,
        "both servers end with 0": ended == 0,
        "no traceback is logged": "Traceback" not in (server.folder / "log").read_text(),
    }
    return [name for name, is_kept in limits.items() if not is_kept]


def main() -> None:
    """Write the tables, and end with 1 if the server is too slow, wrong, or leaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--random", action="store_true", help="random weights of a published shape")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--minutes", type=float, default=4, help="of mixed load; 0 for none")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 16, 64, 256])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=1000, help="bases")
    parser.add_argument("--tokens", type=int, default=500, help="of a sequence, beside the decoder")
    parser.add_argument("--short", type=int, default=200, help="of one, by number of clients")
    parser.add_argument("--max-bases", type=int, default=8192)
    parser.add_argument("--timeout", type=float, default=40, help="of requests, in seconds")
    parser.add_argument(
        "--late", type=int, default=8, help="sequences of a request that is too long"
    )
    parser.add_argument("--askers", type=int, default=32, help="clients of the mixed load")
    parser.add_argument("--port", type=int, default=0, help="0 for any")
    asked = parser.parse_args()
    command = " ".join(["python -m tests.benchmarks.serving", *sys.argv[1:]])
    report = Report("serving.md", ABOUT.format(command=command, **vars(asked)), asked.results)
    genome = random_dna(random.Random(2), GENOME_BASES)  # noqa: S311 - not for cryptography
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "genome.fa").write_text(f">chr1\n{genome}\n")
        try:
            with started(asked, folder, with_rates=bool(asked.clients)) as server:
                if asked.clients:
                    missed += beside_decoder(asked, server, report)
                    by_clients(asked, server, report)
                if asked.minutes > 0:
                    missed += mixed(asked, server, genome, report)
        except Exception:
            say((folder / "log").read_text()[-5000:])
            raise
    console.write(f"{report}\n")
    for limit in missed:
        say(f"not so: {limit}")
    if missed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
