"""The house rules that can be executed."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ["evo2cli", "models/stripedhyena2", "kernels/hyenakernels"]
MODULES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def test_shelves_are_not_packages() -> None:
    for shelf in ("models", "kernels", "recipes", "tests"):
        assert not (ROOT / shelf / "__init__.py").exists(), shelf


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_and_a_function_have_their_size(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            code_starts = node.body[1].lineno if len(node.body) > 1 else node.body[0].lineno
            # A Triton kernel is one straight walk that cannot be cut without passing it all on.
            most = 100 if any("triton.jit" in ast.unparse(d) for d in node.decorator_list) else 40
            assert (node.end_lineno or 0) - code_starts < most, node.name


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_only_the_console_prints(file: Path) -> None:
    if file.name == "console.py":
        return
    names = {
        node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)
    }
    assert "print" not in names


def test_a_command_has_its_workflow_and_its_test() -> None:
    for command in (ROOT / "evo2cli" / "commands").glob("[a-z]*.py"):
        assert (ROOT / "evo2cli" / "workflows" / command.name).is_file()
        assert (ROOT / "tests" / "evo2cli" / f"test_{command.name}").is_file()


def test_help_imports_no_heavy_package() -> None:
    code = (
        "import sys, evo2cli.app\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'Bio', 'pysam', 'stripedhyena2'}\n"
        "print(*sorted(heavy & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == ""


def test_dependencies_are_what_is_imported() -> None:
    imported = {
        name.partition(".")[0]
        for file in MODULES
        for node in ast.walk(ast.parse(file.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    own = {"evo2cli", "stripedhyena2", "hyenakernels", "__future__"}
    distributions = {"Bio": "biopython", "yaml": "pyyaml", "sklearn": "scikit-learn"}
    needed = {
        distributions.get(name, name).replace("_", "-")
        for name in imported - own - set(sys.stdlib_module_names)
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {line.partition(">")[0] for line in project["dependencies"]}
    extras = project["optional-dependencies"]
    optional = {
        line.partition(">")[0]
        for name in ("train", "plots", "parquet", "bigwig", "probe")
        for line in extras[name]
    }
    # Triton comes with the torch that needs it, and is imported only where there is a GPU; torch
    # itself imports TensorBoard.
    assert needed - {"triton"} == declared | optional - {"tensorboard"}
