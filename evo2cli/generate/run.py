"""`evo2 generate`: sample sequences for every prompt and write them in order."""

import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from typing import Any

import torch

from evo2cli import __version__, console
from evo2cli.files import check_output, locks_output, open_output
from evo2cli.generate.constraints.build import MakeGuide, guides
from evo2cli.generate.options import GenerateOptions, KVCache
from evo2cli.generate.output import as_fasta, describe
from evo2cli.generate.prompts import Prompt, read_prompts
from evo2cli.journal import Recall, open_journal
from evo2cli.models import open_model, say_demonstration, warn_beyond_context
from evo2cli.tables import json_line
from stripedhyena2 import (
    NonFiniteLogitsError,
    Request,
    Sample,
    Sampler,
    StripedHyena2,
    Uniforms,
)
from stripedhyena2 import generate as generate_tokens
from stripedhyena2.errors import NonFiniteError
from stripedhyena2.fingerprint import fingerprint

# Options that a resumed run may change: they concern only input, output or speed, or are covered by
# the prompts and the fingerprint of the model.
_WITHOUT_EFFECT = (
    "prompt",
    "prompts",
    "model",
    "config",
    "device",
    "dtype",
    "batch_size",
    "num_samples",
    "output",
)
Job = tuple[Prompt, int]  # a prompt, and the number of the sample


@locks_output
def generate(options: GenerateOptions) -> None:
    """Generate the samples of every prompt, and write them in order as they become available.

    A sample depends only on the model, the options, the seed, its prompt and its number, not on
    other samples.

    Raises:
        UserError: A prompt or an option is not valid, or no sequence satisfies the constraints.
        NonFiniteError: The model's logits are not finite.
    """
    check_output(options.output, options.prompts)
    sampler = Sampler(options.temperature, options.top_k, options.top_p)
    prompts = read_prompts(options.prompt, options.prompts, options.tag)
    make_guide = guides(options, prompts)
    model = open_model(options)
    say_demonstration(options.model)
    longest = max(len(prompt.text) for prompt in prompts) + options.tokens
    warn_beyond_context(model, longest, f"a sequence of {longest:,} tokens with its prompt")
    jobs = list(product(prompts, range(1, options.num_samples + 1)))
    with (
        open_journal(options.output, _settings(options, model)) as recall,
        open_output(options.output) as write,
        console.progress("generate", len(jobs) * options.tokens, "bases") as bar,
    ):

        def start(first: int) -> Iterator[dict[str, Any]]:
            """Generate the samples of all jobs from `first` on."""
            bar.advance(first * options.tokens)
            samples = generate_tokens(
                model,
                requests_of(options, jobs[first:], make_guide, model.config.vocabulary),
                sampler,
                batch_size=options.batch_size,
                float8=options.kv_cache is KVCache.FP8,
                progress=bar.advance,
            )
            return _described(options, jobs[first:], samples)

        for description in _recalled(jobs, recall, start):
            write(json_line(description) if options.json else as_fasta(description))
            if options.output is None:
                sys.stdout.flush()


def _settings(options: GenerateOptions, model: StripedHyena2) -> list[object]:
    """Everything that determines the results, apart from prompts and sample numbers."""
    given = {k: v for k, v in asdict(options).items() if k not in _WITHOUT_EFFECT}
    given["numbered"] = options.num_samples > 1  # whether names end in the sample's number
    return ["evo2 generate", __version__, fingerprint(model.config, model.state_dict()), given]


def _recalled(
    jobs: Sequence[Job], recall: Recall, start: Callable[[int], Iterator[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """Yield the results of an interrupted run from its journal, then those of `start`."""
    started: Iterator[dict[str, Any]] | None = None

    def compute(index: int) -> dict[str, Any]:
        nonlocal started
        started = started or start(index)
        return next(started)

    for index, (prompt, number) in enumerate(jobs):
        key = f"{prompt.name} {number} {zlib.crc32(prompt.text):08x}"
        yield recall(key, partial(compute, index))


def requests_of(
    options: GenerateOptions, jobs: Sequence[Job], make_guide: MakeGuide, vocabulary: int
) -> list[Request]:
    """One request per job, with its random numbers and constraints."""
    ids = {prompt: torch.tensor(list(prompt.text)) for prompt, _ in jobs}
    return [
        Request(
            ids[prompt],
            options.tokens,
            Uniforms.of_sample(options.seed, prompt.text, number),
            make_guide(prompt, vocabulary),
        )
        for prompt, number in jobs
    ]


def _described(
    options: GenerateOptions, jobs: Sequence[Job], samples: Iterator[Sample]
) -> Iterator[dict[str, Any]]:
    """Describe every sample.

    Raises:
        NonFiniteError: The logits are not finite; the message names the layer where this began.
    """
    try:
        for (prompt, number), sample in zip(jobs, samples, strict=True):
            yield describe(options, prompt, number, sample)
    except NonFiniteLogitsError as error:
        prompt, number = jobs[error.index]
        raise NonFiniteError(f"{prompt.name}, sample {number}: {error.problem}") from None
