"""A streamed sequence has the logits of one pass, whatever the chunk; the plan fits the memory."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from stripedhyena2 import InputError, ModelConfig, StripedHyena2, host, load, scoring
from stripedhyena2.streaming import Streaming, fastest_streaming, stream


def random_ids(batch: int, length: int) -> Tensor:
    return torch.randint(0, 512, (batch, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("offload", [False, True], ids=["device", "host"])
@pytest.mark.parametrize("chunk", [1, 7, 150, 400], ids=lambda chunk: f"chunk{chunk}")
def test_chunks_give_the_whole(tiny_model: StripedHyena2, chunk: int, offload: bool) -> None:
    ids = random_ids(2, 20 if chunk == 1 else 300)
    with torch.no_grad():
        whole = tiny_model(ids)
    steps = list(stream(tiny_model, ids, Streaming(chunk, offload)))
    found = torch.cat([logits for _, logits in steps if logits is not None], dim=1)
    torch.testing.assert_close(found, whole, rtol=1e-9, atol=1e-9)
    passes = tiny_model.config.depth + 1
    assert sum(count for count, _ in steps) == passes * ids.shape[1]


def test_a_sequence_that_the_machine_cannot_hold_is_refused_before_it_is_computed(
    tiny_model: StripedHyena2, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = Streaming().peak_memory(tiny_model.config, 300, 8)
    monkeypatch.setattr(scoring, "available_bytes", lambda: needed - 1)
    with pytest.raises(InputError, match=r"300 tokens need .* free some, or cut the sequence"):
        scoring.choose_streaming(tiny_model, 300, None)
    for enough in (needed, None):
        monkeypatch.setattr(scoring, "available_bytes", lambda enough=enough: enough)
        assert scoring.choose_streaming(tiny_model, 300, None) == Streaming()


def test_a_container_has_what_its_limit_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(host, "_CGROUP", tmp_path)
    assert host.available_bytes() is None
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    5 kB\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert host.available_bytes() == 5 * 1024
    (tmp_path / "memory.max").write_text("4096\n")
    (tmp_path / "memory.stat").write_text("anon 1000\nfile 3000\n")
    assert host.available_bytes() == 4096 - 1000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_host_lends_a_gpu_its_memory(dtype: torch.dtype) -> None:
    model = load("nano", device="cuda", dtype=dtype).requires_grad_(False)
    ids = torch.randint(65, 85, (1, 5000), generator=torch.Generator().manual_seed(0)).cuda()
    right = model(ids).float()
    readings = []
    for offload in (False, True):
        steps = stream(model, ids, Streaming(1024, offload))
        readings.append(torch.cat([logits for _, logits in steps if logits is not None], dim=1))
    for found in readings:
        error = float((found - right).norm() / right.norm())
        assert error < (1e-4 if dtype == torch.float32 else 0.02)
    if dtype == torch.bfloat16:  # by FlashAttention, which does not ask how keys lie in memory
        assert torch.equal(*readings)


def test_a_layer_is_done_before_the_next(tiny_model: StripedHyena2) -> None:
    heard: list[tuple[str, int]] = []
    hooks = [
        module.register_forward_hook(
            lambda _, x, __, name=name: heard.append((name, x[0].shape[1]))
        )
        for name, module in tiny_model.named_modules()
        if name in ("embedding", "blocks.0", "blocks.1.mlp.down", "norm")
    ]
    for _ in stream(tiny_model, random_ids(1, 25), Streaming(10)):
        pass
    for hook in hooks:
        hook.remove()
    names = ("embedding", "blocks.0", "blocks.1.mlp.down", "norm")
    assert heard == [(name, count) for name in names for count in (10, 10, 5)]


def test_the_plan_fits_the_memory(tiny_config: ModelConfig) -> None:
    length, element = 1_000_000, 2
    most = Streaming().peak_memory(tiny_config, length, element)
    assert fastest_streaming(tiny_config, length, element, 100, most + 100) == Streaming()
    for memory in (most, most * 0.9, most * 0.5, 2e7):
        plan = fastest_streaming(tiny_config, length, element, 100, memory + 100)
        assert plan.peak_memory(tiny_config, length, element) <= memory
    assert plan.offload
    with pytest.raises(MemoryError, match=r"need \d+ MiB with the weights, and there are 3"):
        fastest_streaming(tiny_config, length, element, 2**21, 3 * 2**20)


def test_fallbacks_come_to_an_end() -> None:
    plan: Streaming | None = Streaming()
    seen = []
    while plan is not None:
        seen.append(plan)
        plan = plan.fallback
    halves = [32_768, 16_384, 8_192, 4_096, 2_048, 1_024]
    assert seen == [Streaming(chunk, offload) for offload in (False, True) for chunk in halves]
    assert Streaming(1_500).fallback == Streaming(1_024)
