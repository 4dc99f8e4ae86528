"""Context parallelism: operators on a sequence that is sharded over several ranks.

Each is an exchange between ranks and the local operator.

SE and MR, `hyena_fir`:

    hyena_fir_halo          sends the last rows of z and u (the halo) to the next ranks
    hyena_fir_overlapped    the same, overlapped with the computation of the shard
    hyena_fir_all_to_all    all-to-all from rows to filter groups and back, or in pipelined chunks

LI, `hyena_modal`:

    hyena_modal_states      sends the last rows of z to the next ranks, all-gathers modal states
    hyena_modal_all_to_all  all-to-all from rows to channels and back, or in pipelined chunks
    hyena_modal_fft         an FFT distributed over all ranks, by point-to-point butterflies

Causal attention:

    attention_all_to_all    all-to-all from rows to heads and back (Ulysses)
    attention_ring          receives keys and values rank by rank, overlapped with the computation
    attention_zigzag        the same between two exchanges that balance the work of the ranks

Every function takes this rank's shard, a `Sharding` and a process group. README.md compares them.
"""

from hyenakernels.parallel.attention import attention_all_to_all, attention_ring
from hyenakernels.parallel.fir import hyena_fir_all_to_all, hyena_fir_halo, hyena_fir_overlapped
from hyenakernels.parallel.fourier import hyena_modal_fft
from hyenakernels.parallel.modal import hyena_modal_all_to_all, hyena_modal_states
from hyenakernels.parallel.resharding import attention_zigzag, reshard
from hyenakernels.parallel.routes import halo
from hyenakernels.parallel.sharding import Sharding

__all__ = [
    "Sharding",
    "attention_all_to_all",
    "attention_ring",
    "attention_zigzag",
    "halo",
    "hyena_fir_all_to_all",
    "hyena_fir_halo",
    "hyena_fir_overlapped",
    "hyena_modal_all_to_all",
    "hyena_modal_fft",
    "hyena_modal_states",
    "reshard",
]
