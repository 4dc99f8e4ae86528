"""All kernels at once compute what the model computes, in a decoding step and side by side."""

import random
from copy import deepcopy

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from stripedhyena2 import ModelConfig, StripedHyena2
from stripedhyena2.decoding import Decoder
from stripedhyena2.packing import Packer, Shapes
from stripedhyena2.scoring import sequence_logprob
from tests.models import random_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NEW = 3  # steps: enough to read what the first of them has stored in a ring


def sequence(length: int, seed: int) -> Tensor:
    return torch.randint(0, 512, (length,), generator=torch.Generator().manual_seed(seed))


def small_models() -> tuple[StripedHyena2, StripedHyena2]:
    """A random model in fp64 and in fp32."""
    shape = ModelConfig(
        "SMLA",
        width=16,
        num_heads=2,
        mlp_width=24,
        num_short_filter_groups=4,
        num_medium_filter_groups=4,
        context=256,
    )
    exact = random_model(shape)
    return exact, deepcopy(exact).to(DEVICE, torch.float32)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[140], [3, 140]], ids=["one-row", "two-rows"])
def test_steps_by_kernels_are_whole_sequences(
    lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All kernels of a step at once, interpreted where there is no GPU."""
    exact, model = small_models()
    whole = [sequence(length + NEW, seed=length) for length in lengths]
    decoder = Decoder(model, len(lengths), max(lengths) + NEW)
    for row, (ids, length) in enumerate(zip(whole, lengths, strict=True)):
        cache = model.new_cache(1)
        model(ids[None, :length].to(DEVICE), cache=cache)
        decoder.place(row, cache)
    right = [exact(ids[None])[0, length:] for ids, length in zip(whole, lengths, strict=True)]
    for name in ("attention", "fir", "linear", "modal", "norm"):
        monkeypatch.setattr(f"hyenakernels.{name}.op.kernels_support", lambda *_, **__: True)
    found = [
        decoder.step(torch.stack([ids[n + t] for ids, n in zip(whole, lengths, strict=True)]))
        for t in range(NEW)
    ]
    for row, expected in enumerate(right):
        mine = torch.stack([logits[row] for logits in found]).cpu()
        assert float((mine - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.slow
def test_rows_by_kernels_are_whole_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefix that two sequences share, a row beside them, and padding."""
    exact, model = small_models()
    shared, alone = (bytes(random.Random(s).choices(b"ACGT", k=n)) for s, n in ((0, 70), (1, 9)))  # noqa: S311 - a test
    wanted = [(shared, 64), (shared[:65] + b"GG", 64), (alone, 0)]
    right = [sequence_logprob(exact, bases) for bases, _ in wanted]
    for name in ("attention", "fir", "modal", "norm"):
        monkeypatch.setattr(f"hyenakernels.{name}.op.kernels_support", lambda *_, **__: True)
    packer = Packer(model, Shapes(1024))
    asked = []
    for bases, cut in wanted:
        prefix = packer.prefix(bases, [cut] * bool(cut))
        asked.append(packer.suffix(prefix, bases[cut:]))
    packer.read().collect()
    assert [suffix.logprob for suffix in asked] == pytest.approx(right, rel=1e-5)
