"""Tables of labelled sequences: whatever the file, the same examples."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from evo2cli.errors import UserError
from evo2cli.finetune.examples import (
    Examples,
    Genome,
    fit_length,
    read_examples,
    read_sequences,
)
from evo2cli.finetune.tasks import NO_LABEL, Cut, Labels, Task
from evo2cli.genome.reference import Reference

Row = dict[str, Any]


def write(path: Path, rows: list[Row]) -> Path:
    names = list(rows[0])
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.table({n: [row[n] for row in rows] for n in names}), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t")
            writer.writerows([names, *([row[name] for name in names] for row in rows)])
    return path


def same(one: Examples, other: Examples) -> bool:
    fields = ("names", "sequences", "pairs", "chromosomes", "groups", "split")
    if any(getattr(one, field) != getattr(other, field) for field in fields):
        return False
    labels = (one.labels, other.labels)
    if isinstance(labels[0], list):
        return all(map(np.array_equal, *labels))
    return np.array_equal(*labels)


DNA = st.text("ACGT", min_size=2, max_size=9)


@settings(max_examples=25)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "Sequence": DNA,
                "label": st.sampled_from(["donor", "acceptor"]),
                "chrom": st.sampled_from(["1", "X"]),
                "group": st.sampled_from(["g", "h"]),
                "split": st.sampled_from(["train", "dev", "test"]),
                "name": st.text("abc", min_size=1, max_size=3),
                "other": st.integers(),
            }
        ),
        min_size=2,
        max_size=6,
    ).filter(lambda rows: len({row["label"] for row in rows}) == 2)
)
def test_a_table_written_back_gives_the_same_examples(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row]
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    kinds = ["tsv", "csv", "jsonl", "parquet"]
    examples, labels = read_examples(write(folder / "x.tsv", rows), task=Task.CLASSIFY)
    back = [
        {
            "Sequence": examples.sequences[i],
            "label": labels.classes[examples.labels[i]],
            "chrom": examples.chromosomes[i],
            "group": examples.groups[i],
            "split": examples.split[i],
            "name": examples.names[i],
        }
        for i in range(len(examples))
    ]
    for kind in kinds:
        again, explanation = read_examples(write(folder / f"back.{kind}", back), task=Task.CLASSIFY)
        assert same(again, examples)
        assert explanation == labels


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("rows", "task", "wanted"),
    [
        ([{"seq": "AC", "y": 1}, {"seq": "GT", "y": 0}], Task.CLASSIFY, [1, 0]),
        ([{"seq": "AC", "y": v / 7} for v in range(9)], Task.REGRESS, [[v / 7] for v in range(9)]),
        (
            [{"seq": "AC", "labels": ["a"]}, {"seq": "GT", "labels": ["b", "a"]}],
            Task.MULTILABEL,
            [[1, 0], [1, 1]],
        ),
        (
            [{"seq": "ACG", "labels": [1, 0, -100]}, {"seq": "GT", "labels": [1, 1]}],
            Task.TOKENS,
            [[1, 0, NO_LABEL], [1, 1]],
        ),
        (
            [{"seq": "ACG", "label": "EI."}, {"seq": "GT", "label": "II"}],
            Task.TOKENS,
            [[0, 1, NO_LABEL], [1, 1]],
        ),
    ],
    ids=["numbers", "regress", "lists", "tokens", "letters"],
)
def test_every_kind_of_file_and_label_is_read(
    tmp_path: Path, kind: str, rows: list[Row], task: Task, wanted: list[Any]
) -> None:
    examples, labels = read_examples(write(tmp_path / f"x.{kind}", rows))
    assert labels.task is task
    for found, label in zip(examples.labels, wanted, strict=True):
        np.testing.assert_allclose(found, label, rtol=1e-6)


@pytest.mark.parametrize(
    "names", [("sequence_a", "sequence_b"), ("ref_seq", "var_seq"), ("REF", "ALT")]
)
def test_pairs_are_read_from_two_columns(tmp_path: Path, names: tuple[str, str]) -> None:
    rows = [{names[0]: "ac", names[1]: "gu", "label": label} for label in "xy"]
    examples, _ = read_examples(write(tmp_path / "x.csv", rows))
    assert examples.entries == [("AC", "GT")] * 2


def test_sequences_are_read_without_labels(tmp_path: Path) -> None:
    single = write(tmp_path / "x.csv", [{"id": "a", "seq": "acu"}, {"id": "b", "seq": "G"}])
    assert list(read_sequences(single)) == [("a", (b"ACT",)), ("b", (b"G",))]
    pairs = write(tmp_path / "x.jsonl", [{"ref": "A", "alt": "C"}])
    assert list(read_sequences(pairs)) == [("1", (b"A", b"C"))]
    with pytest.raises(UserError, match="has no column 'sequence'"):
        list(read_sequences(write(tmp_path / "y.csv", [{"label": "a"}])))


def test_variants_are_pairs_of_windows_of_a_genome(tmp_path: Path) -> None:
    fasta = tmp_path / "genome.fa"
    fasta.write_text(">chr1\nAAAACCCCGGGGTTTT\n")
    rows = [
        {"chrom": "1", "pos": 8, "ref": "C", "alt": "t", "label": "x"},
        {"chrom": "chr1", "pos": 8, "ref": "C", "alt": "CAA", "label": "y"},
    ]
    path = write(tmp_path / "x.tsv", rows)
    with Reference.open(fasta) as reference:
        genome = Genome(reference, 6)
        examples, _ = read_examples(path, genome=genome)
        assert examples.entries == [("CCCCGG", "CCCTGG"), ("CCCCGG", "CCCCAA")]
        assert examples.chromosomes == ["1", "chr1"]
        assert next(read_sequences(path, genome)) == ("2", (b"CCCCGG", b"CCCTGG"))
        for change, message in (
            ({"ref": "G"}, "line 2: ref is G, but the genome has C at 1:8; is it the right build"),
            ({"chrom": "9"}, "line 2: the genome has no contig 9"),
            ({"pos": "99"}, "line 2: 1:99 C>t is not a variant of the genome"),
            ({"alt": "<DEL>"}, "line 2: '<' at position 1"),
            ({"alt": "ACGTACGT"}, "line 2: the variant is too long for a window of 6 bases"),
        ):
            wrong = write(tmp_path / "y.tsv", [rows[0] | change])
            with pytest.raises(UserError, match=message):
                read_examples(wrong, genome=genome)


def test_several_columns_of_labels_are_chosen_by_name(tmp_path: Path) -> None:
    rows = [{"sequence": "AC", "a": 0.5, "B": 2, "label": 1}] * 2
    path = write(tmp_path / "x.tsv", rows)
    examples, labels = read_examples(path, label_columns=["b", "a"])
    assert labels.classes == ("B", "a")
    assert examples.labels.tolist() == [[2, 0.5]] * 2


def test_separate_files_are_a_split_and_share_their_classes(tmp_path: Path) -> None:
    paths = {
        "train": write(tmp_path / "a.csv", [{"sequence": "AC", "label": x} for x in "pqr"]),
        "test": write(tmp_path / "b.jsonl", [{"label": "r", "sequence": "GT", "split": "train"}]),
    }
    examples, labels = read_examples(paths, task=Task.CLASSIFY)
    assert labels.classes == ("p", "q", "r")
    assert examples.split == ["train"] * 3 + ["test"]
    assert examples.labels.tolist() == [0, 1, 2, 2]


def test_labels_of_a_known_model_are_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", [{"sequence": "AC", "label": "q"}])
    known = Labels(Task.CLASSIFY, ("p", "q"))
    assert read_examples(path, labels=known)[0].labels.tolist() == [1]
    with pytest.raises(UserError, match="line 2: label 'q' is not one of the classes p, r"):
        read_examples(path, labels=Labels(Task.CLASSIFY, ("p", "r")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "dna,label\n",
            "has no column 'sequence' (or seq), and no pair such as sequence_a and "
            "sequence_b; its columns: dna, label",
        ),
        (
            "sequence,kind\n",
            "has no column 'label' (or labels, target, y); its columns: sequence, kind",
        ),
        ("seq,label,y\n", "has both label and y; choose by --label-cols; its columns"),
        ("chrom,pos,ref,alt,label\n", "ref and alt hold alleles; give the genome"),
        ("seq,label\n", "has no rows"),
        ("seq,label\nAC,1\n,0\n", "line 3: the sequence is empty"),
        ("seq,label\nMKV,1\n", "line 2: 'V' at position"),
        ("seq,label\nAXC,1\n", "line 2: 'X' at position 2: not a nucleotide letter"),
        ("seq,label\nAC,1\nAC,\n", "line 3: label is empty; give it a value or remove the row"),
        ("seq\tlabel\nAC\t[0\n", "line 2: label '[0' looks like a list, but cannot be parsed"),
        ("seq,label,split\nAC,1,trial\n", "line 2: split 'trial' is not train"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_in_one_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_examples(path)
    if "MKV" not in text:
        assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_unknown_columns_are_refused_with_those_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", [{"sequence": "AC", "label": "q"}])
    with pytest.raises(UserError, match="has no column 'score'; its columns: sequence, label"):
        read_examples(path, label_columns=["score"])
    with pytest.raises(UserError, match="has no column 'family'; its columns: sequence, label"):
        read_examples(path, group_column="family")


@pytest.mark.parametrize(
    ("cut", "wanted"), [(Cut.CENTRE, "CGT"), (Cut.START, "ACG"), (Cut.END, "GTA")]
)
def test_long_sequences_are_cut_with_their_labels_and_it_is_said(cut: Cut, wanted: str) -> None:
    tokens = [np.arange(5), np.arange(2)]
    examples = Examples(["1", "2"], ["ACGTA", "AC"], labels=tokens)
    found, said = fit_length(examples, 3, cut)
    assert found.sequences == [wanted, "AC"]
    start = {"CGT": 1, "ACG": 0, "GTA": 2}[wanted]
    assert [list(labels) for labels in found.labels] == [[start, start + 1, start + 2], [0, 1]]
    assert said is not None
    assert said.startswith("1 of 2 sequences: longer than the window of 3 bases (up to 5)")
    assert fit_length(examples, 5, cut) == (examples, None)


def test_taken_rows_keep_all_that_belongs_to_them() -> None:
    tokens = [np.arange(2), np.arange(2) + 5]
    examples = Examples(
        ["a", "b"], ["AC", "GT"], ["A", "C"], tokens, ["1", "2"], None, ["test"] * 2
    )
    found = examples.take(np.array([1]))
    assert (found.names, found.entries, found.chromosomes) == (["b"], [("GT", "C")], ["2"])
    assert found.labels[0].tolist() == [5, 6]
