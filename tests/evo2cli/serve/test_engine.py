"""One engine for many requests: none depends on the others, and a failure ends only its own."""

import asyncio
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from evo2cli.generate.options import GenerateOptions
from evo2cli.generate.run import generate
from evo2cli.serve import engine as engines
from evo2cli.serve import native
from evo2cli.serve.app import make_app
from evo2cli.serve.options import ServeOptions
from stripedhyena2 import scoring
from tests.evo2cli.serve.conftest import GENOME, Serving, serving
from tests.ranks import wait_until

LONG = {"sequence": "ACGT", "num_tokens": 200, "random_seed": 0}
GENERATE = "/biology/arc/evo2/generate"


def requests(count: int, longest: int = 40) -> list[tuple[str, dict[str, Any]]]:
    """Requests of all kinds."""
    draw = random.Random(count)  # noqa: S311 - not for cryptography

    def dna() -> str:
        start = draw.randrange(100)
        return GENOME[start : start + draw.randrange(2, longest)].decode()

    kinds: list[Callable[[int], tuple[str, dict[str, Any]]]] = [
        lambda i: (
            GENERATE,
            {
                "sequence": dna(),
                "num_tokens": draw.randrange(1, longest),
                "random_seed": i,
                "temperature": draw.choice([0.5, 1.0, 1.3]),
                "top_k": draw.choice([0, 1, 3]),
                "top_p": draw.choice([0.0, 0.9]),
                "enable_logits": True,
            },
        ),
        lambda i: (
            "/v1/completions",
            {
                "model": "nano",
                "prompt": [dna(), dna()],
                "n": 2,
                "seed": i,
                "logprobs": 1,
                "max_tokens": draw.randrange(longest),
                "echo": True,
            },
        ),
        lambda _: ("/v1/score", {"sequences": [dna(), dna()], "strand": "both"}),
        lambda _: ("/v1/variants", {"variants": ["chr1-40-G-C", "chr1-90-A-T"], "window": 32}),
        lambda _: ("/v1/embeddings", {"model": "nano", "input": dna()}),
        lambda _: ("/v1/track", {"sequence": dna()}),
        lambda _: (
            "/biology/arc/evo2/forward",
            {"sequence": dna(), "output_layers": ["blocks.1", "output_layer"]},
        ),
    ]
    return [kinds[i % len(kinds)](i) for i in range(count)]


def asked(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a response, without the fields that always differ."""
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return {key: found[key] for key in found if key not in ("id", "created", "elapsed_ms")}


def test_concurrent_requests_have_the_responses_of_sequential_ones(server: Serving) -> None:
    """Every response has the same bits, whatever other requests run."""
    jobs = requests(21)
    alone = [asked(server.client, *job) for job in jobs]
    with ThreadPoolExecutor(14) as pool:
        together = list(pool.map(lambda job: asked(server.client, *job), jobs))
    assert together == alone


def test_sequences_in_any_batch_are_those_of_the_command(server: Serving, tmp_path: Path) -> None:
    """Bit for bit, with as many rows: each with its own sampler, beside all other work."""
    draw = random.Random(5)  # noqa: S311 - not for cryptography
    tuned: list[dict[str, Any]] = [
        {
            "tokens": draw.randrange(20, 40),
            "num_samples": 4,
            "seed": seed,
            "temperature": draw.choice([0.0, 0.6, 1.0, 1.4]),
            "top_k": draw.choice([0, 1, 2, 3, 4, 100]),
            "top_p": draw.choice([0.3, 0.8, 1.0]),
        }
        for seed in range(6)
    ]
    expected = []
    for given in tuned:
        output = tmp_path / f"{given['seed']}.jsonl"
        options = {"json": True, "device": "cpu", "output": output, "batch_size": 4}
        generate(GenerateOptions(prompt=("ACGTTGCA",), **options, **given))
        expected.append([json.loads(line) for line in output.read_text().splitlines()])

    def sequences(given: dict[str, Any]) -> Any:
        return server.post("/v1/generate", prompt="ACGTTGCA", **given)["sequences"]

    with ThreadPoolExecutor(16) as pool:
        others = [pool.submit(asked, server.client, *job) for job in requests(14)]
        found = list(pool.map(sequences, tuned))
        for other in others:
            other.result()
    assert found == expected


def test_a_short_request_joins_the_batch_of_a_long_one(server: Serving) -> None:
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(server.post, GENERATE, **LONG)
        wait_until(lambda: server.engine.num_running == 1)
        server.post(GENERATE, sequence="A", num_tokens=3)
        server.post("/v1/score", sequences=["ACGT"])
        assert not early.done()
        assert len(early.result()["sequence"]) == 200


@pytest.mark.parametrize("stream", [False, True])
def test_disconnecting_frees_the_row(server: Serving, stream: bool) -> None:
    body = {"model": "nano", "prompt": "A", "max_tokens": 590, "stream": stream, "n": 9}
    before = dict(server.engine.counts.ended)
    request = server.client.build_request("POST", "/v1/completions", json=body)
    host, port = str(request.url.host), request.url.port
    assert port is not None
    head = b"POST /v1/completions HTTP/1.1\r\n" + b"".join(
        b"%s: %s\r\n" % pair for pair in request.headers.raw
    )
    with socket.create_connection((host, port)) as connection:
        connection.sendall(head + b"\r\n" + request.content)
        wait_until(lambda: server.engine.num_running == 4)
        if stream:
            assert b"200 OK" in connection.recv(1000)
    wait_until(lambda: server.engine.num_jobs == 0)
    assert server.engine.num_running == 0
    assert server.engine.counts.ended == before | {"abandoned": before["abandoned"] + 1}


def test_disconnecting_before_a_stream_begins_frees_the_rows(server: Serving) -> None:
    body = {"model": "nano", "prompt": "A", "max_tokens": 590, "stream": True, "n": 9}
    messages = [{"type": "http.request", "body": json.dumps(body).encode()}]
    before = server.engine.counts.ended["abandoned"]

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(_message: object) -> None:
        await asyncio.sleep(1e-3)  # a slow connection

    scope = {
        "type": "http",
        "asgi": {"spec_version": "2.3"},
        "method": "POST",
        "path": "/v1/completions",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
    }
    app = make_app(ServeOptions(), server.engine, "nano")
    asyncio.run(app(scope, receive, send))
    wait_until(lambda: server.engine.num_jobs == 0)
    assert server.engine.counts.ended["abandoned"] == before + 1


def test_too_many_requests_are_refused_with_retry_after() -> None:
    with serving(batch_size=1, queue=1) as server, ThreadPoolExecutor(2) as pool:
        accepted = [pool.submit(server.post, GENERATE, **LONG) for _ in range(2)]
        wait_until(lambda: server.engine.num_jobs == 2)
        for path, body in ((GENERATE, LONG), ("/v1/score", {"sequences": ["ACGT"]})):
            answer = server.client.post(path, json=body)
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) > 0
        first, second = [each.result()["sequence"] for each in accepted]
        assert first == second
        server.post("/v1/score", sequences=["ACGT"])


def test_a_deadline_ends_a_request() -> None:
    with serving(timeout=0.5) as server:
        answer = server.client.post(
            "/v1/completions", json={"model": "nano", "prompt": "A", "max_tokens": 590, "n": 100}
        )
        assert answer.status_code == 504
        assert "not done within 0.5 s;" in answer.text
        assert server.engine.num_jobs == server.engine.num_running == 0


def test_the_error_of_nan_names_the_layer_and_the_server_goes_on(server: Serving) -> None:
    """The weights are NaN for a while."""
    calls = {
        GENERATE: {"sequence": "ACGT", "num_tokens": 3},
        "/v1/score": {"sequences": ["ACGT"]},
        "/v1/track": {"sequence": "ACGT"},
        "/v1/saturate": {"sequence": "ACGT"},
        "/v1/embeddings": {"model": "nano", "input": "ACGT"},
        "/v1/completions": {
            "model": "nano",
            "prompt": "ACGT",
            "max_tokens": 0,
            "echo": True,
            "logprobs": 1,
        },
        "/biology/arc/evo2/forward": {"sequence": "ACGT", "output_layers": ["output_layer"]},
    }
    weight = server.model.blocks[2].mlp.down.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(torch.nan)
    try:
        for path, body in calls.items():
            answer = server.client.post(path, json=body)
            assert answer.status_code == 500, path
            assert "first in layer blocks.2.mlp" in answer.json()["detail"], path
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    for path, body in calls.items():
        server.post(path, **body)
    assert server.engine.num_jobs == server.engine.num_running == 0


def test_nan_ends_a_running_sequence_and_the_server_goes_on(server: Serving) -> None:
    with ThreadPoolExecutor(1) as pool:
        growing = pool.submit(server.client.post, GENERATE, json=LONG)
        wait_until(lambda: server.engine.num_running == 1)
        weight = server.model.blocks[2].mlp.down.weight
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.fill_(torch.nan)
            answer = growing.result()
            weight.copy_(kept)
    assert answer.status_code == 500
    assert "first in layer blocks.2.mlp" in answer.json()["detail"]
    assert len(server.post(GENERATE, **LONG)["sequence"]) == 200


def test_a_lack_of_memory_gives_503(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as short:
        short.setattr(scoring, "available_bytes", lambda: 1)
        answer = server.client.post("/v1/score", json={"sequences": ["ACGT"]})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "tokens need" in answer.text

    def fails(*_: object, **__: object) -> Iterator[object]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as short:
        short.setattr(native, "section_values", fails)
        answer = server.client.post("/v1/track", json={"sequence": "ACGT"})
        assert answer.status_code == 503
        assert "out of memory (Tried to allocate 2.00 GiB)" in answer.text
    with monkeypatch.context() as short:
        short.setattr(engines.Rows, "add", fails)
        assert server.client.post(GENERATE, json=LONG).status_code == 503
    with monkeypatch.context() as short:
        short.setattr(engines.Rows, "step", fails)
        assert server.client.post(GENERATE, json=LONG).status_code == 503
    assert server.engine.num_jobs == server.engine.num_running == 0
    server.post("/v1/score", sequences=["ACGT"])
    assert len(server.post(GENERATE, **LONG)["sequence"]) == 200


def test_a_bug_gives_500_without_a_traceback(
    server: Serving, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> Iterator[object]:
        raise KeyError("our own fault")

    monkeypatch.setattr(native, "section_values", fails)
    answer = server.client.post("/v1/track", json={"sequence": "ACGT"})
    assert answer.status_code == 500
    assert "our own fault" not in answer.text
    assert "our own fault" in capsys.readouterr().err


def test_requests_are_refused_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    may_load = threading.Event()
    open_model = engines.open_model

    def slow(options: Any) -> Any:
        may_load.wait()
        return open_model(options)

    monkeypatch.setattr(engines, "open_model", slow)
    with serving(wait=False) as server:
        assert server.client.get("/v1/health/live").status_code == 200
        assert server.client.get("/v1/health/ready").status_code == 503
        early = server.client.post("/v1/score", json={"sequences": ["ACGT"]})
        assert (early.status_code, early.headers["retry-after"]) == (503, "1")
        may_load.set()
        wait_until(lambda: server.engine.is_ready)
        assert server.client.get("/v1/health/ready").status_code == 200
        server.post("/v1/score", sequences=["ACGT"])


def test_at_the_end_accepted_requests_are_finished_or_refused() -> None:
    for grace, status in ((60.0, 200), (0.0, 503)):
        with serving() as server, ThreadPoolExecutor(1) as pool:
            accepted = pool.submit(server.client.post, GENERATE, json=LONG)
            wait_until(lambda engine=server.engine: engine.num_running == 1)  # type: ignore[misc]
            server.engine.close(grace)
            late = server.client.post("/v1/score", json={"sequences": ["ACGT"]})
            assert (late.status_code, late.headers["retry-after"]) == (503, "1")
            assert server.client.get("/v1/health/ready").status_code == 503
            assert accepted.result().status_code == status


def test_after_a_bug_of_the_engine_no_request_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise KeyError("our own fault")

    with serving() as server:
        monkeypatch.setattr(engines.Engine, "_run_task", fails)
        assert server.client.post("/v1/score", json={"sequences": ["ACGT"]}).status_code == 500
        assert server.client.get("/v1/health/ready").status_code == 503
        assert isinstance(server.engine.failure, KeyError)
        server.engine.failure = None  # expected here, and checked when the server ends
