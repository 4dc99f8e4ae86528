"""`evo2 generate`."""

from pathlib import Path
from typing import Annotated

import typer


def generate(
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="Bases to go on from; may be repeated.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="FASTA of prompts; - is stdin.")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="Bases to generate.")] = 500,
    model: Annotated[str, typer.Option(help="A folder, a file, or a name.")] = "nano",
    config: Annotated[
        Path | None, typer.Option(help="Shape of a released file: its yml or TOML.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest base.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw among so many; 0: all, 1: greedy.")] = 4,
    top_p: Annotated[float, typer.Option(help="Draw within this probability; 1: all.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Same seed, same sequence.")] = 0,
    alphabet: Annotated[
        str, typer.Option(help="dna: only A, C, G, T; any: every token of the model.")
    ] = "dna",
    output: Annotated[
        Path | None, typer.Option("--output", "-O", help="FASTA to write; else stdout.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp8, bf16, fp32, fp64.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="JSON lines instead of FASTA.")] = False,
) -> None:
    """Generate DNA after each prompt; FASTA with the mean log-probability (nats) in the header."""
    from evo2cli.workflows.generate import generate_sequences, write_results
    from evo2cli.workflows.models import open_model

    results = generate_sequences(
        lambda: open_model(model, config=config, device=device, dtype=dtype),
        prompts=prompt or [],
        prompts_fasta=prompts,
        tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        alphabet=alphabet,
    )
    write_results(results, output, as_json=json)
