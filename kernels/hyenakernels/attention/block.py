"""Attention of a block of queries to a block of keys, with the log-sum-exp for merging.

PyTorch's public attention does not return the log-sum-exp (lse) of the scores, which merging needs.
So this file, and no other, calls the private operators behind it, `_cudnn_attention` and
`_flash_attention` below; tests/hyenakernels/test_parallel_attention.py fails when they change.

B batch, H heads, L queries, T keys, W channels of a head.
"""

import logging
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from hyenakernels.precision import accumulation_dtype, full_precision

_LOG = logging.getLogger(__name__)

_cudnn_attention = torch.ops.aten._scaled_dot_product_cudnn_attention.default
_cudnn_attention_backward = torch.ops.aten._scaled_dot_product_cudnn_attention_backward.default
_flash_attention = torch.ops.aten._scaled_dot_product_flash_attention.default
_flash_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_backward.default

CUDNN_MULTIPLE = 1024  # cuDNN builds a plan for every new shape, which takes a while: few shapes
QUERY_CHUNK = 1024  # queries at a time without FlashAttention: bounds the scores to 1024 x T


def block_forward(
    q_BHLW: Tensor, k_BHTW: Tensor, v_BHTW: Tensor, causal: bool
) -> tuple[Tensor, Tensor]:
    """Softmax attention to these keys alone, and the log-sum-exp of the scores.

    out = softmax(s) v and lse = log sum_keys exp(s), with s = q k^T / sqrt(W).

    Args:
        q_BHLW: The queries.
        k_BHTW: The keys.
        v_BHTW: The values.
        causal: Query t sees the keys 0 .. t; there must be as many keys as queries.

    Returns:
        out [B, H, L, W], and lse [B, H, L] in fp32 or better.
    """
    if _use_cudnn(q_BHLW, k_BHTW):
        out_BHLW, lse = _cudnn_attention(q_BHLW, k_BHTW, v_BHTW, None, True, 0.0, causal)[:2]
        return out_BHLW, lse.view(q_BHLW.shape[:3])
    if flash_supports(q_BHLW.device, q_BHLW.dtype, q_BHLW.shape[3]):
        out_BHLW, lse_BHL = _flash_attention(q_BHLW, k_BHTW, v_BHTW, 0.0, causal)[:2]
        return out_BHLW, lse_BHL
    return plain_forward(q_BHLW, k_BHTW, v_BHTW, causal)


def block_backward(
    dout_BHLW: Tensor,
    q_BHLW: Tensor,
    k_BHTW: Tensor,
    v_BHTW: Tensor,
    out_BHLW: Tensor,
    lse_BHL: Tensor,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The contribution of these keys to the gradients of attention to all keys.

    p = exp(s - lse), dv = p^T dout, ds = p * (dout v^T - sum_W dout * out), dq = ds k / sqrt(W) and
    dk = ds^T q / sqrt(W): these keys enter only through p and v, all others only through lse and
    out, so the contributions of all blocks add up to the gradient.

    Args:
        dout_BHLW: The gradient of the output.
        q_BHLW: The queries.
        k_BHTW: The keys of this block.
        v_BHTW: Their values.
        out_BHLW: The output over all keys that these queries see.
        lse_BHL: The log-sum-exp over all these keys too.
        causal: See `block_forward`.

    Returns:
        dq, dk and dv, in the dtype of q.
    """
    if not flash_supports(q_BHLW.device, q_BHLW.dtype, q_BHLW.shape[3]):
        return plain_backward(dout_BHLW, q_BHLW, k_BHTW, v_BHTW, out_BHLW, lse_BHL, causal)
    lse_BHL = lse_BHL.contiguous()  # the kernels ignore its strides
    inputs = (dout_BHLW, q_BHLW, k_BHTW, v_BHTW, out_BHLW)
    lengths = (q_BHLW.shape[2], k_BHTW.shape[2])
    if _use_cudnn(q_BHLW, k_BHTW):
        no_rng = torch.zeros((), dtype=torch.int64, device=q_BHLW.device)  # there is no dropout
        dq_BHLW, dk_BHTW, dv_BHTW = _cudnn_attention_backward(
            *inputs, lse_BHL[..., None], no_rng, no_rng, None, None, None, *lengths, 0.0, causal
        )
        return dq_BHLW, dk_BHTW, dv_BHTW
    no_rng = torch.empty(2, dtype=torch.uint64, device=q_BHLW.device)
    dq_BHLW, dk_BHTW, dv_BHTW = _flash_attention_backward(
        *inputs, lse_BHL, None, None, *lengths, 0.0, causal, no_rng, no_rng
    )
    return dq_BHLW, dk_BHTW, dv_BHTW


def merge(out_BHLW: Tensor, lse_BHL: Tensor, other_BHLW: Tensor, other_lse_BHL: Tensor) -> None:
    """Merge attention to more keys into `out` and `lse`, in place.

    exp(other_lse) / (exp(lse) + exp(other_lse)) = sigmoid(other_lse - lse) is the weight of
    `other`.
    """
    weight_BHL = torch.sigmoid(other_lse_BHL - lse_BHL)
    out_BHLW.lerp_(other_BHLW.to(out_BHLW.dtype), weight_BHL[..., None])
    torch.logaddexp(lse_BHL, other_lse_BHL, out=lse_BHL)


def _use_cudnn(q_BHLW: Tensor, k_BHTW: Tensor) -> bool:
    """Whether cuDNN is used: on Hopper and newer GPUs it is nearly twice as fast."""
    if q_BHLW.shape[2] % CUDNN_MULTIPLE or k_BHTW.shape[2] % CUDNN_MULTIPLE:
        return False
    return _cudnn_supports_heads(q_BHLW.device, q_BHLW.dtype, q_BHLW.shape[3])


@cache
def _cudnn_supports_heads(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    return (
        flash_supports(device, dtype, width)
        and width <= 128
        and torch.cuda.get_device_capability(device) >= (9, 0)
        and torch.backends.cudnn.enabled
    )


@cache
def flash_supports(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether FlashAttention supports these heads; on a GPU it is logged once if not."""
    if device.type != "cuda":
        return False
    supports = (
        dtype in (torch.bfloat16, torch.float16)
        and width <= 256
        and width % 8 == 0
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )
    if not supports:
        _LOG.warning(
            "FlashAttention does not support %s heads of %d channels on %s; the slower reference "
            "runs instead",
            dtype,
            width,
            torch.cuda.get_device_name(device),
        )
    return supports


def plain_forward(
    q_BHLW: Tensor, k_BHTW: Tensor, v_BHTW: Tensor, causal: bool
) -> tuple[Tensor, Tensor]:
    """`block_forward` in plain PyTorch; both results are in fp32 or better."""
    dtype = accumulation_dtype(q_BHLW)
    q_BHLW, k_BHTW, v_BHTW = (x.to(dtype) for x in (q_BHLW, k_BHTW, v_BHTW))
    out_BHLW, lse_BHL = torch.empty_like(q_BHLW), q_BHLW.new_empty(q_BHLW.shape[:3])
    with full_precision(q_BHLW):
        for queries, keys in _chunks(q_BHLW.shape[2], k_BHTW.shape[2], causal):
            scores = _scores(q_BHLW[:, :, queries], k_BHTW[:, :, keys], causal, queries.start)
            lse = scores.logsumexp(dim=3)
            lse_BHL[:, :, queries] = lse
            out_BHLW[:, :, queries] = (scores - lse[..., None]).exp() @ v_BHTW[:, :, keys]
    return out_BHLW, lse_BHL


def plain_backward(
    dout_BHLW: Tensor,
    q_BHLW: Tensor,
    k_BHTW: Tensor,
    v_BHTW: Tensor,
    out_BHLW: Tensor,
    lse_BHL: Tensor,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`block_backward` in plain PyTorch, computed in fp32 or better."""
    input_dtype, dtype, scale = q_BHLW.dtype, accumulation_dtype(q_BHLW), q_BHLW.shape[3] ** -0.5
    q_BHLW, k_BHTW, v_BHTW, out_BHLW, dout_BHLW = (
        x.to(dtype) for x in (q_BHLW, k_BHTW, v_BHTW, out_BHLW, dout_BHLW)
    )
    dq_BHLW = torch.empty_like(q_BHLW)
    dk_BHTW, dv_BHTW = torch.zeros_like(k_BHTW), torch.zeros_like(v_BHTW)
    with full_precision(q_BHLW):
        for queries, keys in _chunks(q_BHLW.shape[2], k_BHTW.shape[2], causal):
            q, dout, k = q_BHLW[:, :, queries], dout_BHLW[:, :, queries], k_BHTW[:, :, keys]
            p = (_scores(q, k, causal, queries.start) - lse_BHL[:, :, queries, None]).exp()
            delta = (dout * out_BHLW[:, :, queries]).sum(dim=3, keepdim=True)
            ds = p * (dout @ v_BHTW[:, :, keys].mT - delta) * scale
            dq_BHLW[:, :, queries] = ds @ k
            dk_BHTW[:, :, keys] += ds.mT @ q
            dv_BHTW[:, :, keys] += p.mT @ dout
    return dq_BHLW.to(input_dtype), dk_BHTW.to(input_dtype), dv_BHTW.to(input_dtype)


def _chunks(length: int, num_keys: int, causal: bool) -> Iterator[tuple[slice, slice]]:
    """Chunks of queries, and the keys that each chunk attends to."""
    for start in range(0, length, QUERY_CHUNK):
        end = min(start + QUERY_CHUNK, length)
        yield slice(start, end), slice(0, end if causal else num_keys)


def _scores(q_BHLW: Tensor, k_BHTW: Tensor, causal: bool, first: int) -> Tensor:
    """The scores s of queries from row `first` on; if causal, -inf for keys after the query."""
    scores: Tensor = q_BHLW @ k_BHTW.mT * q_BHLW.shape[3] ** -0.5
    if causal:
        future = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device)
        scores.masked_fill_(future.triu(first + 1), -torch.inf)
    return scores
