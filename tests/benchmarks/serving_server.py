"""The server that `tests.benchmarks.serving` starts: `evo2 serve`, its model, and what it weighs.

Before it listens it may measure how fast its own decoder is; while it serves, it writes down every
second how much memory it holds.
"""

import argparse
import json
import os
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from evo2cli import console
from evo2cli.models import open_model
from evo2cli.options import ModelOptions
from evo2cli.serve import engine
from evo2cli.serve.options import ServeOptions
from evo2cli.serve.run import serve
from stripedhyena2 import Request, Sampler, StripedHyena2, Uniforms
from stripedhyena2.decoding import Decoder
from stripedhyena2.dna import ACGT
from stripedhyena2.generation import Alphabet, Rows, prefill
from tests.benchmarks.inference import model_of, synchronize
from tests.evo2cli.serve.load import resident

SAMPLER = Sampler(1.0, 4, 1.0)  # the defaults of /v1/completions


@dataclass(frozen=True)
class Rates:
    """Tokens a second of the decoder, without a server.

    Attributes:
        steps: Of steps that follow each other, with nothing drawn from their logits.
        generation: Of prompts that are read, and tokens that are drawn.
    """

    steps: float
    generation: float


@dataclass(frozen=True)
class Memory:
    """Bytes that the server holds.

    Attributes:
        allocated: On the GPU, by tensors.
        reserved: On the GPU, by PyTorch.
        resident: On the host.
    """

    allocated: int
    reserved: int
    resident: int


def random_dna(draw: random.Random, length: int) -> str:
    return "".join(draw.choices("ACGT", k=length))


def decoder_rates(model: StripedHyena2, batch: int, length: int, tokens: int) -> Rates:
    """Of sequences with prompts of their own.

    Args:
        model: The model.
        batch: Number of sequences.
        length: Bases of a prompt.
        tokens: Tokens of a sequence.
    """
    draw = random.Random(0)  # noqa: S311 - not for cryptography
    prompts = [torch.tensor(list(random_dna(draw, length).encode())) for _ in range(batch)]

    rows = Rows.within_memory(model, batch, length + tokens, prompt_L=prompts[0])
    _seconds_to_grow(rows, prompts, 2)  # compiles
    generation = batch * tokens / _seconds_to_grow(rows, prompts, tokens)
    del rows  # its memory is needed
    with torch.inference_mode():
        decoder = Decoder(model, batch, length + tokens)
        ids_B = prompts[0][:batch].new_full((batch,), ord("A")).to(model.embedding.weight.device)
        for row, prompt_L in enumerate(prompts):
            cache = decoder.new_cache(row)
            prefill(model, prompt_L[None].to(ids_B.device), cache)
            decoder.place(row, cache)
        decoder.step(ids_B)
        synchronize()
        started = time.perf_counter()
        for _ in range(tokens - 1):
            decoder.step(ids_B)
        synchronize()
    return Rates(batch * (tokens - 1) / (time.perf_counter() - started), generation)


def _seconds_to_grow(rows: Rows, prompts: Sequence[Tensor], num_tokens: int) -> float:
    """Of one sequence for each prompt, as `evo2 generate` has them grow."""
    started = time.perf_counter()
    for index, prompt_L in enumerate(prompts):
        prompt_L = prompt_L.clone()  # the one read last is not read again
        request = Request(prompt_L, num_tokens, Uniforms(index), Alphabet(tuple(ACGT)))
        rows.add(request, SAMPLER, index)
    while rows.samples:
        rows.step()
    return time.perf_counter() - started


def watch_memory(path: Path, pid: int) -> None:
    """Write down every second what the process holds."""
    while True:
        has_gpu = torch.cuda.is_available()
        memory = Memory(
            torch.cuda.memory_allocated() if has_gpu else 0,
            torch.cuda.memory_reserved() if has_gpu else 0,
            resident(pid),
        )
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(asdict(memory)))
        partial.rename(path)
        time.sleep(1)


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--options", type=json.loads, required=True, help="of evo2 serve, as JSON")
    parser.add_argument("--random", action="store_true", help="random weights of the model's shape")
    parser.add_argument("--memory", type=Path, required=True, help="file for the memory")
    parser.add_argument("--rates", type=Path, help="measure the decoder first, into this file")
    parser.add_argument("--prompt", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=500)
    asked = parser.parse_args()
    console.show_warnings()
    given = asked.options
    options = ServeOptions(**given | {"reference": Path(given["reference"])})

    def opened(options: ModelOptions) -> StripedHyena2:
        torch.manual_seed(0)  # the same weights after a restart
        model = model_of(options.model) if asked.random else open_model(options)
        if asked.rates is not None:
            rates = decoder_rates(model, given["batch_size"], asked.prompt, asked.tokens)
            asked.rates.write_text(json.dumps(asdict(rates)))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return model

    threading.Thread(target=watch_memory, args=[asked.memory, os.getpid()], daemon=True).start()
    with mock.patch.object(engine, "open_model", opened):
        serve(options)


if __name__ == "__main__":
    main()
