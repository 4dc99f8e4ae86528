"""`evo2 tokenize`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from evo2cli import console
from evo2cli.options import Command


class Tokenize(Command):
    """`--valid a.fa b.fa` takes every file up to the next option, as a shell's `*.fa` gives them.

    Otherwise all but the first of them would be read as training data.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Spell `--valid` out before each of its files."""
        spelled: list[str] = []
        held_out = False
        for position, argument in enumerate(args):
            is_option = argument.startswith("-") and argument != "-"
            if held_out and not is_option and args[position - 1] != "--valid":
                spelled.append("--valid")
            spelled.append(argument)
            if is_option:
                held_out = argument == "--valid" or argument.startswith("--valid=")
        return super().parse_args(ctx, spelled)


def tokenize(
    files: Annotated[
        list[Path], typer.Argument(help="FASTA or JSON lines; .gz is read too, - is stdin.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make.")],
    valid: Annotated[
        list[Path] | None, typer.Option(help="Files to hold out: all up to the next option.")
    ] = None,
    valid_fraction: Annotated[
        float | None,
        typer.Option(help="Of the sequences, held out. Default: 0.05, or 0 with --valid."),
    ] = None,
    test_fraction: Annotated[
        float, typer.Option(help="Of the sequences, kept for a final test.")
    ] = 0.0,
    reverse_complement: Annotated[
        bool, typer.Option("--reverse-complement", help="Write both strands of every sequence.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="The manifest as JSON on stdout.")] = False,
) -> None:
    """Turn FASTA or JSON lines into tokens on disk: a byte a base, split without leaks."""
    from evo2cli.tokenize import tokenize_files

    manifest = tokenize_files(
        files,
        output,
        valid=valid or (),
        valid_fraction=valid_fraction,
        test_fraction=test_fraction,
        reverse_complement=reverse_complement,
    )
    if json:
        console.write_json(manifest)
