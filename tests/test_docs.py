"""README and docs do what they show: every block runs, every option exists, every link leads on.

console blocks run command by command in a fresh copy of what a clone holds, and print what is shown
below each command: the same text, and numbers within a tolerance. A line that ends in `...` may go
on with anything, and a line of nothing but `...` stands for any lines. A block whose commands are
the first of another block is run with it. python blocks of a page run in order in one namespace.
Commands in sh blocks need more than a test machine has, so only their options are checked.
"""

import itertools
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from evo2cli.app import app
from tests.reference import PAGE, reference
from tests.shell import forked_evo2

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
RELATIVE, ABSOLUTE = 2e-3, 2e-3  # of numbers that another processor computes


def blocks(language: str) -> list[Any]:
    """The blocks of a language on all pages, each with an id that names its page and line."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, match.start()) + 1
            found.append(pytest.param(page, match[1], id=f"{page.stem}-{line}"))
    return found


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with what a clone has, and an `evo2` on the path that runs this tree."""
    for shelf in ("examples", "recipes"):
        shutil.copytree(ROOT / shelf, tmp_path / shelf)
    command = tmp_path / "bin" / "evo2"
    command.parent.mkdir()
    paths = ":".join(str(ROOT / shelf) for shelf in (".", "models", "kernels"))
    command.write_text(f'#!/bin/sh\nPYTHONPATH={paths} exec {sys.executable} -m evo2cli "$@"\n')
    command.chmod(0o755)
    return tmp_path


@pytest.fixture
def quick_clone(clone: Path) -> Iterator[Path]:
    """The same, with an `evo2` that is forked: most commands of the docs take less than a start."""
    with forked_evo2(clone / "bin" / "evo2"):
        yield clone


def run(command: str, clone: Path) -> str:
    path = f"{clone / 'bin'}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=clone,
        env={**os.environ, "PATH": path, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def is_shown(shown: str, printed: str) -> bool:
    """Whether a printed line is the one that a page shows."""
    if shown.endswith("..."):
        words = shown.removesuffix("...").split()
        printed_words = printed.split()[: len(words)]
        shown, printed = " ".join(words), " ".join(printed_words)
    if NUMBER.sub("#", " ".join(shown.split())) != NUMBER.sub("#", " ".join(printed.split())):
        return False
    numbers = zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True)
    return all(
        math.isclose(*map(_value, pair), rel_tol=RELATIVE, abs_tol=ABSOLUTE) for pair in numbers
    )


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def sessions() -> list[Any]:
    """The console blocks of all pages, those together whose commands are the first of another's."""
    found: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for block in blocks("console"):
        _, text = block.values
        pieces = [piece.partition("\n") for piece in re.split(r"^\$ ", text, flags=re.M)[1:]]
        commands = tuple(command for command, _, _ in pieces)
        found.setdefault(commands, {})[block.id] = [shown for _, _, shown in pieces]
    for commands in sorted(found, key=len):
        longer = (each for each in found if len(each) > len(commands))
        if whole := next((each for each in longer if each[: len(commands)] == commands), None):
            found[whole] |= found.pop(commands)
    return [pytest.param(*each, id="=".join(each[1])) for each in found.items()]


@pytest.mark.slow
@pytest.mark.parametrize(("commands", "blocks"), sessions())
def test_a_console_block_prints_what_it_shows(
    commands: tuple[str, ...], blocks: dict[str, list[str]], quick_clone: Path
) -> None:
    for index, command in enumerate(commands):
        printed = run(command, quick_clone).splitlines()
        for block, pieces in blocks.items():
            for line in "".join(pieces[index : index + 1]).splitlines():
                if line.strip() not in ("", "..."):
                    assert any(is_shown(line, other) for other in printed), (
                        f"{block}: {command}\n{line}\nis not in\n" + "\n".join(printed)
                    )


# PEFT 0.21 asks transformers 5.24 by names that it has deprecated.
@pytest.mark.filterwarnings("ignore:.*_gradient_checkpointing. is deprecated")
@pytest.mark.parametrize(
    "page", [p for p in PAGES if "```python\n" in p.read_text()], ids=lambda p: p.stem
)
def test_python_blocks_run(page: Path, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    namespace: dict[str, object] = {}
    text = page.read_text()
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        line = text.count("\n", 0, match.start()) + 1
        exec(compile("\n" * line + match[1], str(page), "exec"), namespace)  # noqa: S102


def commands_of(block: str) -> Iterator[list[str]]:
    """The words of each `evo2` command in a shell block."""
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a line of output with a lone quote
            continue
        commands = itertools.groupby(words, lambda word: set(word) <= set("();<>|&"))
        yield from (
            command
            for is_operator, group in commands
            if not is_operator and (command := list(group))[0] == "evo2"
        )


@pytest.mark.parametrize(("page", "block"), [*blocks("sh"), *blocks("console")])
def test_commands_have_the_options_they_are_given(page: Path, block: str) -> None:
    for words in commands_of(block):
        command, rest = get_command(app), words[1:]
        while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
            assert rest[0] in command.commands, f"{page.name}: {words}"
            command = command.commands[rest.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        known |= {"-h", "--help"}
        for word in rest:
            option = word.partition("=")[0]
            if re.match(r"--[a-z]|-[A-Za-z]$", option):
                assert option in known, f"{page.name}: {words}"


def test_the_reference_is_true() -> None:
    assert PAGE.read_text() == reference()


def test_the_first_command_scores_every_variant(clone: Path) -> None:
    command = re.search(r"pip install \. && (evo2 score .*)", PAGES[0].read_text())
    assert command is not None
    run(command[1], clone)
    records = [
        line for line in (clone / "scored.vcf").read_text().splitlines() if not line.startswith("#")
    ]
    assert len(records) >= 30
    assert all("EVO2_STATUS=" in record for record in records)


def test_the_second_command_is_what_ci_runs() -> None:
    assert "pip install -e '.[test]' && pytest" in PAGES[0].read_text()
    assert "pip install -e '.\\[test\\]'" in (ROOT / ".ci" / "run").read_text()


def test_the_readme_is_short() -> None:
    assert len(PAGES[0].read_text().splitlines()) <= 200


def test_the_file_tree_is_true() -> None:
    tree = PAGES[0].read_text().rpartition("## Files")[2]
    folders: list[str] = []
    for line in re.findall(r"^( *)(\S+) {2,}\S", tree, flags=re.MULTILINE):
        depth = len(line[0]) // 2
        folders = [*folders[:depth], line[1]]
        assert (ROOT / "/".join(folders)).exists(), line[1]
    assert folders


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda p: p.stem
)
def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_days_of_gpus_follow_from_what_was_measured_and_name_the_card() -> None:
    measured = (ROOT / "tests/benchmarks/results/variants.md").read_text()
    (card,) = re.findall(r"NVIDIA (\w+), torch", measured)
    table = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs/tracks.md").read_text().splitlines()
        if line.startswith("|")
    ]
    head = next(row for row in table if row[0] == card)
    rows = table[table.index(head) + 2 :][:2]
    for windows, *cells in rows:
        numbers = [float(cell) for cell in cells]
        for model, rate, days in zip(("1b_base", "7b"), numbers[::2], numbers[1::2], strict=True):
            assert re.search(
                rf"\| evo2_{model} \| {windows.split()[-1]} \| \d+ \| {rate} \|", measured
            )
            assert days == round(100e6 / rate / 86_400)


@pytest.mark.slow
def test_a_wheel_holds_everything(tmp_path: Path) -> None:
    """Installed without the checkout, the model, the shapes and the recipes are found."""
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
    subprocess.run([*command, str(ROOT)], check=True)
    code = (
        "import evo2cli, stripedhyena2, sys\n"
        "from pathlib import Path\n"
        "from evo2cli.training.recipe_file import find_recipe, read_recipe, read_shape\n"
        "recipe = find_recipe(Path('recipes/nano.toml'))\n"
        "shape = read_shape(read_recipe(recipe))\n"
        "assert stripedhyena2.load('nano').config == shape\n"
        "from stripedhyena2.checkpoint.published import published_config\n"
        "assert published_config('evo2_40b').depth == 50\n"
        "from evo2cli.pages import read_asset\n"
        "assert all(map(read_asset, ('serve.html', 'report.html', 'style.css', 'dom.js')))\n"
        "print(evo2cli.__file__)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(target))
