"""Self-tests of the operators and of a model against fp64.

Each test also runs a wrong computation (a negative control), and fails if it does not detect it.

B batch, L length, D channels, C = 3D channels, G filter groups, K taps, S modes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hyenakernels import (
    FIRFilters,
    ModalFilters,
    add_rms_norm,
    added_linear,
    causal_attention,
    hyena_fir,
    hyena_modal,
    rms_norm,
)
from hyenakernels.float8.op import quantize_weight, round_rows, rows_product, scaled_product
from hyenakernels.float8.reference import E4M3, Float8Weight, to_float8_saturated
from stripedhyena2 import StripedHyena2
from stripedhyena2.decoding import Decoder

LENGTH, WIDTH, GROUPS, MODES = 600, 64, 4, 16
REPEAT_UNIT = 32  # bases of the unit of the tandem repeat that models are run on
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # on ||x - exact|| / ||exact||
FLOAT8_TOLERANCE = 1e-2  # FP8 tensor cores accumulate with fewer bits than fp32
UNROUNDED = "operands not rounded"
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
MODEL_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 5e-2}  # through all layers

Run = Callable[..., Tensor]


@dataclass(frozen=True)
class Outcome:
    """The result of a self-test; errors are relative, in the 2-norm.

    Attributes:
        name: What was tested.
        wrong: The deliberate mistake of the negative control, in words.
        error: Error of the computation under test, which must not exceed `tolerance`.
        error_of_wrong: Error of the negative control, which must exceed it.
        tolerance: Maximum error.
    """

    name: str
    wrong: str
    error: float
    error_of_wrong: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the test is within tolerance and detects the wrong result; NaN fails both."""
        return self.error <= self.tolerance < self.error_of_wrong


@dataclass(frozen=True)
class Check:
    """A test of an operator on a device against its fp64 reference on the CPU.

    Attributes:
        name: The operator.
        inputs: Inputs in fp64 on the CPU.
        run: The operator under test; takes inputs in any dtype on any device.
        exact: Its reference; takes inputs in fp64.
        wrong: What `spoil` does, in words.
        spoil: Corrupts the inputs for the negative control.
        tolerance: Overrides the tolerance of the dtype.
    """

    name: str
    inputs: tuple[Tensor, ...]
    run: Run
    exact: Run
    wrong: str
    spoil: Callable[..., tuple[Tensor, ...]]
    tolerance: float | None = None

    @torch.inference_mode()
    def outcome(self, device: torch.device, dtype: torch.dtype) -> Outcome:
        """Run the test and its negative control on `device`, with inputs rounded to `dtype`."""
        rounded = [value.to(dtype) for value in self.inputs]
        exact = self.exact(*(value.double() for value in rounded))

        def error(*inputs: Tensor) -> float:
            output = self.run(*(value.to(device) for value in inputs)).double().cpu()
            return float((output - exact).norm() / exact.norm())

        return Outcome(
            f"{self.name}, {NAMES[dtype]}",
            self.wrong,
            error(*rounded),
            error(*self.spoil(*rounded)),
            self.tolerance or TOLERANCES[dtype],
        )


def checks(*, float8: bool = True) -> Iterator[Check]:
    """Yield a check of every operator of the model.

    Args:
        float8: Whether to check the FP8 matrix products of `--dtype fp8` as well.
    """
    draw = partial(_draw, torch.Generator().manual_seed(0))
    z_BLC, featurizer_CF = draw(1, LENGTH, 3 * WIDTH), draw(3 * WIDTH, 3)
    for name, num_taps in (("Hyena-SE", 7), ("Hyena-MR", 128)):
        yield Check(
            name,
            (z_BLC, featurizer_CF, draw(GROUPS, num_taps), draw(WIDTH)),
            _fir,
            _fir,
            "taps reversed",
            lambda z, featurizer, taps, skip: (z, featurizer, taps.flip(1), skip),
        )
    yield Check(
        "Hyena-LI",
        (z_BLC, featurizer_CF, -draw(WIDTH, MODES).abs() / 10, draw(WIDTH, MODES), draw(WIDTH)),
        _modal,
        _modal,
        "poles 10 % too large",
        lambda z, featurizer, poles, *more: (z, featurizer, 1.1 * poles, *more),
    )
    yield Check(
        "norm of a sum",
        (draw(1, LENGTH, WIDTH), draw(1, LENGTH, WIDTH), draw(WIDTH)),
        lambda x, y, scale: add_rms_norm(x, y, scale, 1e-6)[0],
        lambda x, y, scale: rms_norm(x + y, scale, 1e-6),
        "one term left out",
        lambda x, y, scale: (x, torch.zeros_like(y), scale),
    )
    yield Check(
        "attention",
        (draw(1, 2, LENGTH, 32), draw(1, 2, LENGTH + 40, 32), draw(1, 2, LENGTH + 40, 32)),
        causal_attention,
        _attention,
        "values shifted by one position",
        lambda q, k, v: (q, k, v.roll(1, dims=2)),
    )
    yield _float8_check(draw(LENGTH, WIDTH), draw(3 * WIDTH, WIDTH))
    if float8:
        for name, run, length in (
            ("FP8 products", _rows_product, LENGTH),
            ("FP8, one token", _token_product, 1),
        ):
            yield Check(
                name,
                (draw(length, WIDTH), draw(3 * WIDTH, WIDTH), torch.ones(())),
                run,
                _rows_product,
                UNROUNDED,
                _leave_unrounded,
                tolerance=FLOAT8_TOLERANCE,
            )


def _draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _fir(z_BLC: Tensor, *filters: Tensor) -> Tensor:
    return hyena_fir(z_BLC, FIRFilters(*filters))[0]


def _modal(z_BLC: Tensor, *filters: Tensor) -> Tensor:
    return hyena_modal(z_BLC, ModalFilters(*filters))[0]


def _attention(q_BHLW: Tensor, k_BHTW: Tensor, v_BHTW: Tensor) -> Tensor:
    """Causal attention of the last L of T positions, by the formula."""
    length, num_keys = q_BHLW.shape[2], k_BHTW.shape[2]
    scores = q_BHLW @ k_BHTW.transpose(2, 3) / q_BHLW.shape[3] ** 0.5
    future = torch.ones(length, num_keys, dtype=torch.bool).triu(num_keys - length + 1)
    weights_BHLT: Tensor = scores.masked_fill(future, float("-inf")).softmax(dim=3)
    return weights_BHLT @ v_BHTW


def _float8_check(x_MI: Tensor, weight_OI: Tensor) -> Check:
    """Check of an FP8 projection; its negative control does not round the operands to FP8."""
    x_factor, weight_factor = 40.5, 100.25

    def run(x_MI: Tensor, weight_OI: Tensor, rounding: Tensor) -> Tensor:
        if not rounding:
            return x_MI @ weight_OI.T
        quantized = quantize_weight(weight_OI, weight_factor, x_MI.device)
        return scaled_product(x_MI, quantized, x_factor, weight_factor)

    def exact(x_MI: Tensor, weight_OI: Tensor, _: Tensor) -> Tensor:
        x, weight = (
            to_float8_saturated(x_MI, x_factor, E4M3),
            to_float8_saturated(weight_OI, weight_factor, E4M3),
        )
        return x.double() @ weight.double().T / (x_factor * weight_factor)

    return Check(
        "FP8 projection",
        (x_MI, weight_OI, torch.ones(())),
        run,
        exact,
        UNROUNDED,
        _leave_unrounded,
        tolerance=FLOAT8_TOLERANCE,
    )


def _leave_unrounded(x_MI: Tensor, weight_OI: Tensor, rounding: Tensor) -> tuple[Tensor, ...]:
    return x_MI, weight_OI, 0 * rounding


def _rows_product(x_MI: Tensor, weight_OI: Tensor, rounding: Tensor) -> Tensor:
    """A matrix product of `--dtype fp8`."""
    if not rounding:
        return x_MI @ weight_OI.T
    return rows_product(round_rows(x_MI), Float8Weight.rounded(weight_OI))


def _token_product(x_1I: Tensor, weight_OI: Tensor, rounding: Tensor) -> Tensor:
    """The matrix-vector product of `--dtype fp8` in a decoding step."""
    weight = Float8Weight.rounded(weight_OI) if rounding else weight_OI
    return added_linear(x_1I[None], weight, None, x_1I.new_zeros(1, 1, len(weight_OI)))[0]


@torch.inference_mode()
def check_model(model: StripedHyena2, exact: StripedHyena2 | None = None) -> Iterator[Outcome]:
    """Test a model on a tandem repeat: against fp64, and with a cache, in chunks and base by base.

    The log-probabilities of A, C, G and T in the second half are compared.

    Args:
        model: Model to test.
        exact: The same model in fp64 on the CPU; None skips the comparison with fp64.
    """
    device, dtype = model.embedding.weight.device, model.embedding.weight.dtype
    unit = torch.randint(4, (1, REPEAT_UNIT), generator=torch.Generator().manual_seed(0))
    drawn, half = unit.repeat(1, 4), 2 * REPEAT_UNIT
    letters = torch.tensor([*b"ACGT"])
    ids_BL, others_BL = letters[drawn].to(device), letters[(drawn + 1) % 4].to(device)

    def logprobs(logits_BLV: Tensor) -> Tensor:
        return logits_BLV[:, -half:, letters.to(device)].cpu().double().log_softmax(dim=2)

    def result(name: str, wrong: str, output: Tensor, spoiled: Tensor, expected: Tensor) -> Outcome:
        error, of_wrong = (
            float((logprobs(logits_BLV) - expected).norm() / expected.norm())
            for logits_BLV in (output, spoiled)
        )
        tolerance = MODEL_TOLERANCES.get(dtype, 1e-6)
        return Outcome(f"{name}, {NAMES.get(dtype, 'fp64')}", wrong, error, of_wrong, tolerance)

    whole = model(ids_BL)
    if exact is not None:
        expected = exact(ids_BL.cpu())[:, -half:, letters].log_softmax(dim=2)
        yield result("whole model", "other bases", whole, model(others_BL), expected)
    cache, without_context = model.new_cache(1), model(ids_BL[:, half:])
    first = model(ids_BL[:, :half], cache=cache)
    decoder = Decoder(model, 1, ids_BL.shape[1])
    decoder.place(0, cache)
    chunks = (ids_BL[:, half : half + 1], ids_BL[:, half + 1 :])
    joined = torch.cat([first, *(model(chunk, cache=cache) for chunk in chunks)], dim=1)
    mistake = "first half left out"
    yield result("in chunks", mistake, joined, without_context, logprobs(whole))
    steps = torch.stack([decoder.step(ids_BL[:, t]) for t in range(half, ids_BL.shape[1])], dim=1)
    yield result("base by base", mistake, steps, without_context, logprobs(whole))
