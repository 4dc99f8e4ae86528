"""The convolutions of StripedHyena 2, each a folder: its meaning, its kernel, its public face.

    fir       causal FIR with grouped taps: featurizer, Hyena-SE, Hyena-MR
    modal     sums of real exponentials: Hyena-LI
    longconv  any long explicit filter, by FFT

Every operator takes the past as an argument and returns the past of what follows: zeros at the
start of a sequence, the cache while decoding, the previous chunk while streaming. Cut anywhere, the
pieces give the whole.

Shapes: B batch, L length, D channels, G filter groups, K taps, P = K - 1 past samples, S modes.
"""

from hyenakernels.fir.op import causal_fir
from hyenakernels.longconv.op import long_conv
from hyenakernels.modal.op import modal_conv

__all__ = ["causal_fir", "long_conv", "modal_conv"]
