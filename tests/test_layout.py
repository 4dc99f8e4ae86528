"""The house rules that can be executed."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.rooms import FLOORS, ROOMS, arrows, file_arrows, picture

ROOT = Path(__file__).parents[1]
PACKAGES = ["evo2cli", "models/stripedhyena2", "kernels/hyenakernels"]
MODULES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def test_shelves_are_not_packages() -> None:
    for shelf in ("models", "kernels", "recipes", "tests"):
        assert not (ROOT / shelf / "__init__.py").exists(), shelf


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_only_the_console_prints(file: Path) -> None:
    if file.name == "console.py":
        return
    names = {
        node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)
    }
    assert "print" not in names


def test_lower_floors_name_no_option_of_the_command_line() -> None:
    """Their errors reach callers of Python too, who know `config=` but not `--config`."""
    named = {
        f"{file.relative_to(ROOT)}:{node.lineno}: {node.value}"
        for file in MODULES
        if not file.is_relative_to(ROOT / "evo2cli")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and re.search("--[a-z]", str(node.value))
    }
    assert not named


def test_a_command_its_room_and_its_tests_share_a_name() -> None:
    for file in (ROOT / "evo2cli" / "commands").glob("[a-z]*.py"):
        name = file.stem
        room = ROOT / "evo2cli"
        assert (room / name).is_dir() or (room / f"{name}.py").is_file(), name
        tests = ROOT / "tests" / "evo2cli"
        assert (tests / name).is_dir() or (tests / f"test_{name}.py").is_file(), name


def test_no_arrow_points_up() -> None:
    order = ROOMS["evo2cli"]
    found = arrows("evo2cli")
    assert sorted(found) == sorted(order)
    up = {
        f"{room} imports {other}"
        for room, others in found.items()
        for other in others
        if order.index(other) >= order.index(room)
    }
    assert not up


def test_rooms_of_the_model_form_no_circle() -> None:
    tuple(TopologicalSorter(arrows("stripedhyena2")).static_order())  # raises CycleError


@pytest.mark.parametrize("floor", FLOORS)
def test_files_form_no_circle(floor: str) -> None:
    """The definition in an operator's folder may be used by operators that its `op.py` uses."""
    tuple(TopologicalSorter(file_arrows(floor)).static_order())  # raises CycleError


def test_the_picture_of_the_rooms_is_true() -> None:
    assert picture("evo2cli") in (ROOT / "docs" / "development.md").read_text()


@pytest.mark.parametrize(
    ("start", "heavy"),
    [
        ("import evo2cli.app", {"torch", "numpy", "pydantic", "Bio", "pysam", "stripedhyena2"}),
        (
            "import evo2cli.score.run; from stripedhyena2 import load; load('nano')",
            {"sympy", "torch._dynamo", "torch.distributed.checkpoint", "huggingface_hub.hf_api"},
        ),
        (
            "from evo2cli.plan.run import PlanOptions, plan_recipe; from pathlib import Path; "
            "plan_recipe(PlanOptions(recipe=Path('1b'), gpus=1))",
            {"sympy", "torch._dynamo", "triton"},
        ),
    ],
    ids=["help", "a local model", "a plan"],
)
def test_a_start_imports_no_heavy_package(start: str, heavy: set[str]) -> None:
    """With torch, those of the second row take twice as long to import as torch alone."""
    code = f"{start}\nimport sys\nprint(*sorted({heavy} & sys.modules.keys()))"
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
        for name in ("train", "wandb", "plots", "parquet", "bigwig", "probe", "hf", "serve")
        for line in extras[name]
    }
    # Triton comes with the torch that needs it, and is imported only where there is a GPU; torch
    # itself imports TensorBoard, and transformers accelerate.
    assert needed - {"triton"} == declared | optional - {"tensorboard", "accelerate"}
