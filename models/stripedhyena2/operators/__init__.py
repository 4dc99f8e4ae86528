"""The operators of StripedHyena 2, by their letters in `ModelConfig.stripes`.

    S  Hyena-SE   hyena.py      short explicit filter
    M  Hyena-MR   hyena.py      medium regularized filter
    L  Hyena-LI   hyena.py      long implicit filter
    A  attention  attention.py

A new operator is a subclass of `Mixer` with a letter of its own: the class defines the computation
and all facts that the rest of the code needs, from initial values to FLOPs.
"""

from stripedhyena2.mixer import MIXERS, Mixer
from stripedhyena2.operators.attention import Attention, AttentionPast, PreallocatedKV
from stripedhyena2.operators.hyena import Hyena, HyenaLI, HyenaMR, HyenaSE

__all__ = [
    "MIXERS",
    "Attention",
    "AttentionPast",
    "Hyena",
    "HyenaLI",
    "HyenaMR",
    "HyenaSE",
    "Mixer",
    "PreallocatedKV",
]
