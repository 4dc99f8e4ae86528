"""Attention over shards is attention over the sequence, gradients included (4 ranks)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from hyenakernels.attention import block
from hyenakernels.parallel import Sharding, attention_all_to_all, attention_ring
from hyenakernels.parallel.ring import tiles
from tests.hyenakernels.tensors import random
from tests.ranks import Attempt, failures_on_ranks

BATCH, HEADS, WIDTH = 2, 6, 8  # six heads: four ranks get one or two
SCHEMES = {"all-to-all": attention_all_to_all, "ring": attention_ring}
SHARDINGS: dict[int, dict[str, Sharding | None]] = {
    2: {"uneven": Sharding.contiguous([40, 1]), "zigzag": Sharding.zigzag(37, 2)},
    4: {
        "even": Sharding.even(64, 4),
        "uneven": Sharding.contiguous([1, 31, 1, 25]),
        "told": None,
        "zigzag": Sharding.zigzag(64, 4),
        "zigzag-uneven": Sharding.zigzag(61, 4),
        "zigzag-empty-chunks": Sharding.zigzag(6, 4),
        "striped": Sharding(tuple(tuple((i, i + 1) for i in range(r, 22, 4)) for r in range(4))),
    },
}
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def same(found: Tensor, right: Tensor, bound: float) -> None:
    torch.testing.assert_close(found.to(right.dtype), right, rtol=0, atol=bound)


def inputs(length: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v and the gradient of y for the whole sequence, rounded to `dtype`."""
    whole = [random(BATCH, length, HEADS, WIDTH, seed=i).to(dtype) for i in range(4)]
    return [x.transpose(1, 2) for x in whole]


def whole_attention(qkvdy: list[Tensor]) -> list[Tensor]:
    """y, dq, dk and dv of a single device, in fp64."""
    *qkv, dy = (x.double().detach() for x in qkvdy)
    leaves = [x.requires_grad_(True) for x in qkv]
    y = F.scaled_dot_product_attention(*leaves, is_causal=True)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def check_values(
    scheme: Callable[..., Tensor], sharding: Sharding | None, dtype: torch.dtype, group: Any
) -> None:
    rank = dist.get_rank(group)
    held = sharding or Sharding.contiguous([5, 20, 1, 9])
    qkvdy = inputs(sum(held.lengths), dtype)
    wanted = whole_attention(qkvdy)
    *qkv, dy = (held.cut(x, rank, dim=2) for x in qkvdy)
    leaves = [x.requires_grad_(True) for x in qkv]
    y = scheme(*leaves, sharding=sharding, group=group)
    assert y.dtype == dtype
    for found, right in zip([y, *torch.autograd.grad(y, leaves, dy)], wanted, strict=True):
        bound = TOLERANCES[dtype] * float(right.abs().max())
        same(found.detach(), held.cut(right, rank, dim=2), bound)


def check_memory(scheme: Callable[..., Tensor]) -> None:
    """The ring saves q, k, v, y and a logarithm per query of its own shard; nothing in no_grad."""
    sharding, rank = Sharding.zigzag(64, 4), dist.get_rank()
    q, k, v, _ = (sharding.cut(x, rank, dim=2) for x in inputs(64, torch.float64))
    sizes: list[int] = []

    def pack(x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        with torch.no_grad():
            scheme(q.requires_grad_(True), k, v, sharding=sharding)
        assert not sizes
        scheme(q, k, v, sharding=sharding).sum().backward()
    if scheme is attention_ring:
        assert sum(sizes) == 4 * q.numel() + q.numel() // WIDTH


def check_errors(scheme: Callable[..., Tensor]) -> None:
    rank, sharding = dist.get_rank(), Sharding.even(64, 4)
    q, k, v, _ = (sharding.cut(x, rank, dim=2) for x in inputs(64, torch.float32))
    with pytest.raises(ValueError, match="its shard is 15 rows"):
        scheme(q, k, v, sharding=Sharding.even(60, 4))
    with pytest.raises(ValueError, match=r"k \(2, 3, 16, 8\)"):
        scheme(q, k[:, :3], v, sharding=sharding)
    if scheme is attention_all_to_all:
        with pytest.raises(ValueError, match="3 heads for 4 ranks"):
            scheme(q[:, :3], k[:, :3], v[:, :3], sharding=sharding)
    else:
        backward = Sharding(tuple(((8 * r + 32, 8 * r + 40), (8 * r, 8 * r + 8)) for r in range(4)))
        with pytest.raises(ValueError, match="must be ascending"):
            scheme(q, k, v, sharding=backward)


CASES = [
    (name, count, shards) for name in SCHEMES for count in SHARDINGS for shards in SHARDINGS[count]
]


def checks(rank: int, attempt: Attempt) -> None:
    groups = {2: dist.new_group([1, 3]), 4: dist.group.WORLD}
    for name, count, shards in CASES:
        if count == 4 or rank in (1, 3):
            for dtype in TOLERANCES:
                arguments = (SCHEMES[name], SHARDINGS[count][shards], dtype, groups[count])
                attempt(f"{name}-{count}-{shards}", check_values, *arguments)
    for name, scheme in SCHEMES.items():
        attempt(f"{name}-memory", check_memory, scheme)
        attempt(f"{name}-errors", check_errors, scheme)


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What went wrong in one run of all cases on four processes."""
    return failures_on_ranks(4, tmp_path_factory.mktemp("ranks"), checks)


@pytest.mark.parametrize(("scheme", "count", "shards"), CASES)
def test_shards_give_the_whole(
    failures: dict[str, str], scheme: str, count: int, shards: str
) -> None:
    label = f"{scheme}-{count}-{shards}"
    assert label not in failures, failures[label]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_the_own_shard_is_saved(failures: dict[str, str], scheme: str) -> None:
    assert f"{scheme}-memory" not in failures, failures[f"{scheme}-memory"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_errors_name_what_does_not_fit(failures: dict[str, str], scheme: str) -> None:
    assert f"{scheme}-errors" not in failures, failures[f"{scheme}-errors"]


def num_pairs(sharding: Sharding, rank: int) -> list[int]:
    """The (query, key) pairs that `rank` computes at each step of the ring."""
    length, count = sharding.lengths[rank], len(sharding.spans)
    steps = [length * (length + 1) // 2]
    for step in range(1, count):
        seen = tiles(sharding, rank, (rank - step) % count)
        steps.append(sum((length - t.first_query) * (t.keys[1] - t.keys[0]) for t in seen))
    return steps


@pytest.mark.parametrize("count", [1, 2, 4, 7])
@pytest.mark.parametrize("length", [56, 167, 4096])
def test_every_causal_pair_is_computed_once(count: int, length: int) -> None:
    for sharding in (Sharding.even(length, count), Sharding.zigzag(length, count)):
        pairs = sum(sum(num_pairs(sharding, rank)) for rank in range(count))
        assert pairs == length * (length + 1) // 2


@pytest.mark.parametrize("count", [2, 4, 7])
def test_zigzag_gives_every_rank_the_same_work(count: int) -> None:
    even = [num_pairs(Sharding.zigzag(2 * count * 9, count), rank) for rank in range(count)]
    assert all(steps == even[0] for steps in even)  # at every step, so that no rank waits
    for length in range(8 * count, 8 * count + 30):
        pairs = [sum(num_pairs(Sharding.zigzag(length, count), rank)) for rank in range(count)]
        assert max(pairs) - min(pairs) <= length  # chunks differ by one row


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_a_block_in_chunks_is_softmax_attention(
    monkeypatch: pytest.MonkeyPatch, causal: bool
) -> None:
    monkeypatch.setattr(block, "QUERY_CHUNK", 5)
    q, k, v, dout = inputs(17, torch.float64)
    leaves = [x.requires_grad_(True) for x in (q, k, v)]
    scores = q @ k.mT / WIDTH**0.5
    if causal:
        scores = scores.masked_fill(torch.ones(17, 17).triu(1) > 0, -torch.inf)
    wanted = scores.softmax(dim=3) @ v
    with torch.no_grad():
        out, lse = block.block_forward(q, k, v, causal)
        gradients = block.block_backward(dout, q, k, v, out, lse, causal)
    same(lse, scores.detach().logsumexp(dim=3), 1e-12)
    pairs = zip(
        [out, *gradients], [wanted, *torch.autograd.grad(wanted, leaves, dout)], strict=True
    )
    for found, right in pairs:
        same(found, right.detach(), 1e-12)


@pytest.mark.parametrize("by_cudnn", [False, True], ids=["flash", "cudnn"])
def test_the_private_operators_of_pytorch_have_these_signatures(
    monkeypatch: pytest.MonkeyPatch, by_cudnn: bool
) -> None:
    """On the meta device, so that a change of PyTorch shows without a GPU too."""
    monkeypatch.setattr(block, "flash_supports", lambda *_: True)
    monkeypatch.setattr(block, "_use_cudnn", lambda *_: by_cudnn)
    q, k, v, dout = (torch.empty(2, 3, 1024, 64, device="meta").bfloat16() for _ in range(4))
    out, lse = block.block_forward(q, k, v, True)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    assert (lse.shape, lse.dtype) == (q.shape[:3], torch.float32)
    for gradient in block.block_backward(dout, q, k, v, out, lse, True):
        assert (gradient.shape, gradient.dtype) == (q.shape, q.dtype)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(("length", "first"), [(300, 113), (2048, 1024)], ids=["flash", "cudnn"])
def test_flash_blocks_are_plain_blocks(
    length: int, first: int, causal: bool, dtype: torch.dtype, width: int
) -> None:
    shape = (2, length, 3, width)
    whole = [random(*shape, seed=i).to("cuda", dtype).transpose(1, 2) for i in range(5)]
    first = 0 if causal else first  # the queries of a tile start anywhere in their shard
    q, dout = (x[:, :, first:] for x in whole[:2])
    _, _, k, v, _ = whole
    out, lse = block.block_forward(q, k, v, causal)
    wide = [x.double() for x in (q, k, v)]
    right, right_lse = block.plain_forward(*wide, causal)
    assert out.dtype == dtype
    assert lse.shape == right_lse.shape
    torch.testing.assert_close(lse.double(), right_lse, rtol=0, atol=1e-3)

    def close(found: Tensor, wanted: Tensor) -> None:
        assert float((found.double() - wanted).norm() / wanted.norm()) < 1e-2

    close(out, right)
    # With further keys: the gradients of a block depend on the lse and the output of all keys.
    more, more_lse = block.plain_forward(wide[0], wide[2].roll(1, 1), whole[4].double(), False)
    share = torch.sigmoid(more_lse - right_lse)
    global_out, global_lse = (
        right.lerp(more, share[..., None]),
        torch.logaddexp(right_lse, more_lse),
    )
    padded_lse = F.pad(global_lse.float(), (first, 0))[:, :, first:]  # strided, as a tile's is
    rounded = global_out.to(dtype)
    found = block.block_backward(dout, q, k, v, rounded, padded_lse, causal)
    wanted = block.plain_backward(dout.double(), *wide, global_out, global_lse, causal)
    for gradient, exact in zip(found, wanted, strict=True):
        assert gradient.dtype == dtype
        close(gradient, exact)
