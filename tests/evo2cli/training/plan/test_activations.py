"""What the formulas say a training step keeps and moves is what the model keeps and moves.

The model runs on fake tensors, with the GPU's fused operators by their shapes: nothing is computed.
"""

import re
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

# torch has no public names for tensors that only have a shape, nor for seeing every operation.
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from evo2cli.training.plan.activations import Dtypes, activations
from evo2cli.training.plan.calibration import GIB, SHARED
from evo2cli.training.plan.memory import Setup, memory_per_gpu, sizes
from evo2cli.training.plan.step_time import elementwise_bytes
from hyenakernels.attention import op as attention
from hyenakernels.fir import op as fir
from hyenakernels.modal import op as modal
from hyenakernels.norm import op as norm
from stripedhyena2 import ModelConfig, StripedHyena2
from stripedhyena2.checkpoint.published import published_config
from stripedhyena2.model import MLP_TOKENS
from stripedhyena2.operators.attention import ROTARY_BACKWARD, ROTARY_FORWARD

BENCHMARKS = Path(__file__).parents[4] / "tests" / "benchmarks"
BATCH, LENGTH = 16, 2048
TOKENS = BATCH * LENGTH
AUTOCAST, NARROW, WIDE = Dtypes(2, 4), Dtypes(2, 2), Dtypes(4, 4)
DTYPES = [AUTOCAST, NARROW, WIDE]


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every operator take the way of a GPU."""
    for op in (attention, fir, modal, norm):
        monkeypatch.setattr(op, "kernels_support", lambda *_, **__: True)
    with FakeTensorMode():
        yield


def shape(stripes: str) -> ModelConfig:
    return ModelConfig(
        stripes=stripes,
        width=512,
        num_heads=4,
        mlp_width=1408,
        num_short_filter_groups=32,
        num_medium_filter_groups=32,
        context=LENGTH,
    )


def make_model(config: ModelConfig, dtypes: Dtypes) -> StripedHyena2:
    torch.set_default_dtype(torch.bfloat16 if dtypes == NARROW else torch.float32)
    try:
        return StripedHyena2(config)
    finally:
        torch.set_default_dtype(torch.float32)


def autocast(dtypes: Dtypes) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=dtypes.is_autocast)


class Storages(TorchDispatchMode):
    """Bytes of the storages that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            self.now += self.alive[key]
            weakref.finalize(storage, lambda: self._free(key))

    def _free(self, key: int) -> None:
        self.now -= self.alive.pop(key)


def kept_and_peak(config: ModelConfig, dtypes: Dtypes, checkpointing: int) -> tuple[int, int, int]:
    """Bytes of parameters, of what is kept when the loss is known, and of the peak."""
    with Storages() as storages:
        model = make_model(config, dtypes).train()
        model.activation_checkpointing = checkpointing
        model.checks_ids = False  # which have no values
        parameters = storages.now
        ids = torch.zeros(BATCH, LENGTH, dtype=torch.long)
        with autocast(dtypes):
            logits = model(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").sum()
        del logits
        kept = storages.now
        loss.backward()
    return parameters, kept, storages.peak


@pytest.mark.parametrize("kind", "SMLA")
@pytest.mark.parametrize("dtypes", DTYPES, ids=["autocast", "bf16", "fp32"])
def test_a_block_keeps_what_the_formula_says(kind: str, dtypes: Dtypes) -> None:
    one, two = shape("S"), shape("S" + kind)
    kept = kept_and_peak(two, dtypes, 0)[1] - kept_and_peak(one, dtypes, 0)[1]
    block = sizes(two).products - sizes(one).products
    kept -= 4 * block if dtypes.residual == 4 else 2 * block  # its weights
    kept -= 2 * block if dtypes.is_autocast else 0
    predicted = sum(
        sign * activations(config, dtypes, tokens=TOKENS, checkpointing=0).at_loss
        for sign, config in ((1, two), (-1, one))
    )
    assert kept == pytest.approx(predicted, rel=0.01)


@pytest.mark.parametrize("checkpointing", [0, 1, 3])
@pytest.mark.parametrize("dtypes", [AUTOCAST, WIDE], ids=["autocast", "fp32"])
def test_the_peak_of_the_plain_engine(dtypes: Dtypes, checkpointing: int) -> None:
    config = shape("SMLSMLSML")
    counts = sizes(config)
    setup = Setup(
        gpus=1,
        zero=0,
        length=LENGTH,
        micro=BATCH,
        accumulation=1,
        checkpointing=checkpointing,
        compute="bf16" if dtypes == AUTOCAST else "fp32",
    )
    predicted = memory_per_gpu(config, counts, setup)
    measured = kept_and_peak(config, dtypes, checkpointing)[2]
    assert predicted.allocated - predicted.optimizer == pytest.approx(measured, rel=0.03)


CHUNKS = [(1, 0), (4, 0), (2, 1), (8, 1), (16, 1), (4, 3)]


@pytest.mark.parametrize(("chunks", "checkpointing"), CHUNKS)
@pytest.mark.parametrize("dtypes", [AUTOCAST, NARROW], ids=["autocast", "bf16"])
@pytest.mark.parametrize("stripes", ["SMLS", "AAAA"])
def test_an_mlp_in_chunks_keeps_a_chunk(
    stripes: str, dtypes: Dtypes, chunks: int, checkpointing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of windows longer than `MLP_TOKENS`, whose peak is counted tensor by tensor."""
    monkeypatch.setattr("stripedhyena2.model.MLP_TOKENS", LENGTH // chunks)
    config = shape(stripes)
    parameters, kept, peak = kept_and_peak(config, dtypes, checkpointing)
    planned = activations(
        config,
        dtypes,
        tokens=TOKENS,
        checkpointing=checkpointing,
        mlp_tokens=TOKENS // chunks,
    )
    copies = (0 if checkpointing else 1) * parameters / 2 if dtypes.is_autocast else 0
    assert max(planned.at_loss, planned.in_blocks) == pytest.approx(
        peak - parameters - copies, rel=0.05
    )
    assert kept - parameters - copies < planned.at_loss


def test_a_run_takes_its_mlp_in_chunks_of_each_window() -> None:
    usual = Setup(
        gpus=4,
        zero=3,
        length=4 * MLP_TOKENS,
        micro=2,
        accumulation=1,
        checkpointing=1,
        compute="bf16",
    )
    for context, tokens, together in ((1, 8, 2), (2, 4, 2), (4, 2, 2), (8, 1, 1)):
        setup = replace(usual, context=context)
        assert (setup.tokens, setup.mlp_tokens) == (tokens * MLP_TOKENS, together * MLP_TOKENS)
    counts = sizes(shape("SMLA"))
    whole, shared = (
        memory_per_gpu(shape("SMLA"), counts, replace(usual, context=context, length=length))
        for context, length in ((1, MLP_TOKENS), (4, 4 * MLP_TOKENS))
    )
    more = shared.activations - whole.activations
    assert more == 2 * MLP_TOKENS * SHARED * 2 * shape("SMLA").width


# Peaks of 8 blocks of 7B with whole bf16 weights, each recomputed: GPUs, positions and GiB.
MEASURED = [(1, 131_072, 33.0), (2, 131_072, 18.7), (2, 1_048_576, 91.2)]


@pytest.mark.parametrize(("gpus", "length", "gib"), MEASURED)
def test_memory_that_was_measured_is_counted(gpus: int, length: int, gib: float) -> None:
    rows = (BENCHMARKS / "results" / "parallel.md").read_text()
    assert re.search(rf"forward \+ backward \| {length:,} \| {gpus} \| [\d.]+ \| {gib} ", rows)
    base = published_config("evo2_7b_base")
    config = replace(base, stripes=base.stripes[:8], context=length)
    planned = activations(
        config,
        NARROW,
        tokens=length // gpus,
        checkpointing=1,
        mlp_tokens=MLP_TOKENS,
        shared=gpus > 1,
    )
    counted = 2 * sizes(config).all + max(planned.at_loss, planned.in_blocks)
    assert counted / GIB == pytest.approx(gib, rel=0.03)


class Traffic(TorchDispatchMode):
    """Bytes that norms and elementwise operations read and write."""

    OTHERS = ("mm", "kernels.fir", "kernels.modal", "attention", "detach", "prim", "view", "new_")

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and not any(name in str(func) for name in self.OTHERS):
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
            if any(tensor.numel() >= 64 * TOKENS for tensor in tensors):
                self.bytes += sum(tensor.nbytes for tensor in tensors)
        return result


@pytest.mark.parametrize("kind", "MA")
@pytest.mark.parametrize("dtypes", DTYPES[:2], ids=["autocast", "bf16"])
def test_elementwise_parts_move_what_the_formula_says(kind: str, dtypes: Dtypes) -> None:
    config = shape("S" + kind)
    dtype = torch.float32 if dtypes.residual == 4 else torch.bfloat16
    block = make_model(config, dtypes).blocks[1]
    x_BLD = torch.empty(BATCH, LENGTH, config.width, dtype=dtype, requires_grad=True)
    with Traffic() as forward, autocast(dtypes):
        y_BLD, _ = block(x_BLD, None)
    with Traffic() as backward:
        y_BLD.backward(y_BLD.detach())
    more = (ROTARY_FORWARD, ROTARY_BACKWARD) if kind == "A" else (0, 0)
    moved = elementwise_bytes(config, dtypes)
    for counted, predicted, rotary in zip((forward, backward), moved, more, strict=True):
        predicted += rotary * config.width
        assert counted.bytes / TOKENS == pytest.approx(predicted, rel=0.02)
