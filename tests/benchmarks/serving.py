"""Time to the first token and tokens a second of a server that runs, by number of clients.

    evo2 serve --model evo2_7b --batch-size 64 &
    python -m tests.benchmarks.serving --clients 1 16 64 256

Every client streams one completion after the other, each with a prompt of its own. The decoder's
own rate is that of `evo2 generate --num-samples 64 --batch-size 64`.
"""

import argparse
import asyncio
import random
import time

import httpx

from evo2cli import console


async def one(
    client: httpx.AsyncClient, prompt: str, tokens: int, *, stream: bool
) -> tuple[float, int]:
    """Seconds until the first token of a completion, and the number of its tokens."""
    body = {"model": "evo2", "prompt": prompt, "max_tokens": tokens, "stream": stream}
    started, first, count = time.perf_counter(), 0.0, 0
    if not stream:
        whole = await client.post("/v1/completions", json=body)
        whole.raise_for_status()
        return time.perf_counter() - started, whole.json()["usage"]["completion_tokens"]
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter() - started
                count += 1
    return first, count


async def measure(
    url: str, clients: int, rounds: int, length: int, tokens: int, *, stream: bool
) -> str:
    """A line of the table."""
    draw = random.Random(clients)  # noqa: S311 - not for cryptography
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=3600, limits=limits) as client:

        async def several() -> list[tuple[float, int]]:
            prompts = ["".join(draw.choices("ACGT", k=length)) for _ in range(rounds)]
            return [await one(client, prompt, tokens, stream=stream) for prompt in prompts]

        await one(client, "ACGT", 2, stream=stream)  # warms up
        started = time.perf_counter()
        found = await asyncio.gather(*(several() for _ in range(clients)))
        seconds = time.perf_counter() - started
    firsts = sorted(first for each in found for first, _ in each)
    total = sum(count for each in found for _, count in each)
    p50, p99 = (firsts[min(int(share * len(firsts)), len(firsts) - 1)] for share in (0.5, 0.99))
    return f"| {clients} | {p50:.3f} | {p99:.3f} | {total / seconds:,.0f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--rounds", type=int, default=2, help="completions of each client")
    parser.add_argument("--prompt", type=int, default=1000, help="bases")
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--whole", action="store_true", help="answers at once, not streams")
    asked = parser.parse_args()
    sizes = asked.rounds, asked.prompt, asked.tokens
    console.write("| clients | p50, s | p99, s | tokens a second |\n|--:|--:|--:|--:|\n")
    for clients in asked.clients:
        line = asyncio.run(measure(asked.url, clients, *sizes, stream=not asked.whole))
        console.write(f"{line}\n")


if __name__ == "__main__":
    main()
