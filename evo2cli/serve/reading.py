"""Validation of requests: sequences, prompts and limits."""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from pydantic import BaseModel, ConfigDict

from evo2cli.data.tags import split_tag
from evo2cli.errors import UserError
from evo2cli.serve.engine import Served
from evo2cli.serve.refusal import Refusal
from stripedhyena2 import Request, Uniforms
from stripedhyena2.dna import ACGT
from stripedhyena2.generation import Alphabet

MAX_ANSWER = 2**28  # bytes of numbers in a response
MAX_SEQUENCES = 1024  # of a request
MAX_SAMPLES = 256  # of a request


class Fields(BaseModel):
    """A request body without unknown fields, since a misspelt one would be ignored."""

    model_config = ConfigDict(extra="forbid")


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Begin the messages of errors in the block with a field of the request, e.g. "variants[2]"."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{field}: {error}") from None


def read_dna(served: Served, field: str, text: str, num_more: int = 0) -> tuple[bytes, bytes]:
    """Parse a sequence into its lineage tag, which may be empty, and its upper-case DNA.

    Args:
        served: Has the limit of bases.
        field: Field of the request, for messages, e.g. "sequences[2]".
        text: The sequence.
        num_more: Number of bases to generate after it.

    Raises:
        UserError: It is empty, or not DNA or RNA.
        Refusal: It is too long.
    """
    tag, bases = split_tag(field, text.encode(errors="replace"))
    if not tag + bases:
        raise UserError(f"{field}: is empty; give at least one base")
    check_length(served, field, len(tag + bases) + num_more)
    return tag, bases


def check_length(served: Served, field: str, num_bases: int) -> None:
    """Check a length against the limit of this server.

    Args:
        served: Has the limit.
        field: Field of the request, for the message.
        num_bases: The length.

    Raises:
        Refusal: It is too long.
    """
    if num_bases > served.max_bases:
        raise Refusal(
            422,
            f"{field}: {num_bases:,} bases (with those to generate) are more than the "
            f"{served.max_bases:,} that this server takes (--max-bases)",
        )


def check_number(noun: str, number: int, limit: int) -> None:
    """Check the number of things in a request.

    Args:
        noun: What they are, e.g. "sequences".
        number: Their number.
        limit: The maximum.

    Raises:
        Refusal: There are too many.
    """
    if number > limit:
        raise Refusal(
            422, f"{number:,} {noun} at once are more than {limit:,}; send several requests"
        )


def check_answer(num_values: int) -> None:
    """Check the size of a response of this many numbers, of 4 bytes each.

    Raises:
        Refusal: It would be too large.
    """
    if 4 * num_values > MAX_ANSWER:
        raise Refusal(
            413,
            f"the answer would have {4 * num_values / 2**20:,.0f} MiB, more than "
            f"{MAX_ANSWER // 2**20}; ask for fewer bases or layers at a time",
        )


def sample_requests(
    served: Served,
    prompts: Mapping[str, str],
    num_samples: int,
    num_tokens: int,
    seed: int | None,
) -> list[Request]:
    """Create the requests for the samples of the first prompt, of the second, and so on.

    A sample depends on the seed, its prompt and its number, as in `evo2 generate`.

    Args:
        served: Has the limit of bases.
        prompts: Prompts by their field of the request, each with or without a lineage tag.
        num_samples: Samples of each prompt.
        num_tokens: Bases of each sample.
        seed: Random seed; None for a random one.

    Raises:
        UserError: A prompt is not valid.
        Refusal: There are too many samples, or a prompt is too long.
    """
    check_number("sequences", len(prompts) * num_samples, MAX_SAMPLES)
    if seed is None:
        seed = secrets.randbits(63)
    requests = []
    for field, text in prompts.items():
        tag, bases = read_dna(served, field, text, num_tokens)
        prompt_L = torch.tensor(list(tag + bases))
        for number in range(1, num_samples + 1):
            uniforms = Uniforms.of_sample(seed, tag + bases, number)
            requests.append(Request(prompt_L, num_tokens, uniforms, Alphabet(tuple(ACGT))))
    return requests
