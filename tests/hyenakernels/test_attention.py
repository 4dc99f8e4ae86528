"""The attention kernels equal their references, and a continued attention equals the whole."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

from hyenakernels import (
    append_token,
    causal_attention,
    decode_attention,
    pooled_attention,
    rotary,
)
from hyenakernels.attention import op, reference
from hyenakernels.attention.float8 import Float8Rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3 if DEVICE == "cuda" else 1e-2}


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def assert_close(found: Tensor, right: Tensor, tolerance: float) -> None:
    assert found.shape == right.shape
    assert float((found.double() - right).norm()) <= tolerance * float(right.norm())


@pytest.fixture(autouse=True)
def kernels_and_poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels run, interpreted where there is no GPU; memory they do not write is NaN."""
    monkeypatch.setattr(op, "kernels_support", lambda *_, **__: True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("sequences", [1, 2], ids=lambda n: f"angles-of-{n}")
def test_rotary_is_its_reference(dtype: torch.dtype, sequences: int) -> None:
    whole = random(2, 5, 9, 12, seed=0, dtype=dtype)  # heads of a wider projection
    x = whole[:, :, :6].requires_grad_()
    angles = random(sequences, 5, 6, seed=1)
    weight = random(2, 5, 6, 12, seed=2, dtype=dtype)
    turned = rotary(x, angles.cos(), angles.sin())
    (dx,) = torch.autograd.grad(turned, x, weight)
    exact = x.detach().double().requires_grad_()
    right = reference.rotary(exact, angles.double().cos(), angles.double().sin())
    (right_dx,) = torch.autograd.grad(right, exact, weight.double())
    assert_close(turned.detach(), right.detach(), TOLERANCE[dtype])
    assert_close(dx, right_dx, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype)[6:])
def test_decode_attention_is_attention_to_the_keys_in_use(dtype: torch.dtype) -> None:
    lengths = [1, 64, 511, 513, 700]
    q = random(len(lengths), 2, 12, seed=0, dtype=dtype)
    keys, values = (random(len(lengths), 2, 700, 12, seed=s, dtype=dtype) for s in (1, 2))
    rows = []
    for row, length in enumerate(lengths):
        keys[row, :, length:], values[row, :, length:] = torch.nan, torch.inf
        seen = (x[row, :, :length].double() for x in (keys, values))
        rows.append(F.scaled_dot_product_attention(q[row, :, None].double(), *seen)[:, 0])
    right = torch.stack(rows)
    lengths_B = torch.tensor(lengths, device=DEVICE)
    assert_close(decode_attention(q, keys, values, lengths_B), right, TOLERANCE[dtype])
    exact = reference.decode_attention(q.double(), keys.double(), values.double(), lengths_B)
    assert_close(exact, right, 1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype)[6:])
def test_a_token_is_stored_at_its_position(dtype: torch.dtype) -> None:
    heads, width, scale = 3, 12, 4.0
    qkv = random(2, 3 * heads * width, seed=0, dtype=dtype)
    frequency = 10_000 ** -torch.linspace(0, 1, width // 2, device=DEVICE)
    lengths_B = torch.tensor([0, 77], device=DEVICE)
    room = random(2, 2, heads, 80, width, seed=1, dtype=dtype)
    keys, values = room.clone()
    q = append_token(qkv, frequency, scale, keys, values, lengths_B)

    heads_BPHW = qkv.double().view(2, 3, heads, width)
    angle_BV = lengths_B[:, None].double() / scale * frequency.double()
    cos, sin = (x[:, None, None] for x in (angle_BV.cos(), angle_BV.sin()))
    turned = reference.rotary(heads_BPHW[:, :2], cos[:, :, 0], sin[:, :, 0])
    assert_close(q, turned[:, 0], TOLERANCE[dtype])
    for row, position in enumerate(lengths_B.tolist()):
        assert_close(keys[row, :, position], turned[row, 1], TOLERANCE[dtype])
        assert torch.equal(values[row, :, position], heads_BPHW[row, 2].to(dtype))
        for x, before in zip((keys, values), room, strict=True):
            x[row, :, position] = before[row, :, position]
    assert torch.equal(torch.stack([keys, values]), room)  # and nothing else has changed


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype)[6:])
def test_a_token_is_rounded_when_it_is_stored_in_float8(dtype: torch.dtype) -> None:
    """As if it had been stored as it is and rounded then, bit for bit.

    Of numbers of e4m3, not rotated: the interpreter does not round to FP8 as a GPU does.
    """
    heads, width = 2, 12
    frequency, lengths_B = torch.zeros(width // 2, device=DEVICE), torch.tensor([4, 9, 0])
    lengths_B = lengths_B.to(DEVICE)
    qkv = random(3, 3 * heads, width, seed=0).to(torch.float8_e4m3fn).to(dtype)
    qkv[..., 7] = -448
    qkv *= torch.exp2(torch.arange(-9, 9, device=DEVICE)).to(dtype).view(3, 3 * heads, 1)
    qkv[2, -1] = 0
    qkv = qkv.view(3, -1)
    keys, values = torch.zeros(2, 3, heads, 10, width, dtype=dtype, device=DEVICE)
    rounded = [in_float8(x) for x in (keys, values)]
    q = append_token(qkv, frequency, 1.0, keys, values, lengths_B)
    assert torch.equal(append_token(qkv, frequency, 1.0, *rounded, lengths_B), q)
    for rows, x in zip(rounded, (keys, values), strict=True):
        assert torch.equal(rows.bytes_BHTW, in_float8(x).bytes_BHTW)
        assert torch.equal(rows.scales_BHT, in_float8(x).scales_BHT)


def test_decode_attention_does_not_depend_on_the_batch_or_on_unused_memory() -> None:
    q = random(3, 2, 16, seed=0)
    keys, values = (random(3, 2, 600, 16, seed=s) for s in (1, 2))
    lengths_B = torch.tensor([600, 7, 530], device=DEVICE)
    together = decode_attention(q, keys, values, lengths_B)
    room = [F.pad(x[2:], (0, 0, 0, 900)) for x in (keys, values)]
    assert torch.equal(decode_attention(q[2:], *room, lengths_B[2:]), together[2:])


def pool_of(pasts: list[int], heads: int, width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Keys and values [N, H, W] scattered over a pool, and where each sequence has its own, [B, T].

    What no sequence has is NaN; entries behind a past point anywhere.
    """
    order = torch.randperm(sum(pasts) + 7, generator=torch.Generator().manual_seed(5))
    pool = torch.full((2, len(order), heads, width), torch.nan, dtype=dtype, device=DEVICE)
    page_table_BT = torch.full((len(pasts), max(pasts) + 1), 3, dtype=torch.int32)
    for row, past in enumerate(pasts):
        own = order[sum(pasts[:row]) :][:past]
        page_table_BT[row, :past] = own
        pool[:, own] = random(2, past, heads, width, seed=row, dtype=dtype)
    return (*pool, page_table_BT.to(DEVICE), torch.tensor(pasts, dtype=torch.int32, device=DEVICE))


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "one by one"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype)[6:])
def test_pooled_attention_is_that_of_each_sequence(
    dtype: torch.dtype, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op, "kernels_support", lambda *_, **__: kernel)
    pasts, length, heads, width = [0, 1, 130, 64], 70, 2, 12
    qkv = random(len(pasts), length, 3 * heads, width, seed=9, dtype=dtype)
    q, k, v = qkv.split(heads, dim=2)  # heads of a wider projection
    keys, values, page_table_BT, past_lengths_B = pool_of(pasts, heads, width, dtype)
    rows = []
    for row, past in enumerate(pasts):
        own = page_table_BT[row, :past].long()
        seen = [torch.cat([x[own], y[row]]).double() for x, y in ((keys, k), (values, v))]
        heads_first = (x.transpose(0, 1)[None] for x in (q[row].double(), *seen))
        visible = torch.ones(length, past + length, dtype=torch.bool, device=DEVICE).tril(past)
        y = F.scaled_dot_product_attention(*heads_first, attn_mask=visible)
        rows.append(y[0].transpose(0, 1))
    right, pool = torch.stack(rows), (keys, values, page_table_BT, past_lengths_B)
    assert_close(pooled_attention(q, k, v, *pool), right, TOLERANCE[dtype])
    wide = (x.double() for x in (q, k, v, keys, values))
    assert_close(reference.pooled_attention(*wide, page_table_BT, past_lengths_B), right, 1e-12)


def test_pooled_attention_depends_neither_on_the_batch_nor_on_the_pages() -> None:
    pasts, heads, width = [100, 37, 130], 2, 16
    q, k, v = (random(3, 40, heads, width, seed=s) for s in (1, 2, 3))
    keys, values, page_table_BT, past_lengths_B = pool_of(pasts, heads, width, torch.float32)
    together = pooled_attention(q, k, v, keys, values, page_table_BT, past_lengths_B)
    moved = page_table_BT[2:, :130].long()[0]
    alone = pooled_attention(
        *(x[2:] for x in (q, k, v)),
        *(x[moved] for x in (keys, values)),
        torch.arange(130, dtype=torch.int32, device=DEVICE)[None],
        past_lengths_B[2:],
    )
    assert torch.equal(alone, together[2:])


def test_what_pads_a_row_reaches_nothing_before_it() -> None:
    q, k, v = (random(1, 50, 2, 16, seed=s) for s in (1, 2, 3))
    pool = pool_of([20], 2, 16, torch.float32)
    clean = pooled_attention(q, k, v, *pool)
    for x in (q, k, v):
        x[:, 33:] = 1e4 * random(1, 17, 2, 16, seed=4)
    assert torch.equal(pooled_attention(q, k, v, *pool)[:, :33], clean[:, :33])


def test_shapes_that_do_not_fit_a_pool_are_refused() -> None:
    q, k, v = (random(1, 5, 2, 16, seed=s) for s in (1, 2, 3))
    keys, values, page_table_BT, past_lengths_B = pool_of([4], 3, 16, torch.float32)
    with pytest.raises(ValueError, match=r"do not match a pool \(11, 3, 16\)"):
        pooled_attention(q, k, v, keys, values, page_table_BT, past_lengths_B)


def in_float8(x_BHTW: Tensor) -> Float8Rows:
    rows = Float8Rows.empty((*x_BHTW.shape,), x_BHTW.dtype, x_BHTW.device)  # type: ignore[arg-type]
    rows[:, :, : x_BHTW.shape[2]] = x_BHTW
    return rows


def test_float8_has_its_precision() -> None:
    x = random(2, 3, 50, 16, seed=0) * torch.logspace(-6, 6, 50, device=DEVICE)[:, None]
    x[0, 0, 7] = 0
    rows = in_float8(x)
    restored = rows.to(x.device)
    bound = torch.maximum(x.abs() / 16, x.abs().amax(3, keepdim=True) * 2**-10)
    assert ((restored - x).abs() <= bound).all()
    assert not torch.equal(restored, x)
    part = rows[1:, :, 10:20]
    assert torch.equal(part.to(x.device), restored[1:, :, 10:20])
    rows[0, :, 3:5] = part[0, :, :2]
    assert torch.equal(rows.to(x.device)[0, :, 3:5], restored[1, :, 10:12])


def test_attention_to_float8_is_attention_to_its_numbers() -> None:
    q, k, v = (random(2, 3, 300, 16, seed=s) for s in range(3))
    keys, values = in_float8(k), in_float8(v)
    restored = [x.to(k.device) for x in (keys, values)]
    with torch.no_grad():
        found = causal_attention(q[:, :, 200:], keys, values)
        assert_close(found, causal_attention(q[:, :, 200:], *restored).double(), 1e-5)
    lengths_B = torch.tensor([300, 40], device=DEVICE)
    right = reference.decode_attention(q[:, :, 0], *restored, lengths_B)
    assert_close(decode_attention(q[:, :, 0], keys, values, lengths_B), right.double(), 1e-5)


@pytest.mark.parametrize("cut", [1, 40, 99])
def test_attention_continued_is_attention(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "PAST_BLOCK", 16)
    q, k, v = (random(2, 3, 100, 8, seed=s).double() for s in range(3))
    whole = causal_attention(q, k, v)
    torch.testing.assert_close(causal_attention(q[:, :, cut:], k, v), whole[:, :, cut:])
    torch.testing.assert_close(op._by_blocks(q[:, :, cut:], k, v, cut), whole[:, :, cut:])


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("where", ["cuda", "cpu"], ids=lambda where: f"keys-on-{where}")
@pytest.mark.parametrize("cut", [0, 300, 1000, 1999])
def test_flash_attention_continued_is_attention(
    where: str, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op, "PAST_BLOCK", 512)
    q, k, v = (random(1, 2, 2000, 128, seed=s, dtype=torch.bfloat16) for s in range(3))
    right = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True)
    with torch.no_grad():
        found = causal_attention(q[:, :, cut:], k.to(where), v.to(where))
    assert_close(found, right[:, :, cut:], 5e-3)


def test_shapes_that_do_not_fit_are_named() -> None:
    x = random(2, 5, 3, 8, seed=0)
    with pytest.raises(ValueError, match=r"rotary: heads \(2, 5, 3, 8\) need angles"):
        rotary(x, random(1, 5, 8, seed=1), random(1, 5, 8, seed=1))
    keys = random(2, 3, 9, 4, seed=0)
    with pytest.raises(ValueError, match="decode_attention: queries"):
        decode_attention(x[:, 0], keys, keys, torch.tensor([1, 1], device=DEVICE))
    lengths_B = torch.tensor([1, 1], device=DEVICE)
    with pytest.raises(ValueError, match=r"append_token: projections \(2, 30\) and 2 frequencies"):
        append_token(random(2, 30, seed=0), random(2, seed=0), 1.0, keys, keys, lengths_B)
