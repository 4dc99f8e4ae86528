"""The operators of StripedHyena 2: references in plain PyTorch, and Triton kernels for GPUs.

A Hyena operator is everything between the input and output projections of a mixer; on a GPU it is
one fused pass over memory. The projections z [B, L, 3D] = [x2 | x1 | v] first go through the
featurizer, a causal depthwise FIR; then

    u = x1 * v,    y = x2 * (conv(u) + skip * u),    y [B, L, D]

    hyena_fir         conv(u)[t, d] = sum_{j < K} taps[g(d), j] u[t - j, d], with taps [G, K] for G
                      groups of neighbouring channels: Hyena-SE (K = 7) and Hyena-MR (K = 128)
    hyena_modal       conv(u)[t, d] = sum_{j <= t} h[d, j] u[t - j, d], with h[d, t] =
                      sum_s R[d, s] exp(p[d, s] t), poles p and residues R [D, S]: Hyena-LI

The convolutions on their own, for samples [B, L, D]:

    causal_fir        the FIR with taps [G, K]
    modal_conv        the sum of exponentials, O(L) in time and memory
    long_conv         any explicit filter [G, K], by FFT

Attention, for heads [B, H, L, W]:

    rotary            rotates each pair (i, i + W/2) of a head by the angle of its position
    causal_attention  softmax(q k^T / sqrt(W)) v of the last L of T positions
    append_token      writes the key and value of a new token to the KV cache, returns its query
    decode_attention  attention of one new token of each sequence to its KV cache
    pooled_attention  attention of new tokens of many sequences, whose KV caches share a pool

Norms, and the linear layers of a decoding step, for rows x [B, L, D]; their weights may be in FP8
(`float8.reference.Float8Weight`):

    rms_norm          scale * x / (rms(x) + eps)
    add_rms_norm      rms_norm(x + y), and x + y
    normed_linear     rms_norm(x) W^T
    gated_linear      act(rms_norm(x) G^T) * (rms_norm(x) U^T)
    added_linear      added + (x W^T + bias)

`parallel` has the same operators for sequences that are sharded over several ranks (context
parallelism), `float8` FP8 quantization and matrix products, and `host_memory` asynchronous
transfers of tensors that do not fit a GPU.

Every convolution takes its past (the last samples of an FIR, the state of a modal filter) as an
argument, and returns the past for the samples that follow. It is None (zeros) at the start of a
sequence, the cache while decoding, the state after the previous chunk while streaming, and what the
preceding ranks send on several ranks. A sequence may be cut anywhere: the outputs of its parts are
those of the whole. The parameters of an operator are one record (`FIRFilters`, `ModalFilters`), and
so is its past (`HyenaPast`):

    >>> import torch
    >>> from hyenakernels import FIRFilters, hyena_fir
    >>> z = torch.randn(2, 100, 3 * 32)                   # B = 2, L = 100, D = 32
    >>> filters = FIRFilters(
    ...     featurizer_taps_CF=torch.randn(3 * 32, 3),    # F = 3 taps for each of the 3D channels
    ...     taps_GK=torch.randn(4, 7),                    # K = 7 taps for G = 4 groups of channels
    ...     skip_D=torch.randn(32),
    ... )
    >>> y, _ = hyena_fir(z, filters)
    >>> first, past = hyena_fir(z[:, :40], filters)
    >>> second, past = hyena_fir(z[:, 40:], filters, past)
    >>> torch.allclose(torch.cat([first, second], dim=1), y, rtol=1e-4, atol=1e-4)
    True

`hyena_fir_step` and `hyena_modal_step` decode one new token of each of many sequences, and update
their pasts in place (`HyenaSlots`).

Tensors may have any float dtype, and sums are accumulated in fp32 or better. The Triton kernels run
on CUDA devices for fp32, bf16 and fp16; elsewhere, and for shapes that no kernel supports, the
reference implementations run. All operators are differentiable except those of a decoding step.

Shapes: B batch, L length, D channels, C = 3D channels, G filter groups, K taps, F featurizer taps,
P = K - 1 past samples, S modes, H heads, W channels of a head, T keys.
"""

from hyenakernels.attention.op import (
    append_token,
    causal_attention,
    decode_attention,
    pooled_attention,
    rotary,
)
from hyenakernels.filters import FIRFilters, HyenaPast, ModalFilters
from hyenakernels.fir.op import causal_fir, hyena_fir, hyena_fir_step
from hyenakernels.linear.op import added_linear, gated_linear, normed_linear
from hyenakernels.longconv.op import long_conv
from hyenakernels.modal.op import hyena_modal, hyena_modal_step, modal_conv
from hyenakernels.norm.op import add_rms_norm, rms_norm
from hyenakernels.rings import HyenaSlots

__all__ = [
    "FIRFilters",
    "HyenaPast",
    "HyenaSlots",
    "ModalFilters",
    "add_rms_norm",
    "added_linear",
    "append_token",
    "causal_attention",
    "causal_fir",
    "decode_attention",
    "gated_linear",
    "hyena_fir",
    "hyena_fir_step",
    "hyena_modal",
    "hyena_modal_step",
    "long_conv",
    "modal_conv",
    "normed_linear",
    "pooled_attention",
    "rms_norm",
    "rotary",
]
