"""The README's commands run, and show what it says they show."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)


def shape(text: str) -> str:
    """Text without what depends on machine and weights: numbers and DNA."""
    text = re.sub(r"\b[ACGT]{12,}\b", "DNA", text)
    text = re.sub(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?", "#", text)
    return re.sub(r"\s+", " ", text).strip()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a clone has, and an `evo2` on the path that runs this tree."""
    folder = tmp_path_factory.mktemp("clone")
    for shelf in ("examples", "recipes"):
        shutil.copytree(ROOT / shelf, folder / shelf)
    command = folder / "bin" / "evo2"
    command.parent.mkdir()
    paths = ":".join(str(ROOT / shelf) for shelf in (".", "models", "kernels"))
    command.write_text(f'#!/bin/sh\nPYTHONPATH={paths} exec {sys.executable} -m evo2cli "$@"\n')
    command.chmod(0o755)
    return folder


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


def test_the_first_command_scores_every_variant(clone: Path) -> None:
    command = re.search(r"pip install \. && (evo2 score .*)", README)
    assert command is not None
    run(command[1], clone)
    records = [
        line for line in (clone / "scored.vcf").read_text().splitlines() if not line.startswith("#")
    ]
    assert len(records) >= 30
    assert all("EVO2_STATUS=" in record for record in records)


def test_the_second_command_is_what_ci_runs() -> None:
    assert "pip install -e '.[test]' && pytest" in README
    assert "pip install -e '.\\[test\\]'" in (ROOT / ".ci" / "run").read_text()


def test_the_tour_shows_what_it_says(clone: Path) -> None:
    assert len(BLOCKS) >= 7
    for block in BLOCKS:
        for piece in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = piece.partition("\n")
            found = {shape(line) for line in run(command, clone).splitlines()}
            for line in shown.splitlines():
                assert not line.strip() or shape(line) in found, f"{command}: {line}"


def test_the_file_tree_is_true() -> None:
    tree = README.rpartition("## Files")[2]
    folders: list[str] = []
    for line in re.findall(r"^( *)(\S+) {2,}\S", tree, flags=re.MULTILINE):
        depth = len(line[0]) // 2
        folders = [*folders[:depth], line[1]]
        assert (ROOT / "/".join(folders)).exists(), line[1]


def test_linked_files_are_there() -> None:
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link).exists(), link


def test_a_wheel_holds_everything(tmp_path: Path) -> None:
    """Installed without the checkout, model, shapes and recipes are found."""
    target = tmp_path / "site"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            str(target),
            str(ROOT),
        ],
        check=True,
    )
    code = (
        "import evo2cli, stripedhyena2, sys\n"
        "from pathlib import Path\n"
        "from evo2cli.training.recipe_file import find_recipe, read_recipe, read_shape\n"
        "recipe = find_recipe(Path('recipes/nano.toml'))\n"
        "shape = read_shape(read_recipe(recipe), recipe)\n"
        "assert stripedhyena2.load('nano').config == shape\n"
        "from stripedhyena2.checkpoint.published import published_config\n"
        "assert published_config('evo2_40b').depth == 50\n"
        "print(evo2cli.__file__)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(target))
