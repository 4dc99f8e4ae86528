"""`evo2 tokenize`."""

from typing import Any

from evo2cli import console
from evo2cli.options import Command, takes
from evo2cli.tokenize.options import TokenizeOptions


class Tokenize(Command):
    """A command whose `--valid` takes all files up to the next option, e.g. those of `*.fa`.

    Typer would take the first of them only, and the others would be training data.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat `--valid` before each of its files, then parse."""
        words: list[str] = []
        after_valid = False
        for index, argument in enumerate(args):
            is_option = argument.startswith("-") and argument != "-"
            if after_valid and not is_option and args[index - 1] != "--valid":
                words.append("--valid")
            words.append(argument)
            if is_option:
                after_valid = argument == "--valid" or argument.startswith("--valid=")
        return super().parse_args(ctx, words)


@takes(TokenizeOptions)
def tokenize(options: TokenizeOptions) -> None:
    """Convert FASTA or JSON lines to tokens on disk, one byte per base.

    Sequences are divided into training, validation and test splits; identical sequences, on either
    strand, always go to the same split.
    """
    from evo2cli.tokenize.run import tokenize_files

    manifest = tokenize_files(options)
    if options.json:
        console.write_json(manifest)
