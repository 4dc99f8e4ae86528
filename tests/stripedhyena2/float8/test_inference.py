"""FP8 projections by a checkpoint's scales: exact where they can be, near where they must be.

They run on the GPU where there is one.
"""

import io
import logging
import sys
import types
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyenakernels.float8 import op, reference
from stripedhyena2 import CheckpointError, ModelConfig, StripedHyena2, load, save
from stripedhyena2.checkpoint import Checkpoint, precision, read_checkpoint
from stripedhyena2.checkpoint.layouts import native, vortex
from stripedhyena2.checkpoint.published import published_config
from stripedhyena2.checkpoint.scales import trained_scales
from stripedhyena2.decoding import Decoder
from stripedhyena2.float8.inference import ScaledLinear, Scales, scaled_weight
from stripedhyena2.parametrization import folded_state

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPE = ModelConfig(
    stripes="SMLA",
    width=64,
    num_heads=2,
    mlp_width=96,
    num_short_filter_groups=4,
    num_medium_filter_groups=4,
    context=256,
)
HYENA = [index for index, kind in enumerate(SHAPE.stripes) if kind != "A"]
E4M3 = torch.float8_e4m3fn


def record(*scales: float, **more: object) -> bytes:
    """What Transformer Engine saves beside a layer."""
    buffer = io.BytesIO()
    forward = torch.tensor(scales)
    torch.save(
        {
            "scale_fwd": forward,
            "scale_inv_fwd": 1 / forward,
            "amax_history_fwd": torch.zeros(16, len(scales)),
            "extra_fp8_variables": {"fp8_checkpoint": True, "num_gemms": 1},
            **more,
        },
        buffer,
    )
    return buffer.getvalue()


def pair(index: int) -> tuple[float, float]:
    return 40.5 + index, 1000.25 - index


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    model = StripedHyena2.from_seed(SHAPE, seed=0)
    records = {
        f"blocks.{index}.projections._extra_state": record(*pair(index), 1.0) for index in HYENA
    }
    records["blocks.3.mixer.dense._extra_state"] = b"not of a projection, never opened"
    return Checkpoint(SHAPE, folded_state(model), records, {"layout": "released"})


@pytest.fixture
def needs_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of this shape need the projections that they were trained with."""
    monkeypatch.setattr(precision, "needed_precision", lambda _: precision.Precision.FP8)


@pytest.fixture
def file(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    vortex.write(checkpoint, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def exact(x: Tensor, weight: Tensor, scales: Scales) -> Tensor:
    """The product in fp64, operands rounded one by one."""
    limit = 448.0
    rounded = [
        (value.double() * scale).clamp(-limit, limit).float().to(E4M3).double()
        for value, scale in ((x, scales.input), (weight, scales.weight))
    ]
    return rounded[0] @ rounded[1].T / (scales.input * scales.weight)


def tolerance(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """One rounding of the result, and the short sums of FP8 units where there are some."""
    if op.runs_float8(device):
        return {"rtol": 0.01, "atol": 3e-3}
    return {"rtol": 0.004, "atol": 1e-3} if dtype == torch.bfloat16 else {}


@pytest.mark.parametrize("rows", [1, 37, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_product_is_that_of_rounded_operands(rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, rows, 64, dtype=dtype, device=DEVICE)
    x[0, 0, 0] = 1e4  # beyond the range: cut, as in training
    weight = (0.05 * torch.randn(96, 64)).bfloat16().to(DEVICE)
    scales = Scales(40.5, 1000.25)
    layer = ScaledLinear(scaled_weight(weight, scales, DEVICE), scales)
    y = layer(x)
    assert (y.dtype, y.shape) == (dtype, (2, rows, 96))
    torch.testing.assert_close(y, exact(x, weight, scales).to(dtype), **tolerance(DEVICE, dtype))
    assert (y - x @ weight.to(dtype).T)[1].norm() > 0.01 * y[1].norm()


def test_what_is_simulated_is_what_fp8_units_compute() -> None:
    """PyTorch multiplies FP8 on a CPU as on a GPU, but for the order of sums."""
    torch.manual_seed(0)
    x, weight = torch.randn(37, 64), 0.05 * torch.randn(96, 64)
    scales = Scales(40.5, 1000.25)
    inverses = [torch.tensor(1 / scale) for scale in (scales.input, scales.weight)]
    x_PI, _, _ = op.quantize(x, E4M3, factor=torch.tensor(scales.input), rows=True)
    assert x_PI.shape == (48, 64)
    # The public F.scaled_mm of PyTorch 2.11 has no implementation for CPUs.
    units = torch._scaled_mm(
        x_PI,
        reference.to_float8_saturated(weight, scales.weight, E4M3).T,
        scale_a=inverses[0],
        scale_b=inverses[1],
        out_dtype=torch.float32,
        use_fast_accum=True,
    )
    for kept in (torch.float32, torch.bfloat16, E4M3):  # each holds every number of e4m3
        held = reference.to_float8_saturated(weight, scales.weight, E4M3).to(kept).to(DEVICE)
        simulated = op.scaled_product(x.to(DEVICE), held, scales.input, scales.weight).cpu()
        torch.testing.assert_close(simulated, units[:37], **tolerance(DEVICE, torch.float32))


def test_a_row_does_not_depend_on_others() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 64, device=DEVICE, dtype=torch.bfloat16)
    scales = Scales(40.5, 1000.25)
    layer = ScaledLinear(scaled_weight(torch.randn(96, 64), scales, DEVICE), scales)
    torch.testing.assert_close(layer(x[7:8]), layer(x)[7:8])
    x[3, 5] = float("nan")
    assert layer(x).isnan().any(1).nonzero().flatten().tolist() == [3]


def test_a_change_of_dtype_leaves_the_values() -> None:
    scales = Scales(40.5, 1000.25)
    x, weight = torch.randn(5, 64), 0.05 * torch.randn(96, 64)
    layer = ScaledLinear(reference.to_float8_saturated(weight, scales.weight, E4M3), scales)
    before = layer(x)
    torch.testing.assert_close(layer.double()(x.double()).float(), before)
    torch.testing.assert_close(layer.bfloat16()(x), before)


def test_scales_are_read_by_block(checkpoint: Checkpoint) -> None:
    found = trained_scales(checkpoint.extra_state, SHAPE, "here")
    assert found == {
        f"blocks.{index}.mixer.project_in.weight": Scales(*pair(index)) for index in HYENA
    }
    assert trained_scales({}, SHAPE, "here") == {}


def test_records_with_classes_of_transformer_engine_are_read_without_it() -> None:
    """Newer records hold their recipe: its classes stay names."""
    module = types.ModuleType("transformer_engine.common.recipe")

    class Format(Enum):
        HYBRID = (448, 57344)

    @dataclass
    class DelayedScaling:
        fp8_format: Format = Format.HYBRID
        margin: int = 0

    for kind in (Format, DelayedScaling):
        kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
        setattr(module, kind.__name__, kind)
    parents = ["transformer_engine", "transformer_engine.common"]
    try:
        for name in parents:
            sys.modules[name] = types.ModuleType(name)
        sys.modules[module.__name__] = module
        blob = record(2.0, 3.0, 1.0, recipe=DelayedScaling())
    finally:
        for name in [*parents, module.__name__]:
            del sys.modules[name]
    records = {f"blocks.{index}.projections._extra_state": blob for index in HYENA}
    assert set(trained_scales(records, SHAPE, "here").values()) == {Scales(2.0, 3.0)}


class Payload:
    """Pickles as a call that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.trace,)


def test_code_in_a_record_is_not_run(tmp_path: Path) -> None:
    blob = record(2.0, 3.0, 1.0, recipe=Payload(tmp_path / "trace"))
    with pytest.raises(
        CheckpointError, match=r"blocks\.0\.projections\._extra_state: contains more"
    ):
        trained_scales({"blocks.0.projections._extra_state": blob}, SHAPE, "here")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"scales", r"not a readable record of FP8 scales"),
        (record(2.0, 3.0)[:900], r"not a readable record of FP8 scales"),
        (record(0.0, 3.0), r"scales 0, 3 must be positive and finite"),
        (record(2.0, float("nan")), r"scales 2, nan must be positive and finite"),
        (record(2.0), r"scale_fwd must be a 1-D tensor"),
        (
            record(2.0, 3.0),
            r"blocks\.1\.projections\._extra_state has no FP8 scales, but 1 other",
        ),
    ],
    ids=["garbage", "cut", "zero", "nan", "one", "partial"],
)
def test_a_broken_record_is_named(blob: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^here: .*{message}"):
        trained_scales({"blocks.0.projections._extra_state": blob}, SHAPE, "here")


def test_the_shared_record_is_read(shared: Path) -> None:
    folder = shared / "goldens" / "pt-layout-7b"
    found = read_checkpoint(folder / "pt-layout-7b.pt", config=folder / "config.yml")
    assert len(trained_scales(found.extra_state, found.config, "here")) == 3


@pytest.mark.usefixtures("needs_fp8")
def test_a_model_in_fp8_is_the_wide_one_with_rounded_projections(file: Path) -> None:
    config = file.with_suffix(".yml")
    narrow = load(file, config=config, device=DEVICE)
    wide = load(file, config=config, float8=False, dtype=torch.float64, device=DEVICE)
    kinds = [type(block.mixer.project_in) for block in narrow.blocks]
    assert kinds == [ScaledLinear, ScaledLinear, ScaledLinear, nn.Linear]
    ids = torch.randint(65, 85, (2, 50), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    untouched = wide(ids)
    for index in HYENA:
        scales, linear = Scales(*pair(index)), wide.blocks[index].mixer.project_in
        weight = linear.weight.detach().bfloat16()

        def rounded(
            _: nn.Module,
            inputs: tuple[Tensor],
            __: Tensor,
            weight: Tensor = weight,
            s: Scales = scales,
        ) -> Tensor:
            return exact(inputs[0], weight, s)

        linear.register_forward_hook(rounded)
    logits = narrow(ids)
    expected = wide(ids)
    # An input at the edge between two numbers of e4m3 may fall to either side.
    assert (logits - expected).norm() < 0.05 * (untouched - expected).norm()

    cache = narrow.new_cache(2)
    pieces = torch.cat([narrow(ids[:, :20], cache=cache), narrow(ids[:, 20:], cache=cache)], dim=1)
    assert (pieces - logits).norm() < 0.05 * (untouched - expected).norm()

    decoder, cache = Decoder(narrow, 1, 50), narrow.new_cache(1)
    narrow(ids[:1, :20], cache=cache)
    decoder.place(0, cache)
    steps = torch.stack([decoder.step(ids[:1, t]) for t in range(20, 50)], dim=1)
    of_rounding = (untouched - expected)[:1, 20:].norm()
    assert (steps - logits[:1, 20:]).norm() < 0.05 * of_rounding


@pytest.mark.usefixtures("needs_fp8")
def test_records_survive_conversion_bit_for_bit(
    checkpoint: Checkpoint, file: Path, tmp_path: Path
) -> None:
    config = file.with_suffix(".yml")
    native.write(read_checkpoint(file, config=config), tmp_path / "native")
    vortex.write(native.read(tmp_path / "native"), tmp_path / "again.pt")
    again = read_checkpoint(tmp_path / "again.pt", config=config)
    assert again.extra_state == checkpoint.extra_state
    ids = torch.arange(65, 95)[None]
    direct, converted = (
        load(path, config=shape)(ids)
        for path, shape in ((file, config), (tmp_path / "native", None))
    )
    assert torch.equal(direct, converted)


@pytest.mark.usefixtures("needs_fp8")
@pytest.mark.parametrize("float8", [None, True], ids=["projections", "products"])
def test_a_model_in_fp8_is_not_saved(file: Path, tmp_path: Path, float8: bool | None) -> None:
    model = load(file, config=file.with_suffix(".yml"), float8=float8)
    with pytest.raises(CheckpointError, match="rounded to FP8 are not saved"):
        save(model, tmp_path / "saved", {})
    assert not (tmp_path / "saved").exists()


@pytest.mark.usefixtures("needs_fp8")
def test_a_width_that_fp8_cannot_take_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    config = replace(SHAPE, width=40, num_short_filter_groups=4, num_medium_filter_groups=4)
    model = StripedHyena2.from_seed(config, seed=0)
    native.write(
        replace(checkpoint, config=config, tensors=folded_state(model)), tmp_path / "model"
    )
    with pytest.raises(CheckpointError, match=r"multiples of 16, but blocks\.0\.mixer\.project_in"):
        load(tmp_path / "model")


@pytest.mark.parametrize("needed", list(precision.Precision), ids=str)
def test_published_models_get_what_they_need(
    checkpoint: Checkpoint,
    tmp_path: Path,
    needed: precision.Precision,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(precision, "needed_precision", lambda _: needed)
    with_scales, without = tmp_path / f"{needed} with", tmp_path / f"{needed} without"
    native.write(checkpoint, with_scales)
    native.write(replace(checkpoint, extra_state={}), without)

    def is_narrow(path: Path, **options: bool) -> bool:
        caplog.clear()
        model = load(path, **options)
        return isinstance(model.blocks[0].mixer.project_in, ScaledLinear)

    with caplog.at_level(logging.WARNING):
        assert is_narrow(with_scales) == (needed is not precision.Precision.BF16)
        assert ("sums of Hopper" in caplog.text) == (needed is precision.Precision.HOPPER)
        assert not is_narrow(without)
        assert ("scales this file lacks" in caplog.text) == (needed is not precision.Precision.BF16)
        load(without)
        assert len(caplog.records) <= 1  # said once
        assert not is_narrow(with_scales, float8=False)
        assert ("are wrong" in caplog.text) == (needed is not precision.Precision.BF16)


@pytest.mark.parametrize(
    ("provenance", "released"),
    [
        ({"layout": "released"}, True),
        ({"extended_by": "evo2", "before": {"layout": "released"}}, True),
        ({"steps": 3}, False),
        ({"trained_by": "evo2", "before": {"layout": "released"}}, False),
    ],
)
def test_what_was_trained_here_needs_no_fp8(
    checkpoint: Checkpoint, provenance: dict[str, Any], *, released: bool
) -> None:
    config = published_config("evo2_1b_base")
    found = precision.precision_of(replace(checkpoint, config=config, provenance=provenance))
    assert found is (precision.Precision.FP8 if released else precision.Precision.BF16)
    assert precision.needed_precision(SHAPE) is precision.Precision.BF16
