"""Markov models of a corpus: the bits per base that a trained model has to beat.

    python -m tests.benchmarks.markov --data FOLDER

Counts the contexts of every order up to 12 on both strands of the genomes that `recipes/mini.toml`
trains on, and writes the bits per base of every order on each validation genome to
results/markov.md and results/markov.json. It takes two minutes on one CPU core, and 1.5 GB.
"""

import argparse
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evo2cli import console
from evo2cli.genome.fasta import read_records
from evo2cli.train.corpus import by_domain, genomes, train_files
from evo2cli.training.recipe import Corpus
from evo2cli.training.recipe_file import find_recipe, read_recipe

Integers = npt.NDArray[np.int64]
Letters = npt.NDArray[np.int8]  # 0 ... 3 for A, C, G, T; -1 for anything else
Counts = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

ORDERS = range(2, 13)
RESULTS = Path(__file__).parent / "results"
_PIECE = 1 << 23  # positions that are worked on at once
_BORDER: Letters = np.array([-1], np.int8)  # between records
_LETTER = np.full(256, -1, np.int8)
_LETTER[list(b"ACGT")] = _LETTER[list(b"acgt")] = range(4)


def letters_of(text: bytes | npt.NDArray[np.uint8]) -> Letters:
    """The letters of a sequence, in either case."""
    return _LETTER[np.frombuffer(text, np.uint8) if isinstance(text, bytes) else text]


def contexts(letters: Letters, order: int) -> tuple[Integers, Integers]:
    """The letters before each position as a base-4 number, the nearest lowest; and how many count.

    A letter counts when it and all between it and the position are A, C, G or T (not -1).
    """
    codes, given = np.zeros(len(letters), np.int64), 0
    power = np.concatenate([[0], np.maximum(letters[:-1], 0)])  # of the `width` letters before
    width = 1
    while given < order:
        if order & width:
            codes[given:] += power[: len(power) - given] << 2 * given
            given += width
        power[width:] += power[:-width] << 2 * width
        width *= 2
    places = np.arange(len(letters))
    blocks = np.where(letters < 0, places, -1)
    last_block = np.concatenate([[-1], np.maximum.accumulate(blocks)[:-1]])
    return codes, np.minimum(places - last_block - 1, order)


def add_counts(counts: Counts, letters: Letters) -> None:
    """Add how often each letter follows each full context to `counts`, [4**order, 4]."""
    order = order_of(counts)
    for start in range(0, len(letters), _PIECE):
        piece = letters[max(0, start - order) : start + _PIECE]
        codes, known = contexts(piece, order)
        use = (known == order) & (piece >= 0)
        pairs = 4 * codes[use] + piece[use]
        counts += np.bincount(pairs, minlength=counts.size).reshape(counts.shape).astype(np.int32)


def order_of(counts: Counts) -> int:
    """The order of a table of counts."""
    return round(math.log2(len(counts)) / 2)


def with_other_strand(counts: Counts) -> Counts:
    """The counts of both strands: a word counts as often as its reverse complement does, too.

    Args:
        counts: Of one strand, [4**order, 4].
    """
    size = order_of(counts) + 1
    # One axis for each letter of a word, the first letter first.
    words = counts.reshape((4,) * size)
    other = words.transpose(range(size - 1, -1, -1))[(slice(None, None, -1),) * size]
    return (words + other).reshape(counts.shape)


def of_order(counts: Counts, order: int) -> Integers:
    """The counts of a lower order, [4**order, 4]: those of all contexts with the same last letters.

    The first letters of a sequence, which have no full context, are not among them.
    """
    return counts.reshape(-1, 4**order, 4).sum(0, dtype=np.int64)


def surprises(counts: Integers | Counts, letters: Letters) -> Floats:
    """Bits of each letter under the counts plus one, with as many letters of context as there are.

    Positions without a letter get 0.
    """
    order = order_of(counts)
    codes, known = contexts(letters, order)
    bits = np.zeros(len(letters))
    for depth in range(order + 1):
        use = (known == depth) & (letters >= 0)
        if use.any():
            table = of_order(counts, depth) + 1
            rows = table[codes[use] % 4**depth]
            bits[use] = np.log2(rows.sum(1) / rows[np.arange(len(rows)), letters[use]])
    return bits


def read_letters(files: Iterable[Path]) -> Iterator[Letters]:
    """The letters of each record of FASTA files."""
    for file in files:
        for record in read_records(file):
            yield letters_of(record.sequence)


def count_corpus(corpus: Corpus, order: int) -> Counts:
    """Counts on both strands of the genomes that a corpus trains on."""
    counts = np.zeros((4**order, 4), np.int32)
    files = [file for group in train_files(corpus).values() for file in group]
    pending: list[Letters] = []  # a table is added up at once for many small records
    with console.progress("count", len(files), "files") as bar:
        for file in files:
            for letters in read_letters([file]):
                pending += [letters, _BORDER]
            if file is files[-1] or sum(map(len, pending)) > _PIECE:
                add_counts(counts, np.concatenate(pending))
                pending.clear()
            bar.advance(1)
    return with_other_strand(counts)


def measure(counts: Counts, corpus: Corpus, orders: Sequence[int]) -> list[dict[str, Any]]:
    """Bits per base of each order on each validation genome."""
    groups = by_domain(genomes(corpus.path / "valid"), corpus.domains)
    tables = {order: of_order(counts, order) for order in orders}
    rows = []
    for domain, files in groups.items():
        for file in files:
            records = list(read_letters([file]))
            bases = sum(int((letters >= 0).sum()) for letters in records)
            bits = {
                order: sum(float(surprises(table, letters).sum()) for letters in records) / bases
                for order, table in tables.items()
            }
            best = min(bits, key=bits.__getitem__)
            rows.append(
                {"file": file.name, "domain": domain, "bases": bases, "best": best, "bits": bits}
            )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown; the best order of each file is bold."""
    orders = list(rows[0]["bits"])
    lines = [
        "| genome | bases | " + " | ".join(map(str, orders)) + " |",
        "|---|--:|" + "--:|" * len(orders),
    ]
    for row in rows:
        cells = [
            f"**{bits:.4f}**" if order == row["best"] else f"{bits:.4f}"
            for order, bits in row["bits"].items()
        ]
        name = row["file"].partition(".fa")[0]
        lines.append(f"| {name} | {row['bases']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Count, measure and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train and valid")
    data = parser.parse_args().data
    path = find_recipe(Path("recipes/mini.toml"))
    corpus = read_recipe(path).data.corpus
    assert corpus is not None
    corpus = corpus.model_copy(update={"path": data})
    counts = count_corpus(corpus, max(ORDERS))
    rows = measure(counts, corpus, ORDERS)
    words = int(counts.sum()) // 2
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    (RESULTS / "markov.json").write_text(
        json.dumps({"date": today, "words": words, "rows": rows}, indent=1) + "\n"
    )
    page = RESULTS / "markov.md"
    opening = page.read_text().partition("\n| genome")[0]
    page.write_text(f"{opening.rstrip()}\n\n{table(rows)}\n")
    console.say(f"{page}: {words:,} words of {max(ORDERS) + 1} letters on each strand")


if __name__ == "__main__":
    main()
