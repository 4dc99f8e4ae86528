"""What a card says is what the shipped weights do; and what `layouts.py` makes of several runs."""

import gzip
import json
import math
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from stripedhyena2 import ModelConfig, StripedHyena2, load, save
from stripedhyena2.checkpoint import read_checkpoint
from stripedhyena2.checkpoint.built_in import BUILT_IN, built_in_models
from tests.benchmarks.cards import CARD, PAGE, PHIX174, WEIGHTS, bits_per_base, page, write_weights
from tests.benchmarks.layouts import T_975, Run, interval, table

CARDS = [name for name in built_in_models() if (BUILT_IN / name / CARD).is_file()]
TOLERANCE = 2e-3  # bits: another processor rounds otherwise


@pytest.mark.parametrize("name", CARDS)
def test_a_card_is_of_the_shipped_weights(name: str) -> None:
    card = json.loads((BUILT_IN / name / CARD).read_text())
    assert card["name"] == name
    assert card["weights_sha256"] == sha256((BUILT_IN / name / WEIGHTS).read_bytes()).hexdigest()
    assert (BUILT_IN / name / PAGE).read_text() == page(card)
    model = load(name)
    assert card["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    bits, bases = bits_per_base(model, PHIX174)
    assert bases == 5385  # all but the first
    assert bits == pytest.approx(card["phix174_bits"], abs=TOLERANCE)


@pytest.mark.parametrize("windows", [None, 3])
def test_bits_are_those_of_every_base_given_those_before_it_in_its_window(
    tmp_path: Path, tiny_config: ModelConfig, tiny_model: StripedHyena2, windows: int | None
) -> None:
    random = np.random.default_rng(0)
    texts = [bytes(random.choice(list(b"ACGTacgtN"), n).astype(np.uint8)) for n in (700, 257, 40)]
    file = tmp_path / "x.fa.gz"
    file.write_bytes(gzip.compress(b"".join(b">r\n%b\n" % text for text in texts)))
    length = tiny_config.context
    pieces = [
        text[start : start + length + 1].upper()
        for text in texts
        for start in range(0, len(text), length)
    ]
    if windows:
        pieces = [pieces[round(at)] for at in np.linspace(0, len(pieces) - 1, windows)]
    nats, bases = 0.0, 0
    for piece in pieces:
        with torch.no_grad():
            logprobs = tiny_model(torch.tensor([list(piece)]))[0].double().log_softmax(-1)
        for at in range(1, len(piece)):
            if piece[at] in b"ACGT":
                nats -= logprobs[at - 1, piece[at]].item()
                bases += 1
    found = bits_per_base(tiny_model, file, windows=windows, batch=2)
    assert found == (pytest.approx(nats / bases / math.log(2), rel=1e-6), bases)


def test_shipped_weights_are_rounded_and_say_not_where_the_corpus_lay(
    tmp_path: Path, tiny_model: StripedHyena2
) -> None:
    settings = {"data": {"corpus": {"path": "/home/someone/genomes", "tokens": "tokens"}}}
    save(tiny_model, tmp_path / "trained", {"settings": settings, "steps": 3})
    write_weights(str(tmp_path / "trained"), tmp_path / "shipped")
    before, after = load(tmp_path / "trained"), load(tmp_path / "shipped")
    for (name, old), new in zip(
        before.state_dict().items(), after.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(new, old, rtol=2**-8, atol=0, msg=name)
    stored = read_checkpoint(tmp_path / "shipped")
    assert stored.tensors["embedding.weight"].dtype is torch.bfloat16
    assert stored.provenance["steps"] == 3
    assert stored.provenance["settings"]["data"]["corpus"]["path"] == "genomes"
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("trained", "shipped")]
    assert sizes[1] < 0.3 * sizes[0]  # of fp64


def test_intervals_are_those_of_student() -> None:
    for freedom, value in T_975.items():
        assert value == pytest.approx(stats.t.ppf(0.975, freedom), abs=5e-4)
    values = [1.0, 2.0, 4.0]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    mean, half = map(float, interval(values).split(" ± "))
    assert (mean, half) == (pytest.approx(7 / 3, abs=1e-4), pytest.approx((high - low) / 2, 1e-3))
    assert interval([1.5]) == "1.5000"


def test_a_recipe_is_compared_with_the_first_seed_by_seed() -> None:
    def run(bits: float) -> Run:
        return Run(10, bits, {"plant": bits}, {2048: 0.5}, 0.1)

    first = {seed: run(1.9 + seed) for seed in range(3)}
    second = {seed: run(1.8 + seed) for seed in range(2)}
    rows = [
        dict(
            zip(
                ("recipe", "_", "seeds", "bits", "above"),
                line.strip("| ").split(" | "),
                strict=False,
            )
        )
        for line in table({"a": first, "b": second}).splitlines()[2:]
    ]
    assert [row["seeds"] for row in rows] == ["3", "2"]
    assert rows[1]["above"] == "-0.1000 ± 0.0000"  # though the seeds differ by 1
