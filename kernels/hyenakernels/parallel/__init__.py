"""Hyena over a sequence that several ranks share: exchanges around the same local operators.

SE and MR, `hyena_fir`:
hyena_fir_halo          last rows of z and u to the right
hyena_fir_overlapped    the same, while the shard is computed
hyena_fir_all_to_all    rows for filter groups, in one go or pipelined in chunks

LI, `hyena_modal`:
hyena_modal_states      last rows of z to the right, and the states that shards leave to all
hyena_modal_all_to_all  rows for channels, in one go or pipelined in chunks
hyena_modal_fft         one Fourier transform of all shards, by butterflies point to point

Attention:
attention_all_to_all    rows for heads
attention_ring          keys and values of rank after rank, while those before are computed with
attention_zigzag        the same between two moves that give all ranks the same work
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
