"""How a generated sequence is told of: what is measured on it, and its FASTA."""

from itertools import groupby
from statistics import fmean
from typing import Any

from evo2cli.generate.constraints.guide import EOD
from evo2cli.generate.options import GenerateOptions, Prompt
from evo2cli.tables import rounded
from stripedhyena2 import Sample
from stripedhyena2.generation import token_text

LINE = 60  # bases a FASTA line


def describe(
    options: GenerateOptions, prompt: Prompt, number: int, sample: Sample
) -> dict[str, Any]:
    """All that is told of a sample, as JSON values.

    `passed` names the constraints it meets: all that were asked for, as none can be broken.
    """
    end = len(sample.ids) - (sample.stop_reason == EOD)
    sequence = token_text(sample.ids[:end])
    found = {
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
        found["logprobs"] = [rounded(value) for value in sample.logprobs[:end]]
        found["drawn_logprobs"] = [rounded(value) for value in sample.drawn_logprobs[:end]]
    return found


def as_fasta(found: dict[str, Any]) -> bytes:
    """A record, with what is told of it in its header."""
    sequence = found["sequence"]
    rows = [sequence[at : at + LINE] for at in range(0, len(sequence), LINE)]
    told = {
        "sample": found["sample"],
        "prompt": len(found["prompt"]),
        "length": len(sequence),
        "mean_logprob": f"{found['mean_logprob']:.4f}",
        "gc": f"{found['gc']:.3f}",
        "longest_run": found["longest_run"],
        "stop": found["stop"],
        **({"passed": ",".join(found["passed"])} if found["passed"] else {}),
    }
    header = " ".join([f">{found['name']}", *(f"{key}={value}" for key, value in told.items())])
    return "\n".join([header, *rows, ""]).encode()
