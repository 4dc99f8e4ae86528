"""DNA out of a model."""

import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from typing import Any

import torch

from evo2cli import __version__, console
from evo2cli.errors import UserError
from evo2cli.files import open_output
from evo2cli.generate.constraints.automaton import Automaton, base_codes
from evo2cli.generate.constraints.guide import FreeGuide, Guide
from evo2cli.generate.constraints.lookahead import Lookahead
from evo2cli.generate.constraints.rules import Rules
from evo2cli.generate.constraints.windows import WindowGuide
from evo2cli.generate.options import GenerateOptions, Prompt
from evo2cli.generate.output import as_fasta, describe
from evo2cli.journal import Recall, open_journal
from evo2cli.models import open_model
from evo2cli.tables import json_line
from stripedhyena2 import NonFiniteLogitsError, Request, Sample, StripedHyena2, Uniforms
from stripedhyena2 import generate as generate_tokens
from stripedhyena2.errors import NonFiniteError
from stripedhyena2.fingerprint import fingerprint

# They say where results come from or go, or how fast; none changes a sequence.
_WITHOUT_EFFECT = (
    "prompts",
    "prompts_fasta",
    "model",
    "config",
    "device",
    "dtype",
    "batch_size",
    "num_samples",
    "output",
)
Job = tuple[Prompt, int]


def generate(options: GenerateOptions) -> None:
    """Go on from every prompt, as often as asked; write each sequence as soon as its turn is.

    A sample depends on the model, the seed, its prompt and its number, and on no other sample.

    Raises:
        UserError: A prompt or a setting will not do, or no sequence can meet the constraints.
        NonFiniteError: The model's logits are not finite.
    """
    sampler = options.sampler()
    prompts = options.read_prompts()
    make_guide = guides(options, prompts)
    model = open_model(
        options.model, config=options.config, device=options.device, dtype=options.dtype
    )
    _warn_of_context(options, prompts, model.config.context)
    vocabulary = model.config.vocabulary
    jobs = list(product(prompts, range(1, options.num_samples + 1)))
    with (
        open_journal(options.output, _settings(options, model)) as recall,
        open_output(options.output) as write,
        console.progress("generate", len(jobs) * options.tokens, "bases") as bar,
    ):

        def start(first: int) -> Iterator[dict[str, Any]]:
            bar.advance(first * options.tokens)
            requests = _requests(options, jobs[first:], lambda p: make_guide(p, vocabulary))
            samples = generate_tokens(
                model,
                requests,
                sampler,
                batch_size=options.batch_size,
                float8=options.kv_cache == "fp8",
                progress=bar.advance,
            )
            return _described(options, jobs[first:], samples)

        for found in _recalled(jobs, recall, start):
            write(json_line(found) if options.json else as_fasta(found))
            if options.output is None:
                sys.stdout.flush()


def _settings(options: GenerateOptions, model: StripedHyena2) -> list[object]:
    """All that decides results beside prompts and numbers of samples."""
    given = {k: v for k, v in asdict(options).items() if k not in _WITHOUT_EFFECT}
    given["numbered"] = options.num_samples > 1  # the names, then
    return ["evo2 generate", __version__, fingerprint(model.config, model.state_dict()), given]


def _recalled(
    jobs: Sequence[Job], recall: Recall, start: Callable[[int], Iterator[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """What the last run kept, and from there on what `start` yields of the rest."""
    started: Iterator[dict[str, Any]] | None = None

    def compute(position: int) -> dict[str, Any]:
        nonlocal started
        started = started or start(position)
        return next(started)

    for position, (prompt, number) in enumerate(jobs):
        key = f"{prompt.name} {number} {zlib.crc32(prompt.text):08x}"
        yield recall(key, partial(compute, position))


def _described(
    options: GenerateOptions, jobs: Sequence[Job], samples: Iterator[Sample]
) -> Iterator[dict[str, Any]]:
    try:
        for (prompt, number), sample in zip(jobs, samples, strict=True):
            yield describe(options, prompt, number, sample)
    except NonFiniteLogitsError as error:
        prompt, number = jobs[error.index]
        raise NonFiniteError(f"{prompt.name}, sample {number}: {error.problem}") from None


def guides(
    options: GenerateOptions, prompts: Sequence[Prompt]
) -> Callable[[Prompt, int], Guide | FreeGuide]:
    """What makes the guide of a sequence, of its prompt and the size of the vocabulary.

    Raises:
        UserError: After some prompt no sequence can meet all constraints.
    """
    rules = options.rules()
    if options.alphabet == "any":
        return lambda _, vocabulary: FreeGuide(vocabulary, rules)
    crowded = rules.crowded_window()
    if crowded is not None:
        raise UserError(
            f"--fix leaves no room for --gc {options.gc} in the window from base {crowded + 1:,} on"
        )
    starts = {prompt: _start(options, rules, prompt) for prompt in prompts}
    lookahead = Lookahead(rules, starts.values())
    corridor = rules.corridor
    kind = WindowGuide if corridor and corridor.window < rules.length else Guide
    for prompt, state in starts.items():
        if not kind(rules, lookahead, state).allowed():
            given = ", ".join(f"--{name}" for name in (*options.constraints, *options.stops))
            raise UserError(
                f"{prompt.name}: no sequence of {options.min_length:,} to {options.tokens:,} bases "
                f"was found that meets {given}; loosen one of them"
            )
    return lambda prompt, _: kind(rules, lookahead, starts[prompt])


def _start(options: GenerateOptions, rules: Rules, prompt: Prompt) -> int:
    """The state that the prompt's bases leave the patterns in."""
    begins = Automaton.START if options.stop_codon == "prompt" else Automaton.NOWHERE
    state = rules.automaton.read(begins, base_codes(prompt.bases))
    return state | Automaton.START if options.stop_codon == "generated" else state


def _requests(
    options: GenerateOptions, jobs: Sequence[Job], make_guide: Callable[[Prompt], Guide | FreeGuide]
) -> list[Request]:
    ids = {prompt: torch.tensor(list(prompt.text)) for prompt, _ in jobs}
    return [
        Request(
            ids[prompt],
            options.tokens,
            Uniforms.of_sample(options.seed, prompt.text, number),
            make_guide(prompt),
        )
        for prompt, number in jobs
    ]


def _warn_of_context(options: GenerateOptions, prompts: Sequence[Prompt], context: int) -> None:
    longest = max(len(prompt.text) for prompt in prompts) + options.tokens
    if longest > context:
        console.warn(
            f"sequences of {longest:,} tokens, prompt included, go beyond the {context:,} that "
            "the model was trained on; there it extrapolates"
        )
