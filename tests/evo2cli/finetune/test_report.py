"""The printed results of a run have a row each, and the F1 of each class."""

from typing import Any

import pytest
from rich.console import Console

from evo2cli.finetune.report import MAX_METRICS, report_page


def printed(report: dict[str, Any]) -> list[str]:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(report_page(report))
    return [line.rstrip() for line in capture.get().splitlines()]


def report(classes: list[str]) -> dict[str, Any]:
    metrics = {"macro_f1": [0.5, 0.4, 0.6], **{f"f1 {name}": [0.25, 0.2, 0.3] for name in classes}}
    return {
        "task": "tokens",
        "method": "lora",
        "results": {"chance": {"macro_f1": [0.1, 0.1, 0.1]}, "model": metrics},
        "best": {"step": 7},
        "base": {"model": "nano", "layer": "blocks.3"},
        "examples": {"test": 12},
        "part": "test",
        "memory_gib": None,
        "parameters": 5,
        "steps": 9,
        "seconds": 1.0,
        "output": "run",
    }


def test_the_f1_of_each_class_stands_in_a_table_of_its_own() -> None:
    lines = printed(report(["none", "donor site"]))
    assert lines[0].split() == ["on", "12", "test", "examples", "macro_f1"]
    assert lines[4].split() == ["F1", "of", "each", "class", "none", "donor", "site"]
    assert lines[5].split() == ["chance", ".", "."]
    assert lines[6].split() == ["model", "0.250", "[0.200,", "0.300]"] + [
        "0.250",
        "[0.200,",
        "0.300]",
    ]
    assert "more classes" not in " ".join(lines)


@pytest.mark.parametrize("count", [MAX_METRICS, MAX_METRICS + 3])
def test_many_classes_are_counted(count: int) -> None:
    text = "\n".join(printed(report([f"c{index}" for index in range(count)])))
    assert ("3 more classes: report.json" in text) == (count > MAX_METRICS)


def test_numbers_have_no_f1() -> None:
    found = report([])
    assert "F1" not in "\n".join(printed(found))
