"""The Markov models are what a plain loop says; `markov.py` measures them on a corpus."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from evo2cli.genome.alphabet import reverse_complement
from evo2cli.training.recipe import Corpus
from tests.benchmarks import markov
from tests.benchmarks.markov import (
    Counts,
    add_counts,
    count_corpus,
    letters_of,
    of_order,
    surprises,
    with_other_strand,
)


def random_text(seed: int, size: int = 400) -> bytes:
    letters = list(b"ACGTacgtACGTacgtN")
    return bytes(np.random.default_rng(seed).choice(letters, size).astype(np.uint8))


def count(text: bytes, order: int) -> Counts:
    counts = np.zeros((4**order, 4), np.int32)
    add_counts(counts, letters_of(text))
    return counts


def plain_count(text: bytes, order: int) -> dict[tuple[str, str], int]:
    """How often each letter follows each context."""
    plain: dict[tuple[str, str], int] = {}
    upper = text.decode().upper()
    for at in range(order, len(upper)):
        if "N" not in upper[at - order : at + 1]:
            pair = (upper[at - order : at], upper[at])
            plain[pair] = plain.get(pair, 0) + 1
    return plain


@pytest.mark.parametrize("piece", [1 << 23, 37])
@pytest.mark.parametrize("order", [0, 1, 3])
def test_counts_and_surprises_are_those_of_a_plain_loop(
    order: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(markov, "_PIECE", piece)
    text = random_text(order)
    counts, plain = count(text, order), plain_count(text, order)
    assert counts.sum() == sum(plain.values())
    for (context, letter), number in plain.items():
        code = sum("ACGT".index(base) * 4**at for at, base in enumerate(reversed(context)))
        assert counts[code, "ACGT".index(letter)] == number
    bits = surprises(counts, letters_of(text))
    upper = text.decode().upper()
    for at in range(len(upper)):
        context = upper[max(0, at - order) : at].rpartition("N")[2]
        seen = {
            base: 1 + sum(n for (c, b), n in plain.items() if b == base and c.endswith(context))
            for base in "ACGT"
        }
        expected = np.log2(sum(seen.values()) / seen[upper[at]]) if upper[at] != "N" else 0
        assert bits[at] == pytest.approx(expected)


@pytest.mark.parametrize("order", [0, 1, 4])
def test_both_strands_are_counted_as_if_both_were_read(order: int) -> None:
    text = random_text(order)
    both = count(text, order) + count(reverse_complement(text), order)
    np.testing.assert_array_equal(with_other_strand(count(text, order)), both)


def test_a_lower_order_sees_all_but_the_first_letters() -> None:
    text = random_text(5).upper().replace(b"N", b"")
    full = count(text, 4)
    for order in range(4):
        np.testing.assert_array_equal(of_order(full, order), count(text[4 - order :], order))


def test_a_corpus_is_counted_by_record_without_what_no_domain_names(tmp_path: Path) -> None:
    train = tmp_path / "train"
    train.mkdir()
    first, second, third = (random_text(seed, 60) for seed in range(3))
    (train / "plant_a.fa").write_bytes(b">1\n" + first + b"\n>2\n" + second + b"\n")
    (train / "worm.fa.gz").write_bytes(gzip.compress(b">3\n" + third))
    (train / "other.fa").write_bytes(b">4\n" + random_text(9))
    corpus = Corpus(path=tmp_path, tokens=tmp_path / "t", domains={"plant": 1.0, "worm": 9.0})
    texts = [first, second, third]
    expected = sum(count(s, 2) for text in texts for s in (text, reverse_complement(text)))
    np.testing.assert_array_equal(count_corpus(corpus, 2), expected)
