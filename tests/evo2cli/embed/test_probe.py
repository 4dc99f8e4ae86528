"""`evo2 embed --probe`: finds the layer that predicts a label, and none for a random label."""

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from evo2cli.app import app
from evo2cli.embed.probe import (
    Labelled,
    match_labels,
    probe_layers,
    probe_page,
    read_labels,
)
from evo2cli.errors import UserError

NUM, WIDTH = 90, 12


def planted(values: list, groups: list[str] | None = None) -> tuple[dict, Labelled]:
    """Random layers, one of which holds the label in a direction of its own; and the labels."""
    generator = np.random.default_rng(0)
    layers = {name: generator.normal(size=(NUM, WIDTH)) for name in ("low", "planted", "high")}
    for row, value in enumerate(values):
        if isinstance(value, float):
            layers["planted"][row, 0] += 4 * value
        else:
            layers["planted"][row, sorted(set(values)).index(value)] += 4
    vectors = {name: layer.astype(np.float32) for name, layer in layers.items()}
    return vectors, Labelled(list(range(NUM)), values, groups)


def scores(vectors: dict, labelled: Labelled, **options) -> dict[str, float]:
    result = probe_layers(vectors, labelled, **{"folds": 5, "seed": 0, **options})
    assert result["best"] == max(result["rows"], key=lambda row: row["score"])["layer"]
    return {row["layer"]: row["score"] for row in result["rows"]}


@pytest.mark.parametrize(
    ("values", "metric", "chance"),
    [
        (["no", "yes"] * (NUM // 2), "AUROC", 1 / 2),
        (["x", "y", "z"] * (NUM // 3), "balanced accuracy", 1 / 3),
        ([float(row % 9) for row in range(NUM)], "R2", 0.0),
    ],
    ids=["two", "three", "numbers"],
)
def test_the_planted_layer_is_found_and_others_are_at_chance(
    values: list, metric: str, chance: float
) -> None:
    vectors, labelled = planted(values)
    assert (labelled.metric, labelled.chance) == (metric, chance)
    found = scores(vectors, labelled)
    assert found["planted"] > 0.95
    for layer in ("low", "high"):
        assert found[layer] < chance + 0.15
    shuffled = [values[row] for row in np.random.default_rng(1).permutation(NUM)]
    for score in scores(vectors, Labelled(labelled.rows, shuffled, None)).values():
        assert score < chance + 0.15


def test_a_layer_that_encodes_only_the_group_does_not_predict_other_groups() -> None:
    """Near-copies in both parts of a split inflate the score; groups keep them together."""
    generator, homes = np.random.default_rng(0), [str(row // 3) for row in range(NUM)]
    of_home = generator.permutation(["no", "yes"] * (NUM // 6))
    values = [str(of_home[row // 3]) for row in range(NUM)]
    centres = {home: generator.normal(size=WIDTH * 3) for home in homes}
    noise = 0.1 * generator.normal(size=(NUM, WIDTH * 3))
    vectors = {"home": np.stack([centres[home] for home in homes]) + noise}
    assert scores(vectors, Labelled(list(range(NUM)), values, None))["home"] > 0.9
    assert scores(vectors, Labelled(list(range(NUM)), values, homes))["home"] < 0.7


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def match(tmp_path: Path, labels: str, names: list[str], folds: int = 5) -> Labelled:
    path = write(tmp_path / "labels.tsv", labels)
    labelled = match_labels(path, read_labels(path), names)
    labelled.folds(folds, 0)
    return labelled


def test_labels_match_their_rows_in_any_order(tmp_path: Path) -> None:
    lines = [f"n{number}\t{'ab'[number % 2]}\tg{number // 4}\n" for number in range(40)]
    names = [f"n{number}" for number in range(10, 50)]
    head = "# a remark\nName\tlabel\tgroup\n"
    found = match(tmp_path, head + "".join(lines), names)
    again = match(tmp_path, head + "".join(lines[::-1]), names[::-1])
    rows = [(names[row], value) for row, value in zip(found.rows, found.values, strict=True)]
    assert sorted(rows) == rows == [(f"n{number}", "ab"[number % 2]) for number in range(10, 40)]
    assert [names[::-1][row] for row in again.rows] == [name for name, _ in rows]
    assert (again.values, again.groups) == (found.values, found.groups)
    for (train, test), other in zip(found.folds(5, 0), again.folds(5, 0), strict=True):
        assert (train.tolist(), test.tolist()) == tuple(part.tolist() for part in other)
        homes = [{found.groups[row] for row in part} for part in (train, test)]
        assert homes[0].isdisjoint(homes[1])
    numbers = "".join(f"n{number}\t{number / 7}\n" for number in range(40))
    assert match(tmp_path, numbers, names).classes == {}
    zeros = "".join(f"n{number}\t{number % 2}\n" for number in range(40))
    assert match(tmp_path, zeros, names).classes == {"0": 15, "1": 15}


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ("", "abcd", "has no labels"),
        ("a\n", "abcd", "line 1: 1 column;"),
        ("a\tx\na\ty\n", "abcd", "line 2: 'a' already has a label"),
        ("a\tx\tg\nb\ty\n", "abcd", "some lines have a group and others do not"),
        ("e\tx\n", "abcd", r"none of its names \(1\) is the name of a vector: a, b, c"),
        ("a\tx\nb\ty\n", "abca", "two vectors are named 'a'"),
        ("a\tx\nb\tx\n", "ab", "all labels are 'x'"),
        ("a\tx\nb\tx\nc\ty\n", "abc", "the size of class 'y' is 1, too few for --folds 2"),
        ("a\t1\nb\t2\nc\t3\n", "abc", "the number of numeric labels is 3, too few for --folds 2"),
        ("a\tx\tg\nb\tx\tg\nc\ty\tg\nd\ty\tg\n", "abcd", "the number of groups is 1"),
        (
            "a\tx\tg\nb\tx\tg\nc\ty\th\nd\ty\th\n",
            "abcd",
            "a fold does not have rows of every",
        ),
    ],
    ids=lambda _: "",
)
def test_invalid_labels_are_refused(tmp_path: Path, labels: str, names: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        match(tmp_path, labels, list(names), folds=2)


def test_without_scikit_learn_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pip install 'evo2cli\[probe\]'"):
        match(tmp_path, "a\tx\nb\tx\nc\ty\nd\ty\n", list("abcd"), folds=2)


def test_from_a_fasta_to_a_table_and_a_figure(tmp_path: Path, checkpoint: str) -> None:
    """The embedding of letters predicts the composition of sequences."""
    generator = np.random.default_rng(0)
    fasta, labels = [], []
    for number in range(24):
        ending, label = (("GCGCGC", "rich"), ("ATATAT", "poor"))[number % 2]
        fasta.append(f">s{number}\n{''.join(generator.permutation([*'ACGT' * 6]))}{ending}\n")
        labels.append(f"s{number}\t{label}\n")
    source = write(tmp_path / "x.fa", "".join(fasta))
    table = write(tmp_path / "labels.tsv", "".join(labels))
    plot, output = tmp_path / "layers.png", tmp_path / "x.npz"
    words = ["embed", str(source), "--model", checkpoint, "--layers", "all", "--device", "cpu"]
    words += ["--probe", str(table), "--folds", "3", "--plot", str(plot), "-O", str(output)]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0
    probed = json.loads(result.stdout)["probe"]
    found = {row["layer"]: row["score"] for row in probed["rows"]}
    assert list(found) == ["embedding", *(f"blocks.{index}" for index in range(4)), "norm"]
    assert found["embedding"] == 1
    with np.load(output) as file:
        assert file["norm"].shape == (24, 24)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert sorted(tmp_path.iterdir()) == sorted([source, table, plot, output])
    page = Console(width=100, file=io.StringIO())
    page.print(probe_page(probed))
    shown = page.file.getvalue()
    assert "12 poor, 12 rich: AUROC, 3 folds, chance 0.5" in shown
    assert re.search(r"embedding +1\.000 ± 0\.000 +best\n", shown)
