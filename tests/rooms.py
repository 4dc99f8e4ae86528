"""Who imports whom, room by room; `python -m tests.rooms` writes it into docs/development.md.

A room is a package or a file directly below one of the three floors. Imports that only type
checkers read (`if TYPE_CHECKING`) are no dependency of running code and are left out.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = {
    "evo2cli": ROOT / "evo2cli",
    "stripedhyena2": ROOT / "models" / "stripedhyena2",
    "hyenakernels": ROOT / "kernels" / "hyenakernels",
}

# From the bottom to the top: a room may import from those before it, and from no other.
ROOMS = {
    "evo2cli": [
        *("errors", "processes", "workers", "console", "options", "lengths", "files", "tables"),
        *("pages", "ranking", "journal", "figures"),
        *("genome", "data", "models", "gpus", "devices", "training", "plan", "launch"),
        *("tokenize", "train", "score", "saturate", "track", "merge", "embed", "generate"),
        *("finetune", "predict", "eval", "report", "extend", "info", "convert", "merge_adapter"),
        *("fetch", "doctor", "compat", "hf", "serve"),
        *("commands", "app", "__main__"),
    ],
}


def room_of(module: str) -> tuple[str, str] | None:
    """The floor and the room of a module, or None for one that is not ours."""
    floor, _, rest = module.partition(".")
    return (floor, rest.partition(".")[0]) if floor in FLOORS else None


def imports_of(file: Path) -> Iterator[str]:
    """Modules that a file imports, wherever in the file it does so."""
    pending: list[ast.AST] = [ast.parse(file.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from evo2cli import console` imports the module evo2cli.console.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        pending += ast.iter_child_nodes(node)


def file_arrows(floor: str) -> dict[str, set[str]]:
    """For each module of a floor the modules of the same floor that it imports."""
    folder = FLOORS[floor]
    files = {
        ".".join([floor, *file.relative_to(folder).with_suffix("").parts]): file
        for file in sorted(folder.rglob("*.py"))
        if file.name != "__init__.py"
    }
    return {
        module: {
            name
            for imported in imports_of(file)
            for name in (imported, imported.rpartition(".")[0])
            if name in files and name != module
        }
        for module, file in files.items()
    }


def arrows(floor: str) -> dict[str, set[str]]:
    """For each room of a floor the rooms of the same floor that it imports from."""
    folder = FLOORS[floor]
    found: dict[str, set[str]] = {}
    for file in sorted(folder.rglob("*.py")):
        room = file.relative_to(folder).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        others = found.setdefault(room, set())
        for module in imports_of(file):
            target = room_of(module)
            if target is None or target[0] != floor or target[1] == room:
                continue
            if (folder / target[1]).is_dir() or (folder / f"{target[1]}.py").is_file():
                others.add(target[1])
    return found


def picture(floor: str) -> str:
    """A line for each room, the topmost first: how many files it has, and where it imports from."""
    found, order = arrows(floor), ROOMS[floor]
    lines = []
    for room in reversed(order):
        files = len(list((FLOORS[floor] / room).rglob("*.py"))) or 1
        names = ", ".join(sorted(found.get(room, ()), key=order.index))
        lines.append(f"{room:<12} {files:>3}  {names}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    page = ROOT / "docs" / "development.md"
    before, _, after = page.read_text().partition("```\n__main__")
    page.write_text(f"{before}```\n{picture('evo2cli')}\n```{after.partition('```')[2]}")
