"""References of the attention kernels in plain PyTorch.

B batch, H heads, L tokens, T capacity of a KV cache, N tokens in a pool, W channels of a head,
V = W / 2 rotated pairs.
"""

import torch
from torch import Tensor

from hyenakernels.attention.float8 import Rows
from hyenakernels.precision import accumulation_dtype, full_precision


def rotary(x_BLHW: Tensor, cos_BLV: Tensor, sin_BLV: Tensor) -> Tensor:
    """Rotate each pair (i, i + W/2) of a head by the angle of its token.

    The batch size of the angles may be 1. Computed in the dtype of the angles, returned in that of
    x.

    Source: Su et al., RoFormer, arXiv:2104.09864.
    """
    cos, sin = cos_BLV[:, :, None], sin_BLV[:, :, None]
    a, b = x_BLHW.to(cos.dtype).chunk(2, dim=3)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=3).to(x_BLHW.dtype)


def rotary_angles(positions_BL: Tensor, frequency_V: Tensor, rotary_scale: float) -> Tensor:
    """Compute position / scale * frequency, in fp32 or better; [B, L, V]."""
    dtype = accumulation_dtype(frequency_V)
    return (positions_BL.to(dtype) / rotary_scale)[..., None] * frequency_V.to(dtype)


def append_token(
    qkv_BC: Tensor,
    frequency_V: Tensor,
    rotary_scale: float,
    keys_BHTW: Rows,
    values_BHTW: Rows,
    lengths_B: Tensor,
) -> Tensor:
    """Rotate the query and key of a new token by its position, and store key and value there."""
    heads_BHW = qkv_BC.view(len(qkv_BC), -1, keys_BHTW.shape[3])
    heads = keys_BHTW.shape[1]
    qk_BHW, v_BHW = heads_BHW[:, : 2 * heads], heads_BHW[:, 2 * heads :]
    angle_B1V = rotary_angles(lengths_B[:, None], frequency_V, rotary_scale)
    rotated_BHW = rotary(qk_BHW[:, None], angle_B1V.cos(), angle_B1V.sin())[:, 0]
    q_BHW, k_BHW = rotated_BHW.chunk(2, dim=1)
    sequences = torch.arange(len(lengths_B), device=lengths_B.device)
    keys_BHTW[sequences, :, lengths_B] = k_BHW
    values_BHTW[sequences, :, lengths_B] = v_BHW
    return q_BHW


def decode_attention(
    q_BHW: Tensor, keys_BHTW: Tensor, values_BHTW: Tensor, lengths_B: Tensor
) -> Tensor:
    """Softmax attention of one query per sequence to its first `lengths` keys.

    y = sum_{t < length} softmax_t(q . k_t / sqrt(W)) v_t, in fp32 or better, returned in the dtype
    of q. Keys and values from `lengths` on are masked, even if they are not finite.
    """
    dtype = accumulation_dtype(q_BHW)
    with full_precision(q_BHW):
        scores_BHT = (keys_BHTW.to(dtype) @ q_BHW.to(dtype)[..., None])[..., 0]
        scores_BHT = scores_BHT * q_BHW.shape[2] ** -0.5
        positions_T = torch.arange(keys_BHTW.shape[2], device=q_BHW.device)
        masked_BT = positions_T >= lengths_B[:, None]
        weights_BHT = scores_BHT.masked_fill(masked_BT[:, None], -torch.inf).softmax(dim=2)
        values_BHTW = values_BHTW.to(dtype).masked_fill(masked_BT[:, None, :, None], 0)
        y_BH1W: Tensor = weights_BHT[:, :, None] @ values_BHTW
    return y_BH1W[:, :, 0].to(q_BHW.dtype)


def pooled_attention(
    q_BLHW: Tensor,
    k_BLHW: Tensor,
    v_BLHW: Tensor,
    keys_NHW: Tensor,
    values_NHW: Tensor,
    page_table_BT: Tensor,
    past_lengths_B: Tensor,
) -> Tensor:
    """Causal softmax attention of new tokens, to their past in a pool and to each other.

    The keys of sequence b are keys[page_table[b, t]] for t < past_lengths[b], then k[b, 0],
    k[b, 1], ...; query t attends to the first past_lengths[b] + t + 1 of them.
    y = softmax(q k^T / sqrt(W)) v, in fp32 or better, returned in the dtype of q. Entries of the
    page table from `past_lengths` on are ignored.
    """
    dtype, length = accumulation_dtype(q_BLHW), q_BLHW.shape[1]
    rows = []
    with full_precision(q_BLHW):
        for q_LHW, k_LHW, v_LHW, page_table_T, past in zip(
            q_BLHW, k_BLHW, v_BLHW, page_table_BT, past_lengths_B.tolist(), strict=True
        ):
            pages = page_table_T[:past].long()
            q_HLW = q_LHW.to(dtype).transpose(0, 1)
            k_HTW = torch.cat([keys_NHW[pages], k_LHW]).to(dtype).transpose(0, 1)
            v_HTW = torch.cat([values_NHW[pages], v_LHW]).to(dtype).transpose(0, 1)
            scores_HLT = q_HLW @ k_HTW.mT * q_LHW.shape[2] ** -0.5
            future_LT = torch.ones(length, past + length, dtype=torch.bool, device=q_LHW.device)
            scores_HLT = scores_HLT.masked_fill(future_LT.triu(past + 1), -torch.inf)
            rows.append((scores_HLT.softmax(dim=2) @ v_HTW).transpose(0, 1))
    return torch.stack(rows).to(q_BLHW.dtype)
