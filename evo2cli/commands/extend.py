"""`evo2 extend`."""

from pathlib import Path
from typing import Annotated

import typer

from evo2cli import console


def extend(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint folder or file, or a name.")],
    to: Annotated[str, typer.Option(help="Positions of the new context: 32k, 1M, 65536.")],
    output: Annotated[Path, typer.Option("--output", "-O", help="Folder to make.")],
    scheme: Annotated[
        str,
        typer.Option(
            help="Of rotary positions: interpolation (as Evo 2 was extended), base, both, none."
        ),
    ] = "interpolation",
    config: Annotated[
        str | None,
        typer.Option(help="Shape of a released file: its yml or TOML, or a published name."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Summary as JSON on stdout.")] = False,
) -> None:
    """Make a checkpoint ready for a longer context; training then teaches it to use it.

    Positions are divided by new / old context, filters stay as they are. A recipe whose `init` is
    the result trains it; several stages give the positions that one gives.
    """
    from evo2cli.workflows.extend import extend_checkpoint

    summary = extend_checkpoint(checkpoint, output, to=to, scheme=scheme, config=config)
    if json:
        console.write_json(summary)
        return
    before, after = summary["before"], summary["after"]
    console.say(
        f"{summary['output']}: context {before['context']:,} -> {after['context']:,}, "
        f"rotary scale {before['rotary_scale']:g} -> {after['rotary_scale']:g}, "
        f"rotary base {before['rotary_base']:g} -> {after['rotary_base']:g}"
    )
