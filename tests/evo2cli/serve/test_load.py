"""The command under load: responses are those of the other commands, and nothing leaks."""

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from evo2cli.score import score_sequences, score_variants
from evo2cli.track.options import Value
from evo2cli.track.run import Section, section_values
from stripedhyena2 import load
from stripedhyena2.layers import default_layer
from tests.evo2cli.serve.conftest import GENOME, is_ready
from tests.evo2cli.serve.load import Job, Load, metric, resident, wait_until_idle
from tests.ranks import free_port, wait_until

SPARE = 64 * 2**20  # bytes by which the memory may grow
BODIES = 24  # of 4 MiB, sent before the first measurement and again before the second


def jobs(genome: Path) -> list[Job]:
    """Requests of all kinds, with the results of the functions that the commands call."""
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


@contextmanager
def command(port: int, genome: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command, and wait until it is ready."""
    words = ["--port", str(port), "--max-bases", "600", "--batch-size", "4", "--queue", "8"]
    with (
        log.open("ab") as file,
        subprocess.Popen(
            [sys.executable, "-m", "evo2cli", "serve", *words, "-R", str(genome)], stderr=file
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client,
    ):
        try:
            wait_until(lambda: is_ready(client))
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_under_load_all_responses_are_right_and_nothing_leaks(genome: Path, tmp_path: Path) -> None:
    work = jobs(genome)
    log = tmp_path / "log"
    port = free_port()
    loaded = Load(
        f"http://127.0.0.1:{port}", work, num_clients=6, num_disturbers=3, long_tokens=500
    )
    with loaded.running():
        with command(port, genome, log) as process:
            loaded.wait()
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
        with command(port, genome, log) as process:
            loaded.wait(large_bodies=BODIES)
            before = resident(process.pid)
            loaded.wait(large_bodies=BODIES)
            loaded.stop()
            counts = wait_until_idle(f"http://127.0.0.1:{port}")
            assert metric(counts, "rows_growing") == 0
            # Some requests of disconnecting clients had been accepted.
            assert metric(counts, 'jobs_total{how="abandoned"}') > 0
            assert resident(process.pid) < before + SPARE
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
    assert loaded.problems == []
    assert "Traceback" not in log.read_text()
