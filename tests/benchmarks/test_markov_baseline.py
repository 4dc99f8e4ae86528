"""Order-8 Markov model of the training genomes: the bits per base that a real model has to beat.

Run: pytest -m benchmark tests/benchmarks/test_markov_baseline.py; results/markov.md keeps the row.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from evo2cli import console
from evo2cli.data.documents import ArrayDocuments, Bytes
from evo2cli.data.loader import fixed_windows
from evo2cli.genome.fasta import read_records
from evo2cli.training.loss import read_windows, target_weights, weighted_loss
from evo2cli.training.recipe_file import find_recipe, read_recipe
from stripedhyena2 import load

Integers = npt.NDArray[np.int64]

_LETTER = np.full(256, -1, np.int64)
_LETTER[list(b"ACGT")] = _LETTER[list(b"acgt")] = range(4)


def contexts(letters: Integers, order: int) -> tuple[Integers, Integers]:
    """The letters before each position as a base-4 number, the nearest lowest; and how many count.

    A letter counts when it and all between it and the position are A, C, G or T (not -1).
    """
    codes = np.zeros(len(letters), np.int64)
    for distance in range(1, order + 1):
        codes[distance:] += np.maximum(letters[:-distance], 0) << 2 * (distance - 1)
    places = np.arange(len(letters))
    blocks = np.where(letters < 0, places, -1)
    last_block = np.concatenate([[-1], np.maximum.accumulate(blocks)[:-1]])
    return codes, np.minimum(places - last_block - 1, order)


def count(letters: Integers, order: int) -> Integers:
    """How often each letter follows each full context, [4**order, 4]."""
    codes, known = contexts(letters, order)
    use = (known == order) & (letters >= 0)
    pairs = 4 * codes[use] + letters[use]
    return np.bincount(pairs, minlength=4 ** (order + 1)).reshape(-1, 4)


def surprises(counts: Integers, letters: Integers) -> npt.NDArray[np.float64]:
    """Bits of each letter under the counts plus one, with as many letters of context as there are.

    Positions without a letter get 0.
    """
    order = round(np.log2(len(counts)) / 2)
    codes, known = contexts(letters, order)
    bits = np.zeros(len(letters))
    for depth in range(order + 1):
        table = counts.reshape(-1, 4**depth, 4).sum(0) + 1
        use = (known == depth) & (letters >= 0)
        rows = table[codes[use] % 4**depth]
        bits[use] = np.log2(rows.sum(1) / rows[np.arange(len(rows)), letters[use]])
    return bits


def markov_bits(counts: Integers, windows: Bytes) -> float:
    """Bits per base over the A, C, G and T that a model predicts in `windows` [B, L + 1]."""
    letters = _LETTER[windows]
    apart = np.pad(letters, ((0, 0), (0, 1)), constant_values=-1)
    bits = surprises(counts, apart.ravel()).reshape(apart.shape)[:, 1:-1]
    return float(bits.sum() / (letters[:, 1:] >= 0).sum())


@pytest.mark.parametrize("order", [0, 1, 3])
def test_counts_and_surprises_are_those_of_a_plain_loop(order: int) -> None:
    text = bytes(np.random.default_rng(order).choice(list(b"ACGTacgtN"), 400).astype(np.uint8))
    letters = _LETTER[np.frombuffer(text, np.uint8)]
    counts = count(letters, order)
    plain: dict[tuple[str, str], int] = {}
    upper = text.decode().upper()
    for at in range(order, len(upper)):
        if "N" not in upper[at - order : at + 1]:
            pair = (upper[at - order : at], upper[at])
            plain[pair] = plain.get(pair, 0) + 1
    assert counts.sum() == sum(plain.values())
    for (context, letter), number in plain.items():
        code = sum("ACGT".index(base) * 4**at for at, base in enumerate(reversed(context)))
        assert counts[code, "ACGT".index(letter)] == number
    bits = surprises(counts, letters)
    for at in range(len(upper)):
        context = upper[max(0, at - order) : at].rpartition("N")[2]
        seen = {
            base: 1 + sum(n for (c, b), n in plain.items() if b == base and c.endswith(context))
            for base in "ACGT"
        }
        expected = np.log2(sum(seen.values()) / seen[upper[at]]) if upper[at] != "N" else 0
        assert bits[at] == pytest.approx(expected)


def test_windows_know_nothing_of_each_other() -> None:
    windows = np.random.default_rng(0).choice(list(b"ACGTN"), (5, 40)).astype(np.uint8)
    counts = count(_LETTER[windows.ravel()], order=2)
    parts = [markov_bits(counts, window[None]) for window in windows]
    sizes = [(_LETTER[window[1:]] >= 0).sum() for window in windows]
    assert markov_bits(counts, windows) == pytest.approx(np.average(parts, weights=sizes))


def documents(folder: Path) -> ArrayDocuments:
    """All records of a folder of genomes."""
    files = sorted(folder.glob("*.fa.gz"))
    texts = [record.sequence + b"\0" for file in files for record in read_records(file)]
    offsets = np.cumsum([0, *map(len, texts)])
    return ArrayDocuments(str(folder), np.frombuffer(b"".join(texts), np.uint8), offsets)


@torch.no_grad()
def model_bits(name: str, windows: Bytes) -> float:
    """The same number for a model."""
    model = load(name)
    weight_of_byte = target_weights(lowercase=1, end_of_document=0)
    loss, total = 0.0, 0.0
    for batch in torch.from_numpy(windows).split(4):
        forwards, unmasked = torch.zeros(len(batch)).bool(), torch.zeros_like(batch).bool()
        ids, targets, weights = read_windows(batch, forwards, unmasked, weight_of_byte)
        loss += weighted_loss(model(ids), targets, weights).item()
        total += weights.sum().item()
    return loss / total / float(np.log(2))


@pytest.mark.benchmark
def test_the_built_in_model_beats_order_8(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = np.zeros((4**8, 4), np.int64)
    for file in sorted((shared / "data/corpus/train").glob("*.fa.gz")):
        for record in read_records(file):
            letters = _LETTER[np.frombuffer(record.sequence, np.uint8)]
            other_strand = np.where(letters < 0, -1, 3 - letters)[::-1]
            counts += count(letters, order=8) + count(other_strand, order=8)
    recipe = read_recipe(find_recipe(Path("recipes/nano.toml")))
    held_out = documents(shared / "data/corpus/valid")
    windows = fixed_windows(
        held_out, length=recipe.batch.length, limit=recipe.validation.windows
    ).tokens
    valid = held_out.read(0, held_out.num_tokens)
    baseline = markov_bits(counts, windows)
    everywhere = surprises(counts, _LETTER[valid]).sum() / (_LETTER[valid] >= 0).sum()
    nano = model_bits("nano", windows)
    with capsys.disabled():
        console.say(f"{len(windows)} windows: order 8 {baseline:.4f} bits, nano {nano:.4f} bits")
        console.say(f"order 8 on the whole validation genomes: {everywhere:.4f} bits")
    assert nano < baseline
