"""On a GPU the model takes the kernels unasked, and its numbers stay."""

import pytest
import torch
from torch import Tensor

from hyenakernels.fir import op as fir
from hyenakernels.modal import op as modal
from stripedhyena2 import StripedHyena2, load
from stripedhyena2.packing import Packer, Shapes
from stripedhyena2.scoring import sequence_logprob
from tests.stripedhyena2.test_packing import logprobs, many

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that were called, one name a call."""
    seen: list[str] = []
    for module in (fir, modal):
        fused = module.fused

        def spy(*inputs: Tensor | None, name: str = module.__name__, run: object = fused) -> object:
            seen.append(name)
            return run(*inputs)  # type: ignore[operator]

        monkeypatch.setattr(module, "fused", spy)
    return seen


def logits_and_gradients(model: StripedHyena2, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits = model(ids.to(model.embedding.weight.device))
    logits.logsumexp(2).sum().backward()
    return logits.detach().cpu(), {n: p.grad.cpu() for n, p in model.named_parameters()}


def test_logits_and_gradients_are_those_of_a_cpu(calls: list[str]) -> None:
    ids = torch.randint(65, 85, (2, 700), generator=torch.Generator().manual_seed(0))
    expected, gradients = logits_and_gradients(load("nano"), ids)
    assert not calls
    logits, found = logits_and_gradients(load("nano", device="cuda"), ids)
    assert calls == [fir.__name__, fir.__name__, modal.__name__] * 2  # SML A SML
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    for name, gradient in gradients.items():
        error = (found[name] - gradient).norm() / gradient.norm()
        assert error < 1e-4, name


def test_bf16_inference_and_decode(calls: list[str]) -> None:
    model = load("nano", device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    ids = torch.randint(65, 85, (2, 300), generator=torch.Generator().manual_seed(0)).cuda()
    whole = model(ids)
    expected = load("nano").requires_grad_(False)(ids.cpu())
    assert (whole.cpu() - expected).norm() / expected.norm() < 0.02
    cache, pieces = model.new_cache(2), []
    for piece in ids.split([100, 1, 1, 198], dim=1):
        pieces.append(model(piece, cache=cache))
    error = (torch.cat(pieces, dim=1) - whole).norm() / whole.norm()
    assert error < 0.02
    assert len(calls) == 5 * 6


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own making
@pytest.mark.filterwarnings("ignore:TensorFloat32")  # advice to give up what fp32 promises
def test_compile_changes_nothing() -> None:
    model = load("nano", device="cuda").requires_grad_(False)
    ids = torch.randint(65, 85, (1, 200), generator=torch.Generator().manual_seed(0)).cuda()
    expected = model(ids)
    torch.testing.assert_close(torch.compile(model)(ids), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_rows_of_a_launch_have_the_bits_that_they_have_alone(dtype: torch.dtype) -> None:
    """Whatever else is read, in any order: a matrix product sums all of its rows alike."""
    model, wanted = load("nano", device="cuda", dtype=dtype).eval(), many(150)
    shapes = Shapes.of(model)
    assert shapes == Shapes(65_536)
    together = logprobs(Packer(model), wanted)
    assert logprobs(Packer(model), wanted[::-1])[::-1] == together
    busy = Packer(model)
    in_parts = [value for part in range(5) for value in logprobs(busy, wanted[30 * part :][:30])]
    assert in_parts == together
    for place in range(0, 150, 13):
        assert logprobs(Packer(model), [wanted[place]]) == [together[place]]
    exact = load("nano").double().eval()
    noise = 1e-3 if dtype == torch.float32 else 2.0
    for (bases, _), value in list(zip(wanted, together, strict=True))[:40]:
        if len(bases) > 1:
            assert value == pytest.approx(sequence_logprob(exact, bases), rel=0, abs=noise)
