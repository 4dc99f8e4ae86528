"""Empirical constants of the plan, each with its source.

"operators.md" and "kernels.md" are our measurements in tests/benchmarks/results, on an H100;
"training.md" there compares real runs with their plans, and has profiles of steps on an H200. The
times of the Hyena operators are kept with the operators (`Hyena.slowdown`).
"""

GIB = 2**30

# Achieved rates, as fractions of the peak in the data sheet.
MATMUL = 0.69  # training.md, profiles of 7B: 0.67 in bf16; kernels.md: 0.76 to 0.80 alone
FP8_MATMUL = 0.6  # the same profiles: 0.67; less for narrower models, by training.md's 1B step
FP32_MATMUL = 0.8  # assumed: no tensor cores
ATTENTION = 0.45  # operators.md: 0.41 at L = 8,192, 0.48 at 32,768, of causal FLOPs, both passes
BANDWIDTH = 0.87  # kernels.md, copies: 0.85 to 0.89

# Memory traffic in bytes per parameter, of each micro-batch and of the optimizer step, by ZeRO
# stage. Plain (0): fp32 weights cast to bf16 (6), bf16 gradients cast (6) and added (12); the
# gradient's norm (4) and clipping (8), then AdamW on weight, gradient and two moments (28). ZeRO 1
# and 2 only add bf16 gradients to fp32 ones (10).
# ZeRO 3 copies gathered weights into place and casts, joins, scales and adds gradients: 13.3 ps in
# the profile of 7B on two H200 (training.md), and 31 ps from the last gradient to the next step.
PARAMETER_BYTES = {0: (24, 40), 1: (10, 40), 2: (10, 40), 3: (55, 130)}

# Seconds per block and pass of a micro-batch in which the GPU waits for Python under ZeRO 3, where
# DeepSpeed's hooks gather and release the weights: gaps in the same profile.
HOOKS = 0.3e-3

# Ring collectives, as NCCL builds them. Latencies of a ring step in seconds, by NCCL's own tuning
# model (src/graph/tuning.cc, LL128): start, over NVLink, over the network.
RING_START, RING_LINK, RING_NETWORK = 14e-6, 1.9e-6, 4.0e-6
LINKS = 0.8  # assumed: achieved fraction of the slower of NVLink and all network ports of a node
OVERLAP = 0.7  # assumed: largest fraction of a computation that transfers overlap (ZeRO 3, ring)
GPUS_PER_NODE = 8

# Sizes of DeepSpeed's buffers, in elements: its default (deepspeed/runtime/zero/config.py, 0.19),
# then those that our engine configures.
BUCKET = 500_000_000  # gradients reduced together
LIVE = 3_000_000_000  # gathered parameters kept under ZeRO 3
PREFETCH = 200_000_000  # parameters gathered together under ZeRO 3

# Additional elements per position under context parallelism, as multiples of the width.
# parallel.md, 8 blocks of 7B on two H200: 18.7 GiB at 131,072 positions and 91.2 at 1,048,576, of
# which 17.7 and 84.4 are predicted without it; on one GPU 33.0, of which 32.5 are.
SHARED = 2

# Memory outside of torch's caching allocator, or lost in it.
CONTEXT = 1.0 * GIB  # assumed: CUDA, cuBLAS and compiled kernels
CHANNELS = 1.5 * GIB  # assumed: NCCL's buffers, where there are several GPUs
FRAGMENTATION = 0.04  # assumed: unusable gaps, as a share of what is allocated
