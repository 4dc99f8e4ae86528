"""What requests hold, checked: sequences, prompts and the sizes of answers."""

import secrets
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict

from evo2cli.data.tags import split_record
from evo2cli.errors import UserError
from evo2cli.genome.fasta import Record
from evo2cli.serve.engine import Served
from evo2cli.serve.refusal import Refusal
from stripedhyena2 import Request, Uniforms
from stripedhyena2.dna import ACGT
from stripedhyena2.generation import Alphabet

MAX_ANSWER = 2**28  # bytes of numbers in an answer
MAX_SEQUENCES = 1024  # of a request
MAX_SAMPLES = 256  # of a request


class Fields(BaseModel):
    """What a client sends; unknown fields are refused, or a misspelt one would change nothing."""

    model_config = ConfigDict(extra="forbid")


def read_dna(served: Served, name: str, text: str, num_more: int = 0) -> tuple[bytes, bytes]:
    """The lineage tag that a sequence begins with, or nothing, and its upper-case DNA.

    Args:
        served: Has the limit of bases.
        name: What messages call the sequence.
        text: The sequence.
        num_more: Number of bases that will be generated after it.

    Raises:
        UserError: It is not DNA or RNA, or empty.
        Refusal: It is too long.
    """
    tag, bases = split_record("request", Record(name, "", text.encode(errors="replace")))
    if not tag + bases:
        raise UserError(f"{name}: is empty; give at least one base")
    check_length(served, name, len(tag + bases) + num_more)
    return tag, bases


def check_length(served: Served, name: str, num_bases: int) -> None:
    """Refuse what is longer than this server takes.

    Raises:
        Refusal: It is.
    """
    if num_bases > served.max_bases:
        raise Refusal(
            422,
            f"{name}: {num_bases:,} bases (with those to generate) are more than the "
            f"{served.max_bases:,} that this server takes (--max-bases)",
        )


def check_number(what: str, number: int, limit: int) -> None:
    """Refuse a request for too many of something at once.

    Raises:
        Refusal: It is one.
    """
    if number > limit:
        raise Refusal(
            422, f"{number:,} {what} at once are more than {limit:,}; send several requests"
        )


def check_answer(num_values: int) -> None:
    """Refuse a request whose answer would be too large, of values of 4 bytes.

    Raises:
        Refusal: It would be.
    """
    if 4 * num_values > MAX_ANSWER:
        raise Refusal(
            413,
            f"the answer would have {4 * num_values / 2**20:,.0f} MiB, more than "
            f"{MAX_ANSWER // 2**20}; ask for fewer bases or layers at a time",
        )


def sample_requests(
    served: Served, prompts: Sequence[str], num_samples: int, num_tokens: int, seed: int | None
) -> list[Request]:
    """What to generate: the samples of the first prompt, of the second, ...

    With the same seed, prompt and number they are those of `evo2 generate`.

    Args:
        served: Has the limit of bases.
        prompts: Prompts as text, each with a lineage tag or without.
        num_samples: Samples of each prompt.
        num_tokens: Bases of each sample.
        seed: None for a random one.

    Raises:
        UserError: A prompt is not valid.
        Refusal: There are too many, or one is too long.
    """
    check_number("sequences", len(prompts) * num_samples, MAX_SAMPLES)
    if seed is None:
        seed = secrets.randbits(63)
    found = []
    for index, text in enumerate(prompts):
        tag, bases = read_dna(served, f"prompt {index}", text, num_tokens)
        prompt_L = torch.tensor(list(tag + bases))
        for number in range(1, num_samples + 1):
            uniforms = Uniforms.of_sample(seed, tag + bases, number)
            found.append(Request(prompt_L, num_tokens, uniforms, Alphabet(tuple(ACGT))))
    return found
