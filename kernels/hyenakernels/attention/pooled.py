"""Attention of a batch of sequences to a paged KV cache (a pool, with pages of one token).

A program takes a block of queries of one head of one sequence, reads the past keys through the page
table, in order of position, and then the new keys up to the diagonal. So nothing is copied, and no
bit of a result depends on the other sequences, on their number or on the order of the pool.

B batch, H heads, L new tokens, T columns of the page table, N tokens in the pool, W channels of a
head.
"""

import torch
import triton
import triton.language as tl

from hyenakernels.launch import cdiv, next_power_of_two, pooled_launch

LOG2_E = 1.4426950408889634


@triton.jit
def _attend(
    query,
    keys,
    values,
    key_at,
    value_at,
    seen,
    visible,
    state,
    scale,
    CHECKED: tl.constexpr,
    W: tl.constexpr,
    BLOCK_W: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Update the online softmax (in base 2) with a block of keys and values.

    `key_at` and `value_at` are the offsets of the rows. Unless CHECKED, no mask is needed: all of
    them exist and are visible.
    """
    maximum, total, summed = state
    channel = tl.arange(0, BLOCK_W)
    inside = channel < W
    keys += channel[:, None] + key_at[None, :]
    values += value_at[:, None] + channel[None, :]
    if CHECKED:
        key = tl.load(keys, mask=inside[:, None] & seen[None, :], other=0.0)
        value = tl.load(values, mask=seen[:, None] & inside[None, :], other=0.0)
    elif W < BLOCK_W:
        key = tl.load(keys, mask=inside[:, None], other=0.0)
        value = tl.load(values, mask=inside[None, :], other=0.0)
    else:
        key = tl.load(keys)
        value = tl.load(values)
    score = tl.dot(query, key.to(OPERAND), input_precision=PRECISION) * scale
    if CHECKED:
        score = tl.where(visible, score, -float("inf"))
    new_maximum = tl.maximum(maximum, tl.max(score, axis=1))
    rescale = tl.exp2(maximum - new_maximum)
    weight = tl.exp2(score - new_maximum[:, None])
    total = total * rescale + tl.sum(weight, axis=1)
    summed = summed * rescale[:, None]
    summed += tl.dot(weight.to(OPERAND), value.to(OPERAND), input_precision=PRECISION)
    return new_maximum, total, summed


@triton.jit(do_not_specialize=["length", "max_past"])
def _pooled_kernel(
    q,
    k,
    v,
    keys,
    values,
    page_table,
    past_lengths,
    y,
    length,
    max_past,
    q_batch_stride,
    k_batch_stride,
    v_batch_stride,
    q_row_stride,
    k_row_stride,
    v_row_stride,
    scale,
    H: tl.constexpr,
    W: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_T: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # The last queries attend to the most keys, so their programs start first.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = block * BLOCK_L + tl.arange(0, BLOCK_L)
    channel = tl.arange(0, BLOCK_W)
    inside = channel < W
    present = (row < length)[:, None] & inside[None, :]
    q += batch * q_batch_stride + head * W
    k += batch * k_batch_stride + head * W
    v += batch * v_batch_stride + head * W
    y += (batch * length * H + head) * W
    at = row.to(tl.int64)[:, None] * q_row_stride + channel[None, :]
    query = tl.load(q + at, mask=present, other=0.0).to(OPERAND)
    state = (
        tl.full((BLOCK_L,), -float("inf"), tl.float32),
        tl.zeros((BLOCK_L,), tl.float32),
        tl.zeros((BLOCK_L, BLOCK_W), tl.float32),
    )
    step = tl.arange(0, BLOCK_T)

    past = tl.load(past_lengths + batch)
    page_table += batch * max_past
    in_blocks = past // BLOCK_T * BLOCK_T
    for first in range(0, in_blocks, BLOCK_T):
        page = tl.load(page_table + first + step).to(tl.int64)
        lane = (page * H + head) * W
        state = _attend(
            query, keys, values, lane, lane, step, step, state, scale,
            False, W, BLOCK_W, OPERAND, PRECISION,
        )  # fmt: skip
    for first in range(in_blocks, past, BLOCK_T):
        seen = first + step < past
        page = tl.load(page_table + first + step, mask=seen, other=0).to(tl.int64)
        lane = (page * H + head) * W
        state = _attend(
            query, keys, values, lane, lane, seen, seen[None, :], state, scale,
            True, W, BLOCK_W, OPERAND, PRECISION,
        )  # fmt: skip

    start = block * BLOCK_L  # the keys before it are visible to all queries of the block
    for first in range(0, start, BLOCK_T):
        position = (first + step).to(tl.int64)
        state = _attend(
            query, k, v, position * k_row_stride, position * v_row_stride, step, step, state, scale,
            False, W, BLOCK_W, OPERAND, PRECISION,
        )  # fmt: skip
    for first in range(start, tl.minimum(start + BLOCK_L, length), BLOCK_T):
        position = (first + step).to(tl.int64)
        visible = position[None, :] <= row[:, None]
        state = _attend(
            query, k, v, position * k_row_stride, position * v_row_stride, position < length,
            visible, state, scale, True, W, BLOCK_W, OPERAND, PRECISION,
        )  # fmt: skip
    _, total, summed = state
    at = row.to(tl.int64)[:, None] * (H * W) + channel[None, :]
    tl.store(y + at, (summed / total[:, None]).to(y.dtype.element_ty), mask=present)


def pooled_attention(q_BLHW, k_BLHW, v_BLHW, keys_NHW, values_NHW, page_table_BT, past_lengths_B):
    """`reference.pooled_attention` for heads that are dense along [H, W]."""
    batch, length, heads, width = q_BLHW.shape
    launch = pooled_launch(q_BLHW.dtype, width)
    y_BLHW = q_BLHW.new_empty(batch, length, heads, width)
    # Triton's interpreter would multiply the bit patterns of bf16 as integers.
    narrow = q_BLHW.dtype in (torch.bfloat16, torch.float16)
    operand = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}.get(q_BLHW.dtype)
    if not narrow or triton.knobs.runtime.interpret:
        operand = tl.float32
    _pooled_kernel[(cdiv(length, launch.block_l), heads, batch)](
        q_BLHW,
        k_BLHW,
        v_BLHW,
        keys_NHW,
        values_NHW,
        page_table_BT,
        past_lengths_B,
        y_BLHW,
        length,
        page_table_BT.shape[1],
        q_BLHW.stride(0),
        k_BLHW.stride(0),
        v_BLHW.stride(0),
        q_BLHW.stride(1),
        k_BLHW.stride(1),
        v_BLHW.stride(1),
        width**-0.5 * LOG2_E,
        H=heads,
        W=width,
        BLOCK_W=max(next_power_of_two(width), 16),
        BLOCK_L=launch.block_l,
        BLOCK_T=launch.block_t,
        OPERAND=operand,
        # TF32 would be less precise than fp32 inputs promise.
        PRECISION="ieee",
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
    return y_BLHW
