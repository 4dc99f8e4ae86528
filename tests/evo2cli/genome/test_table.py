"""Tables have the same rows in every format."""

import csv
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from evo2cli.errors import UserError
from evo2cli.genome.table import cell_text, open_table

ROWS = [
    {"sequence": "ACGT" * 50_000, "label": 1, "list": [1, 0]},  # longer than a cell of csv may be
    {"sequence": "A", "label": 2, "list": []},
]


def write(path: Path) -> Path:
    names = list(ROWS[0])
    if path.suffix == ".jsonl":
        path.write_text("\n" + "\n".join(map(json.dumps, ROWS)) + "\n\n")
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.table({n: [row[n] for row in ROWS] for n in names}), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t")
            writer.writerows([names, *(row.values() for row in ROWS)])
    return path


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "parquet"])
def test_every_format_has_the_same_rows(tmp_path: Path, kind: str) -> None:
    table = open_table(write(tmp_path / f"x.{kind}"))
    assert table.names == list(ROWS[0])
    found = [[cell_text(cell) for cell in row] for _, row in table.rows]
    assert found == [[row["sequence"], str(row["label"]), str(row["list"])] for row in ROWS]


@pytest.mark.parametrize(
    "text",
    [
        "#name\ty1\ty2\na\t1\t0\n",  # without its names, a row could be an interval
        "#!made by x\n##\n\nname,y1,y2\na,1,0\n",
        '{"name": [1, 2, 3, 4], "y1": 1, "y2": 0}\n',
    ],
)
def test_a_row_that_could_be_an_interval_is_one_of_a_table_that_names_its_columns(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "x"
    path.write_text(text)
    table = open_table(path)
    assert table.names[1:] == ["y1", "y2"]
    assert len(list(table.rows)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,a\n", "two columns have the same name: a, b, a"),
        ("a\tb\n1\n", "line 2: 1 column, but the first line names 2"),
        ('{"a": 1}\n\n{"b": 1}\n', "line 3: has no 'a', as the first has"),
        ('{"a": 1}\n[1]\n', "line 2: not a JSON object"),
        ('{"a": 1}\n{"a"\n', "line 2: broken JSON"),
        ("\n", "has no line with the names of columns"),
    ],
)
def test_an_invalid_table_is_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        list(open_table(path).rows)
    assert str(caught.value).startswith(f"{path}: {message}")
