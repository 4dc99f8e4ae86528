"""`evo2 generate`."""

from pathlib import Path
from typing import Annotated

import typer

_PROMPT, _DRAWING, _END = "What it goes on from", "How bases are drawn", "Where it ends"
_RULES, _MODEL = "What no sequence breaks", "Model and machine"


def generate(
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt", help="Bases to go on from; may be repeated.", rich_help_panel=_PROMPT
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="FASTA of prompts; - is stdin.", rich_help_panel=_PROMPT),
    ] = None,
    tag: Annotated[
        str | None,
        typer.Option(
            help="Lineage before every prompt, or alone: 'd__Bacteria;p__...;s__...'.",
            rich_help_panel=_PROMPT,
        ),
    ] = None,
    num_samples: Annotated[
        int, typer.Option(min=1, help="Sequences for each prompt.", rich_help_panel=_DRAWING)
    ] = 1,
    seed: Annotated[
        int, typer.Option(help="Same seed, same sequences.", rich_help_panel=_DRAWING)
    ] = 0,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest base.", rich_help_panel=_DRAWING)
    ] = 1.0,
    top_k: Annotated[
        int,
        typer.Option(help="Draw among so many; 0: all, 1: greedy.", rich_help_panel=_DRAWING),
    ] = 4,
    top_p: Annotated[
        float,
        typer.Option(help="Draw within this probability; 1: all.", rich_help_panel=_DRAWING),
    ] = 1.0,
    alphabet: Annotated[
        str,
        typer.Option(
            help="dna: only A, C, G, T; any: every token of the model.", rich_help_panel=_DRAWING
        ),
    ] = "dna",
    tokens: Annotated[
        int,
        typer.Option("--tokens", "-n", min=1, help="Bases at most.", rich_help_panel=_END),
    ] = 500,
    min_length: Annotated[
        int, typer.Option(min=1, help="Bases at least.", rich_help_panel=_END)
    ] = 1,
    stop_at_eod: Annotated[
        bool,
        typer.Option(
            "--stop-at-eod", help="When the model says that it is over.", rich_help_panel=_END
        ),
    ] = False,
    stop_codon: Annotated[
        str | None,
        typer.Option(
            metavar="FRAME",
            help="After a stop codon; codons count from the first base of: prompt, generated.",
            rich_help_panel=_END,
        ),
    ] = None,
    stop_motif: Annotated[
        list[str] | None,
        typer.Option(
            help="After this pattern: TATAWA, 'A{8,}', '(CAG){5}|TTTT'; may be repeated.",
            rich_help_panel=_END,
        ),
    ] = None,
    forbid: Annotated[
        list[str] | None,
        typer.Option(
            help="A pattern, or a restriction enzyme's site, both strands; may be repeated.",
            rich_help_panel=_RULES,
        ),
    ] = None,
    both_strands: Annotated[
        bool,
        typer.Option(
            "--both-strands", help="Forbid patterns on both strands too.", rich_help_panel=_RULES
        ),
    ] = False,
    max_homopolymer: Annotated[
        int | None, typer.Option(min=1, help="Longest run of a base.", rich_help_panel=_RULES)
    ] = None,
    fix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="POSITION:BASES",
            help="What stands there, e.g. 10:ACGTN; the first generated base is 1; repeatable.",
            rich_help_panel=_RULES,
        ),
    ] = None,
    gc: Annotated[
        str | None,
        typer.Option(
            metavar="FROM-TO", help="Fraction of G and C: 0.3-0.65.", rich_help_panel=_RULES
        ),
    ] = None,
    gc_window: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="In every window of so many bases.",
            show_default="the whole sequence",
            rich_help_panel=_RULES,
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="A folder, a file, or a name.", rich_help_panel=_MODEL)
    ] = "nano",
    config: Annotated[
        Path | None,
        typer.Option(help="Shape of a released file: its yml or TOML.", rich_help_panel=_MODEL),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Sequences side by side.", rich_help_panel=_MODEL)
    ] = 16,
    kv_cache: Annotated[
        str,
        typer.Option(
            help="Keys and values kept as the model computes: auto; or in half the memory: fp8.",
            rich_help_panel=_MODEL,
        ),
    ] = "auto",
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1, ...", rich_help_panel=_MODEL)
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto, fp8, bf16, fp32, fp64.", rich_help_panel=_MODEL)
    ] = "auto",
    output: Annotated[
        Path | None, typer.Option("--output", "-O", help="File to write; else stdout.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="JSON lines with the log-probability of every base.")
    ] = False,
) -> None:
    """Generate DNA after each prompt; FASTA with the mean log-probability (nats) in the header."""
    from evo2cli.generate.options import GenerateOptions
    from evo2cli.generate.run import generate as run

    run(
        GenerateOptions(
            prompts=tuple(prompt or ()),
            prompts_fasta=prompts,
            tag=tag,
            num_samples=num_samples,
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            alphabet=alphabet,
            tokens=tokens,
            min_length=min_length,
            stop_at_eod=stop_at_eod,
            stop_codon=stop_codon,
            stop_motifs=tuple(stop_motif or ()),
            forbid=tuple(forbid or ()),
            both_strands=both_strands,
            max_homopolymer=max_homopolymer,
            fix=tuple(fix or ()),
            gc=gc,
            gc_window=gc_window,
            model=model,
            config=config,
            batch_size=batch_size,
            kv_cache=kv_cache,
            device=device,
            dtype=dtype,
            output=output,
            json=json,
        )
    )
