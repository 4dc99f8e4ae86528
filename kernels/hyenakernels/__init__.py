"""The operators of StripedHyena 2, each a folder: its meaning, its kernel, its public face.

    fir       causal FIR with grouped taps: featurizer, Hyena-SE, Hyena-MR
    modal     sums of real exponentials: Hyena-LI
    longconv  any long explicit filter, by FFT
    gate      the featurizer and the gates around the inner convolution
    attention causal softmax attention, rotary positions, and one new token at a time
    norm      RMS normalization, by itself and of a residual sum
    linear    the linear layers of a decoding step, with the norm before and the sum behind
    float8    products in FP8, by rows and columns or by fixed scales
    parallel  the same operators on a sequence that several ranks share

`hyena_fir` and `hyena_modal` are what a Hyena mixer does between its projections, in one pass over
memory on a GPU. `causal_fir`, `modal_conv` and `long_conv` are the convolutions by themselves.

Every convolution takes the past as an argument and returns the past of what follows: zeros at the
start of a sequence, the cache while decoding, the previous chunk while streaming. Cut anywhere, the
pieces give the whole. The operators of a step, for a token of each of many sequences, change pasts
in place instead: `rings` for samples, places for keys and values.

Shapes: B batch, L length, D channels, G filter groups, K taps, P = K - 1 past samples, S modes.
"""

from hyenakernels.attention.op import (
    append_token,
    causal_attention,
    decode_attention,
    rotary,
)
from hyenakernels.fir.op import causal_fir, hyena_fir, hyena_fir_step
from hyenakernels.linear.op import added_linear, gated_linear, normed_linear
from hyenakernels.longconv.op import long_conv
from hyenakernels.modal.op import hyena_modal, hyena_modal_step, modal_conv
from hyenakernels.norm.op import add_rms_norm, rms_norm

__all__ = [
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
    "rms_norm",
    "rotary",
]
