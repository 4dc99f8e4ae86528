"""The methods of a model return what the commands write."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from evo2cli.app import app
from evo2cli.tables import rounded
from stripedhyena2 import load

SEQUENCES = {"a": "ACGTTGCATTACGGA" * 9, "b": "acguNRTTGAC", "c": "TG"}


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
    if result.exception:
        raise result.exception
    return result.stdout


def write_fasta(path: Path) -> str:
    path.write_text("".join(f">{name}\n{bases}\n" for name, bases in SEQUENCES.items()))
    return str(path)


def test_generate(checkpoint: str) -> None:
    prompts = ["ACGUac", "T"]
    for options in ({}, {"temperature": 0.7, "top_k": 0, "top_p": 0.9, "seed": 3}):
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        asked = [word for prompt in prompts for word in ("--prompt", prompt)]
        written = run(
            "generate", "--model", checkpoint, *asked, "--num-samples", "2", "-n", "15",
            "--json", *flags,
        )  # fmt: skip
        found = load(checkpoint).generate(prompts, num_samples=2, num_tokens=15, **options)
        for line, one in zip(map(json.loads, written.splitlines()), found, strict=True):
            assert (line["prompt"], line["sample"]) == (one.prompt, one.number)
            assert line["sequence"] == one.sequence
            assert line["logprobs"] == [rounded(value) for value in one.logprobs]
            assert line["drawn_logprobs"] == [rounded(value) for value in one.drawn_logprobs]
            assert line["mean_logprob"] == rounded(one.mean_logprob)


def test_score(checkpoint: str, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "in.fa")
    for strand in ("fwd", "rc", "both"):
        written = run("score", fasta, "--model", checkpoint, "--strand", strand, "--json")
        rows = [json.loads(line) for line in written.splitlines()]
        for reduce in ("mean", "sum"):
            found = load(checkpoint).score([*SEQUENCES.values()], reduce=reduce, strand=strand)
            assert [row[f"{reduce}_logprob"] for row in rows] == [rounded(one) for one in found]


def test_embed(checkpoint: str, tmp_path: Path) -> None:
    fasta, output = write_fasta(tmp_path / "in.fa"), tmp_path / "out.safetensors"
    for strand, pool in (("fwd", "mean"), ("both", "max"), ("both", "none")):
        run(
            "embed", fasta, "--model", checkpoint, "--layers", "all", "--strand", strand,
            "--pooling", pool, "-O", str(output),
        )  # fmt: skip
        written = load_file(output)
        found = load(checkpoint).embed(
            [*SEQUENCES.values()], layers="all", strand=strand, pool=pool
        )
        for layer, vectors in found.items():
            if pool == "none":
                for name, vectors_LD in zip(SEQUENCES, vectors, strict=True):
                    assert torch.equal(written[f"{name}/{layer}"], vectors_LD)
            else:
                assert torch.equal(written[layer], vectors)
        output.unlink()
