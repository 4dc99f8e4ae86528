"""The public functions of attention: rotary embedding, prefill and training, decoding.

B batch, H heads, L new tokens, T keys, W channels of a head, V = W / 2 rotated pairs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hyenakernels.attention import reference
from hyenakernels.attention.block import block_forward, flash_supports, merge
from hyenakernels.attention.float8 import Float8Rows, Rows
from hyenakernels.dispatch import all_contiguous, kernels_support, warn_once
from hyenakernels.float8.op import runs_float8
from hyenakernels.gradients import Fused
from hyenakernels.host_memory import prefetch
from hyenakernels.precision import accumulation_dtype

QUERY_BLOCK = 256  # queries per call if a mask is needed: bounds the mask to 256 x T
PAST_BLOCK = 32_768  # past keys per call: cuDNN builds a plan for this shape once


def rotary(x_BLHW: Tensor, cos_BLV: Tensor, sin_BLV: Tensor) -> Tensor:
    """Rotate each pair (i, i + W/2) by its token's angle; defined by `attention.reference.rotary`.

    Args:
        x_BLHW: Queries or keys.
        cos_BLV: Cosines of the angles; a batch size of 1 is broadcast to all sequences.
        sin_BLV: Their sines.

    Returns:
        The rotated heads, in the dtype of x.

    Raises:
        ValueError: The shapes of the angles and the heads do not match.
    """
    batch, length, _, width = x_BLHW.shape
    for angles in (cos_BLV, sin_BLV):
        if angles.shape[1:] != (length, width // 2) or angles.shape[0] not in (1, batch):
            raise ValueError(
                f"rotary: heads {tuple(x_BLHW.shape)} need angles [{batch} or 1, {length}, "
                f"{width // 2}], got {tuple(angles.shape)}"
            )
    if cos_BLV.dtype == torch.float32 and kernels_support(x_BLHW, width=width):
        dense_rows = x_BLHW.stride(3) == 1 and x_BLHW.stride(2) == width
        rotated: Tensor = fused_rotary(
            x_BLHW if dense_rows else x_BLHW.contiguous(),
            cos_BLV.contiguous(),
            sin_BLV.contiguous(),
        )
        return rotated
    return reference.rotary(x_BLHW, cos_BLV, sin_BLV)


def _rotate(x_BLHW: Tensor, cos_BLV: Tensor, sin_BLV: Tensor) -> Tensor:
    """`rotary` by the kernel."""
    from hyenakernels.attention import kernel

    with torch.cuda.device_of(x_BLHW):
        rotated: Tensor = kernel.rotary(x_BLHW, cos_BLV, sin_BLV, backward=False)
    return rotated


def _rotate_back(dy_BLHW: Tensor, cos_BLV: Tensor, sin_BLV: Tensor) -> Tensor:
    """The transpose of `_rotate`, which is the inverse rotation."""
    from hyenakernels.attention import kernel

    with torch.cuda.device_of(dy_BLHW):
        rotated: Tensor = kernel.rotary(dy_BLHW, cos_BLV, sin_BLV, backward=True)
    return rotated


def _fake_rotation(
    x_BLHW: Tensor,
    cos_BLV: Tensor,  # noqa: ARG001 - the fake has the operator's signature
    sin_BLV: Tensor,  # noqa: ARG001
) -> Tensor:
    return torch.empty(x_BLHW.shape, dtype=x_BLHW.dtype, device=x_BLHW.device)


def _save_angles(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # noqa: ARG001
    ctx.save_for_backward(inputs[1], inputs[2])


def _backward(gradient, ctx, dy_BLHW):  # type: ignore[no-untyped-def]
    return gradient(dy_BLHW.contiguous(), *ctx.saved_tensors), None, None


fused_rotary = Fused(
    "rotary",
    _rotate,
    _rotate_back,
    fakes=(_fake_rotation, _fake_rotation),
    save=_save_angles,
    backward=_backward,
)


def causal_attention(q_BHLW: Tensor, k_BHTW: Rows, v_BHTW: Rows) -> Tensor:
    """Causal softmax attention of the last L of T positions.

    Args:
        q_BHLW: The queries; L may be 0.
        k_BHTW: The keys; the last L are at the positions of the queries. They may be in host memory
            or in FP8, but then there are no gradients.
        v_BHTW: The values, on the device of the keys.

    Returns:
        softmax(q k^T / sqrt(W)) v, [B, H, L, W].
    """
    length, seen = q_BHLW.shape[2], k_BHTW.shape[2]
    if length == 0:
        return q_BHLW
    if (
        k_BHTW.device != q_BHLW.device
        or isinstance(k_BHTW, Float8Rows)
        or isinstance(v_BHTW, Float8Rows)
    ):
        return _by_blocks(q_BHLW, k_BHTW, v_BHTW, seen - length)
    if length == seen:
        return F.scaled_dot_product_attention(q_BHLW, k_BHTW, v_BHTW, is_causal=True)
    if not torch.is_grad_enabled() and flash_supports(q_BHLW.device, q_BHLW.dtype, q_BHLW.shape[3]):
        return _by_blocks(q_BHLW, k_BHTW, v_BHTW, seen - length)
    outputs = []
    for start in range(0, length, QUERY_BLOCK):
        q = q_BHLW[:, :, start : start + QUERY_BLOCK]
        first = seen - length + start
        end = first + q.shape[2]
        positions = torch.arange(end, device=q.device)
        visible = positions[None, :] <= positions[first:, None]
        outputs.append(
            F.scaled_dot_product_attention(
                q, k_BHTW[:, :, :end], v_BHTW[:, :, :end], attn_mask=visible
            )
        )
    return torch.cat(outputs, dim=2)


def _by_blocks(q_BHLW: Tensor, k_BHTW: Rows, v_BHTW: Rows, past: int) -> Tensor:
    """Causal attention to the new keys, merged with attention to blocks of the `past` keys."""
    starts = range(0, past, PAST_BLOCK)
    past_blocks = [slice(first, min(first + PAST_BLOCK, past)) for first in starts]
    new = slice(past, k_BHTW.shape[2])
    parts = [(k_BHTW[:, :, block], v_BHTW[:, :, block]) for block in (new, *past_blocks)]
    blocks = prefetch(parts, q_BHLW.device)
    k, v = next(blocks)
    new_BHLW, lse_BHL = block_forward(q_BHLW, k, v, causal=True)
    out_BHLW = new_BHLW.to(accumulation_dtype(q_BHLW))
    for k, v in blocks:
        merge(out_BHLW, lse_BHL, *block_forward(q_BHLW, k, v, causal=False))
    return out_BHLW.to(q_BHLW.dtype)


def _tensors(rows_BHTW: Rows) -> tuple[Tensor, ...]:
    """The tensors that `rows` consists of."""
    if isinstance(rows_BHTW, Float8Rows):
        return rows_BHTW.bytes_BHTW, rows_BHTW.scales_BHT
    return (rows_BHTW,)


def _reads_float8(q_BHW: Tensor) -> bool:
    """Whether the kernels can read FP8: on Ada, Hopper and newer GPUs, and in the interpreter."""
    if not q_BHW.is_cuda or runs_float8(q_BHW.device):
        return True
    warn_once(
        f"{torch.cuda.get_device_name(q_BHW.device)} cannot read FP8: the KV cache is dequantized"
    )
    return False


def append_token(
    qkv_BC: Tensor,
    frequency_V: Tensor,
    rotary_scale: float,
    keys_BHTW: Rows,
    values_BHTW: Rows,
    lengths_B: Tensor,
) -> Tensor:
    """Append a new token of each sequence to the KV cache; without gradients.

    Args:
        qkv_BC: The token's projections: the queries of all heads, then the keys, then the values.
        frequency_V: Radians per position of each pair of a head.
        rotary_scale: Positions are divided by it.
        keys_BHTW: A KV cache with capacity for T tokens, of which the first `lengths` are filled;
            the new, rotated key is stored after them.
        values_BHTW: The values, likewise; in FP8 if the keys are.
        lengths_B: The number of earlier tokens, which is the new position: 0 to T - 1, int64.

    Returns:
        The rotated queries, [B, H, W].

    Raises:
        ValueError: The shapes do not match.
    """
    batch, heads, _, width = keys_BHTW.shape
    if qkv_BC.shape != (batch, 3 * heads * width) or frequency_V.shape != (width // 2,):
        raise ValueError(
            f"append_token: projections {tuple(qkv_BC.shape)} and {len(frequency_V)} frequencies "
            f"do not match keys {tuple(keys_BHTW.shape)}"
        )
    arguments = (frequency_V, rotary_scale, keys_BHTW, values_BHTW, lengths_B)
    if (
        all_contiguous(frequency_V, *_tensors(keys_BHTW), *_tensors(values_BHTW), lengths_B)
        and frequency_V.dtype == torch.float32
        and kernels_support(qkv_BC, width=width)
        and (isinstance(keys_BHTW, Tensor) or _reads_float8(qkv_BC))
    ):
        from hyenakernels.attention import step

        with torch.cuda.device_of(qkv_BC):
            q_BHW: Tensor = step.append_token(qkv_BC.contiguous(), *arguments)
        return q_BHW
    return reference.append_token(qkv_BC, *arguments)


def decode_attention(
    q_BHW: Tensor, keys_BHTW: Rows, values_BHTW: Rows, lengths_B: Tensor
) -> Tensor:
    """Attention of one query per sequence to its KV cache; without gradients.

    Args:
        q_BHW: One query for each sequence and head.
        keys_BHTW: A KV cache with capacity for T tokens, of which the first `lengths` are filled.
        values_BHTW: The values, likewise; in FP8 if the keys are.
        lengths_B: The number of tokens in the cache, 1 to T, int64.

    Returns:
        [B, H, W], as defined by `attention.reference.decode_attention`.

    Raises:
        ValueError: The shapes do not match.
    """
    batch, heads, width = q_BHW.shape
    if keys_BHTW.shape[:2] != (batch, heads) or keys_BHTW.shape[3] != width:
        raise ValueError(
            f"decode_attention: queries {tuple(q_BHW.shape)} do not match keys "
            f"{tuple(keys_BHTW.shape)}"
        )
    float8 = isinstance(keys_BHTW, Float8Rows)
    if (
        all_contiguous(lengths_B, *_tensors(keys_BHTW), *_tensors(values_BHTW))
        and kernels_support(q_BHW, width=width)
        and (not float8 or _reads_float8(q_BHW))
    ):
        from hyenakernels.attention import step

        with torch.cuda.device_of(q_BHW):
            y_BHW: Tensor = step.decode_attention(
                q_BHW.contiguous(), keys_BHTW, values_BHTW, lengths_B
            )
        return y_BHW
    keys_BHTW, values_BHTW = (
        x.to(x.device) if isinstance(x, Float8Rows) else x for x in (keys_BHTW, values_BHTW)
    )
    return reference.decode_attention(q_BHW, keys_BHTW, values_BHTW, lengths_B)


def pooled_attention(
    q_BLHW: Tensor,
    k_BLHW: Tensor,
    v_BLHW: Tensor,
    keys_NHW: Tensor,
    values_NHW: Tensor,
    page_table_BT: Tensor,
    past_lengths_B: Tensor,
) -> Tensor:
    """Attention of a batch of sequences to a paged KV cache, with pages of one token; no gradients.

    No result depends on the other sequences, and the kernel does not copy any past.

    Args:
        q_BLHW: Rotated queries of the new tokens.
        k_BLHW: Their rotated keys.
        v_BLHW: Their values.
        keys_NHW: The pool: rotated keys of earlier tokens, in any order.
        values_NHW: Their values.
        page_table_BT: The pool index of each past token of a sequence, in order of position, int32;
            only the first `past_lengths` of a row are read.
        past_lengths_B: The number of past tokens of each sequence, 0 to T, int32.

    Returns:
        [B, L, H, W], as defined by `attention.reference.pooled_attention`.

    Raises:
        ValueError: The shapes do not match.
    """
    batch, length, heads, width = q_BLHW.shape
    if (
        {k_BLHW.shape, v_BLHW.shape} != {q_BLHW.shape}
        or {keys_NHW.shape[1:], values_NHW.shape[1:]} != {(heads, width)}
        or (len(page_table_BT), len(past_lengths_B)) != (batch, batch)
    ):
        raise ValueError(
            f"pooled_attention: heads {tuple(q_BLHW.shape)} and {tuple(k_BLHW.shape)} do not match "
            f"a pool {tuple(keys_NHW.shape)} and a page table {tuple(page_table_BT.shape)}"
        )
    if length and kernels_support(q_BLHW, width=width):
        from hyenakernels.attention import pooled

        q_BLHW, k_BLHW, v_BLHW = (
            x if x.stride(3) == 1 and x.stride(2) == width else x.contiguous()
            for x in (q_BLHW, k_BLHW, v_BLHW)
        )
        with torch.cuda.device_of(q_BLHW):
            y_BLHW: Tensor = pooled.pooled_attention(
                q_BLHW,
                k_BLHW,
                v_BLHW,
                keys_NHW,
                values_NHW,
                page_table_BT.contiguous(),
                past_lengths_B,
            )
        return y_BLHW
    rows = []
    for row, past in enumerate(past_lengths_B.tolist()):
        pages, this = page_table_BT[row, :past], slice(row, row + 1)
        k_1THW = torch.cat([keys_NHW[pages][None], k_BLHW[this]], dim=1)
        v_1THW = torch.cat([values_NHW[pages][None], v_BLHW[this]], dim=1)
        heads_first = (x.transpose(1, 2) for x in (q_BLHW[this], k_1THW, v_1THW))
        rows.append(causal_attention(*heads_first).transpose(1, 2))
    return torch.cat(rows)
