"""The data of the exon benchmark: labels are those of the annotation, and a file keeps them."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import exons
from tests.benchmarks.exons import AROUND, KMER, SPAN, Region, Windows, around, build, read, write

WIDTH, OFFSET, LENGTH = 50, 1000, 3000
GENES = [  # name, strand, start, end, exons
    ("one", "+", 1100, 1400, [(1100, 1130), (1220, 1290)]),
    ("two", "-", 1500, 1850, [(1510, 1560), (1800, 1850)]),
    ("inside two", "+", 1600, 1700, [(1600, 1640)]),
    ("three", "-", 2000, 2400, [(2090, 2140), (2250, 2260)]),
    ("across the end", "+", 2800, 3100, [(2800, 2900)]),
]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    """A corpus with the bases 1,000 to 3,000 of chromosome 7, an annotation, and these bases."""
    bases = np.random.default_rng(0).choice(np.frombuffer(b"ACGT", np.uint8), LENGTH)
    with gzip.open(tmp_path / "part.fa.gz", "wb") as file:
        file.write(b">7:1001-3000\n" + bases[OFFSET:].tobytes() + b"\n")
    region = Region("part.fa.gz", "7", OFFSET, OFFSET, LENGTH, 1000)
    monkeypatch.setattr(exons, "REGIONS", {"train": region})
    lines = ["#NAME\tCHROM\tSTRAND\tTX_START\tTX_END\tEXON_START\tEXON_END"]
    for name, strand, start, end, spans in GENES:
        starts, ends = ("".join(f"{each}," for each in side) for side in zip(*spans, strict=True))
        lines.append(f"{name}\t7\t{strand}\t{start}\t{end}\t{starts}\t{ends}")
    lines.append("elsewhere\t8\t+\t1100\t1200\t1100,\t1200,")
    (tmp_path / "annotation.txt").write_text("\n".join(lines) + "\n")
    return tmp_path, bases


def test_labels_are_those_of_the_annotation(small: tuple[Path, np.ndarray]) -> None:
    folder, bases = small
    windows = build(folder / "annotation.txt", folder, WIDTH)["train"]
    found = {}
    for codes, labels in zip(windows.codes, windows.labels, strict=True):
        found[np.frombuffer(b"ACGT", np.uint8)[codes].tobytes()] = labels.tolist()
    expected = {}
    for name, strand, start, end, spans in GENES:
        if name in ("inside two", "across the end"):
            continue
        for first in range(start, end - WIDTH + 1, WIDTH):
            positions = range(first, first + WIDTH)
            labels = [any(a <= position < b for a, b in spans) for position in positions]
            sequence = bases[first : first + WIDTH].tobytes()
            if strand == "-":
                complement = bytes.maketrans(b"ACGT", b"TGCA")
                sequence, labels = sequence.translate(complement)[::-1], labels[::-1]
            expected[sequence] = labels
    assert len(found) == len(windows.names) > 10
    assert all(expected[sequence] == labels for sequence, labels in found.items())
    with_exon = windows.labels.any(axis=1)
    assert with_exon.sum() == (~with_exon).sum()


@pytest.mark.parametrize("width", [8, 13])
def test_a_file_keeps_all_windows(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(width)
    windows = Windows(
        ["a", "b:1-2(+)", "c"],
        generator.integers(4, size=(3, width)).astype(np.uint8),
        generator.random((3, width)) < 0.5,
    )
    monkeypatch.setattr(exons, "REGIONS", {"train": exons.REGIONS["train"]})
    write({"train": windows}, tmp_path / "x.npz")
    again = read(tmp_path / "x.npz")["train"]
    assert again.names == windows.names
    np.testing.assert_array_equal(again.codes, windows.codes)
    np.testing.assert_array_equal(again.labels, windows.labels)


def test_features_are_the_bases_and_words_around() -> None:
    codes = np.random.default_rng(1).integers(4, size=150).astype(np.uint8)
    found = around(codes)
    for position in (0, 3, 70, 149):
        expected = np.zeros(((2 * AROUND + 1), 4))
        for offset in range(-AROUND, AROUND + 1):
            if 0 <= position + offset < len(codes):
                expected[offset + AROUND, codes[position + offset]] = 1
        words = np.zeros(4**KMER)
        low, high = max(0, position - SPAN), min(position + SPAN, len(codes))
        for start in range(low, min(high, len(codes) - KMER + 1)):
            words[int("".join(map(str, codes[start : start + KMER])), 4)] += 1
        row = np.concatenate([expected.ravel(), words / (high - low)])
        np.testing.assert_allclose(found[position], row, atol=1e-6)
