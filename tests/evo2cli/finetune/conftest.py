"""A small base that predicts DNA as well as chance, and tables of labelled DNA."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evo2cli.finetune.options import FinetuneOptions
from evo2cli.finetune.run import finetune
from stripedhyena2 import ModelConfig, StripedHyena2, save, trainable

SHAPE = ModelConfig(
    stripes="SMLA",
    width=32,
    num_heads=2,
    mlp_width=48,
    num_short_filter_groups=4,
    num_medium_filter_groups=4,
    num_modes=4,
    context=256,
)
MOTIF = "GATTACAGG"
STEPS = 40

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a model that has learned that DNA has four letters."""
    model = StripedHyena2.from_seed(SHAPE, 0)
    trainable(model, SHAPE.context)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    letters = torch.tensor(list(b"ACGT"))
    for _ in range(STEPS):
        ids = letters[torch.randint(0, 4, (16, 32), generator=generator)]
        loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("base") / "small"
    save(model.eval(), folder, {})
    return str(folder)


def random_dna(random: np.random.Generator, length: int) -> str:
    return "".join(random.choice(list("ACGT"), length))


def motifs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Sequences with a motif, and with the same motif but for one base."""
    random, rows = np.random.default_rng(seed), []
    for index in range(count):
        motif = list(MOTIF)
        if index % 2:
            place = random.integers(len(motif))
            motif[place] = random.choice([base for base in "ACGT" if base != motif[place]])
        start = random.integers(0, 40 - len(motif) + 1)
        sequence = random_dna(random, 40)
        end = start + len(motif)
        sequence = f"{sequence[:start]}{''.join(motif)}{sequence[end:]}"
        rows.append((sequence, "near" if index % 2 else "motif"))
    return rows


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    lines = ["\t".join(map(str, row)) for row in (columns, *rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def small_table(path: Path, kind: str, count: int = 60) -> Path:
    """A table of some task whose labels follow from the sequence."""
    random = np.random.default_rng(1)
    sequences = [random_dna(random, int(random.integers(20, 28))) for _ in range(count)]
    first, second = ("sequence_a", "sequence_b") if kind == "pairs" else ("sequence", "")
    rows: list[list[object]] = []
    for index, sequence in enumerate(sequences):
        gc, at = (sum(map(sequence.count, pair)) / len(sequence) for pair in ("GC", "AT"))
        labels: list[object] = {
            "classify": ["high" if gc > 0.5 else "low"],
            "multilabel": [int(gc > 0.5), int(sequence[0] in "AC")],
            "regress": [f"{10 * gc:.3f}", f"{at - 3:.3f}"],
            "tokens": ["".join("1" if base in "GC" else "0" for base in sequence)],
            "pairs": ["same" if index % 2 else "other"],
        }[kind]
        others = [sequence[::-1]] if kind == "pairs" else []
        rows.append([sequence, *others, *labels])
    names = ["y1", "y2"] if len(rows[0]) - 1 - bool(second) > 1 else ["label"]
    return write_table(path, [first, *filter(None, [second]), *names], rows)


@pytest.fixture
def tune(base: str, tmp_path: Path) -> Run:
    """`finetune` on the small base into a folder of the test, by few steps on the CPU."""

    def run(data: Path, output: str = "run", **options: Any) -> dict[str, Any]:
        usual: dict[str, Any] = {
            "model": base,
            "device": "cpu",
            "split": None if "valid" in options else "random",
            "steps": 4,
            "batch": 8,
            "validations": 2,
        }
        return finetune(
            FinetuneOptions(data=data, output=tmp_path / output, **{**usual, **options})
        )

    return run
