"""Hyena-SE and -MR over a sequence that several ranks share: exchanges around the same local op.

hyena_fir_halo        last rows of z and u to the right
hyena_fir_overlapped  the same, while the shard is computed
hyena_fir_all_to_all  rows for filter groups, in one go or pipelined in chunks
"""

from hyenakernels.parallel.fir import hyena_fir_all_to_all, hyena_fir_halo, hyena_fir_overlapped
from hyenakernels.parallel.routes import halo
from hyenakernels.parallel.sharding import Sharding

__all__ = ["Sharding", "halo", "hyena_fir_all_to_all", "hyena_fir_halo", "hyena_fir_overlapped"]
