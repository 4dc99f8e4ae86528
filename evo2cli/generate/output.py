"""Describe a generated sequence, as JSON values or as a FASTA record."""

from itertools import groupby
from statistics import fmean
from typing import Any

from evo2cli.generate.constraints.guide import EOD
from evo2cli.generate.options import GenerateOptions
from evo2cli.generate.prompts import Prompt
from evo2cli.tables import rounded
from stripedhyena2 import Sample
from stripedhyena2.generation import token_text

LINE_WIDTH = 60  # bases per line of FASTA


def describe(
    options: GenerateOptions, prompt: Prompt, number: int, sample: Sample
) -> dict[str, Any]:
    """Describe a sample as JSON values.

    `passed` lists the constraints it satisfies: all that were given, as decoding enforces them.
    """
    end = len(sample.ids) - (sample.stop_reason == EOD)
    sequence = token_text(sample.ids[:end])
    description = {
        "name": prompt.name if options.num_samples == 1 else f"{prompt.name}_{number}",
        "sample": number,
        "seed": options.seed,
        "tag": prompt.tag.strip("|"),
        "prompt": prompt.bases.decode(),
        "sequence": sequence,
        "mean_logprob": rounded(fmean(sample.logprobs[:end])),
        "gc": rounded((sequence.count("G") + sequence.count("C")) / end),
        "longest_run": max(len(list(run)) for _, run in groupby(sequence)),
        "stop": sample.stop_reason,
        "passed": options.constraints,
    }
    if options.json:
        description["logprobs"] = [rounded(value) for value in sample.logprobs[:end]]
        description["drawn_logprobs"] = [rounded(value) for value in sample.drawn_logprobs[:end]]
    return description


def as_fasta(description: dict[str, Any]) -> bytes:
    """A FASTA record whose header holds the description as key=value fields."""
    sequence = description["sequence"]
    lines = [sequence[at : at + LINE_WIDTH] for at in range(0, len(sequence), LINE_WIDTH)]
    fields = {
        "sample": description["sample"],
        "prompt": len(description["prompt"]),
        "length": len(sequence),
        "mean_logprob": f"{description['mean_logprob']:.4f}",
        "gc": f"{description['gc']:.3f}",
        "longest_run": description["longest_run"],
        "stop": description["stop"],
        **({"passed": ",".join(description["passed"])} if description["passed"] else {}),
    }
    header = " ".join(
        [f">{description['name']}", *(f"{key}={value}" for key, value in fields.items())]
    )
    return "\n".join([header, *lines, ""]).encode()
