"""Decoding: append a new token of each sequence to the KV cache, and attend with its query.

With one query per head, attention is bound by reading keys and values. They are split as in
FlashDecoding, but into parts of a fixed size: every program reads PART keys, whatever the length
and the batch, and writes a partial output and its log-sum-exp; a second kernel merges these in
order. So the result depends neither on the capacity of the cache nor on the other sequences of the
batch.

B batch, H heads, T capacity of the cache, W channels of a head, V = W / 2 rotated pairs, N parts.
"""

import torch
import triton
import triton.language as tl

from hyenakernels.attention.float8 import E4M3_MAX as FLOAT8_MAX
from hyenakernels.attention.float8 import Float8Rows
from hyenakernels.float8.kernel import amax_bits, row_scale
from hyenakernels.float8.reference import MIN_SCALE as MIN_FLOAT8_SCALE
from hyenakernels.launch import cdiv, next_power_of_two
from hyenakernels.overlap import overlap_options, wait_for_previous

PART = 128  # keys per program: few, so that short sequences occupy the whole GPU too
E4M3_MAX, MIN_SCALE = tl.constexpr(FLOAT8_MAX), tl.constexpr(MIN_FLOAT8_SCALE)


@triton.jit
def _store_row(rows, scales, row, a, b, pair, V: tl.constexpr, SCALED: tl.constexpr):
    """Store channels `pair` and V + `pair` of a row; if SCALED in FP8, as `Float8Rows` does."""
    inside = pair < V
    if SCALED:
        a, b = a.to(tl.float32), b.to(tl.float32)
        amax = tl.maximum(tl.abs(a), tl.abs(b), propagate_nan=tl.PropagateNan.ALL)
        scale = row_scale(amax_bits(amax), E4M3_MAX, MIN_SCALE)
        tl.store(scales + row, scale)
        a, b = tl.div_rn(a, scale), tl.div_rn(b, scale)
    rows += row * 2 * V
    tl.store(rows + pair, a.to(rows.dtype.element_ty), mask=inside)
    tl.store(rows + V + pair, b.to(rows.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["capacity"])
def _append_kernel(
    qkv,
    frequency,
    keys,
    values,
    key_scales,
    value_scales,
    lengths,
    q,
    capacity,
    rotary_scale,
    H: tl.constexpr,
    V: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_V: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    head, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    pair = tl.arange(0, BLOCK_V)
    inside = pair < V
    frequency = tl.load(frequency + pair, mask=inside, other=0.0)
    wait_for_previous(OVERLAPS)
    position = tl.load(lengths + batch)
    angle = position.to(tl.float32) / rotary_scale * frequency
    cosine, sine = tl.cos(angle), tl.sin(angle)
    qkv += (batch * 3 * H + head) * 2 * V
    lane = batch * H + head
    at = lane * capacity + position
    for part in tl.static_range(3):
        a = tl.load(qkv + part * H * 2 * V + pair, mask=inside, other=0.0)
        b = tl.load(qkv + part * H * 2 * V + V + pair, mask=inside, other=0.0)
        if part < 2:
            wide_a, wide_b = a.to(tl.float32), b.to(tl.float32)
            a = (wide_a * cosine - wide_b * sine).to(q.dtype.element_ty)
            b = (wide_a * sine + wide_b * cosine).to(q.dtype.element_ty)
        if part == 0:
            _store_row(q, key_scales, lane, a, b, pair, V, False)
        elif part == 1:
            _store_row(keys, key_scales, at, a, b, pair, V, SCALED)
        else:
            _store_row(values, value_scales, at, a, b, pair, V, SCALED)


def _rows_and_scales(rows_BHTW, like):
    """Keys or values, and their scales if they are in FP8, else `like` as an unused pointer."""
    if isinstance(rows_BHTW, Float8Rows):
        return rows_BHTW.rows, rows_BHTW.scales_BHT
    return rows_BHTW, like


def append_token(qkv_BC, frequency_V, rotary_scale, keys_BHTW, values_BHTW, lengths_B):
    """`reference.append_token` for contiguous tensors and a KV cache in any dtype or FP8."""
    batch, heads, capacity, width = keys_BHTW.shape
    q_BHW = qkv_BC.new_empty(batch, heads, width)
    keys, key_scales = _rows_and_scales(keys_BHTW, q_BHW)
    values, value_scales = _rows_and_scales(values_BHTW, q_BHW)
    _append_kernel[(heads, batch)](
        qkv_BC,
        frequency_V,
        keys,
        values,
        key_scales,
        value_scales,
        lengths_B,
        q_BHW,
        capacity,
        float(rotary_scale),
        H=heads,
        V=width // 2,
        SCALED=isinstance(keys_BHTW, Float8Rows),
        BLOCK_V=next_power_of_two(width // 2),
        num_warps=1,
        **overlap_options(),
    )
    return q_BHW


@triton.jit(do_not_specialize=["capacity", "parts"])
def _part_kernel(
    q,
    keys,
    values,
    key_scales,
    value_scales,
    lengths,
    outs,
    lse,
    capacity,
    parts,
    scale,
    H: tl.constexpr,
    W: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PART: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Attention to the keys of one part: its output and its log-sum-exp."""
    wait_for_previous(OVERLAPS)
    part, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    end = tl.load(lengths + batch).to(tl.int32)
    if part * PART < end:
        lane = batch.to(tl.int64) * H + head
        channel = tl.arange(0, BLOCK_W)
        inside = channel < W
        position = part * PART + tl.arange(0, PART)
        seen = position < end
        at = (lane * capacity + position)[:, None] * W + channel[None, :]
        present = seen[:, None] & inside[None, :]
        # Both loads are issued before either result is used.
        k = tl.load(keys + at, mask=present, other=0.0)
        v = tl.load(values + at, mask=present, other=0.0)
        query = tl.load(q + lane * W + channel, mask=inside, other=0.0).to(tl.float32) * scale
        score = tl.sum(k.to(tl.float32) * query[None, :], axis=1)
        if SCALED:
            score *= tl.load(key_scales + lane * capacity + position, mask=seen, other=0.0)
        score = tl.where(seen, score, -float("inf"))
        maximum = tl.max(score, axis=0)
        weight = tl.exp(score - maximum)
        total = tl.sum(weight, axis=0)
        if SCALED:
            weight *= tl.load(value_scales + lane * capacity + position, mask=seen, other=0.0)
        summed = tl.sum(weight[:, None] * v.to(tl.float32), axis=0)
        index = lane * parts + part
        tl.store(outs + index * W + channel, summed / total, mask=inside)
        tl.store(lse + index, maximum + tl.log(total))


@triton.jit(do_not_specialize=["parts"])
def _merge_kernel(
    outs,
    lse,
    lengths,
    y,
    parts,
    H: tl.constexpr,
    W: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """Merge the partial outputs of a head in order."""
    wait_for_previous(OVERLAPS)
    head, batch = tl.program_id(0), tl.program_id(1)
    lane = batch.to(tl.int64) * H + head
    channel = tl.arange(0, BLOCK_W)
    inside = channel < W
    count = tl.cdiv(tl.load(lengths + batch).to(tl.int32), PART)
    maximum = tl.full((), -float("inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    merged = tl.zeros((BLOCK_W,), tl.float32)
    for first in range(0, count, BLOCK_N):
        part = first + tl.arange(0, BLOCK_N)
        present = part < count
        at = lane * parts + part
        part_lse = tl.load(lse + at, mask=present, other=-float("inf"))
        mask = present[:, None] & inside[None, :]
        part_out = tl.load(outs + at[:, None] * W + channel[None, :], mask=mask, other=0.0)
        new_maximum = tl.maximum(maximum, tl.max(part_lse, axis=0))
        rescale = tl.exp(maximum - new_maximum)
        weight = tl.exp(part_lse - new_maximum)
        merged = merged * rescale + tl.sum(weight[:, None] * part_out, axis=0)
        total = total * rescale + tl.sum(weight, axis=0)
        maximum = new_maximum
    tl.store(y + lane * W + channel, (merged / total).to(y.dtype.element_ty), mask=inside)


def decode_attention(q_BHW, keys_BHTW, values_BHTW, lengths_B):
    """`reference.decode_attention` for a contiguous KV cache in any dtype or FP8."""
    batch, heads, capacity, width = keys_BHTW.shape
    keys, key_scales = _rows_and_scales(keys_BHTW, q_BHW)
    values, value_scales = _rows_and_scales(values_BHTW, q_BHW)
    parts = cdiv(capacity, PART)
    outs_BHNW = q_BHW.new_empty(batch, heads, parts, width, dtype=torch.float32)
    lse_BHN = q_BHW.new_empty(batch, heads, parts, dtype=torch.float32)
    y_BHW = torch.empty(q_BHW.shape, dtype=q_BHW.dtype, device=q_BHW.device)
    sizes = {"H": heads, "W": width, "BLOCK_W": next_power_of_two(width), "PART": PART}
    sizes |= overlap_options()
    _part_kernel[(parts, heads, batch)](
        q_BHW,
        keys,
        values,
        key_scales,
        value_scales,
        lengths_B,
        outs_BHNW,
        lse_BHN,
        capacity,
        parts,
        width**-0.5,
        SCALED=isinstance(keys_BHTW, Float8Rows),
        # So that a thread holds 256 bytes of keys and as many of values.
        num_warps=min(max(PART * sizes["BLOCK_W"] * keys.element_size() // 8192, 1), 32),
        **sizes,
    )
    _merge_kernel[(heads, batch)](
        outs_BHNW, lse_BHN, lengths_B, y_BHW, parts, BLOCK_N=16, num_warps=4, **sizes
    )
    return y_BHW
