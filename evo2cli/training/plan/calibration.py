"""Every number of a plan that no formula gives, each with where it comes from.

"operators.md" and "kernels.md" are our measurements in tests/benchmarks/results, on an H100;
"training.md" there holds a real run against its plan.
"""

GIB = 2**30

# Rates, as shares of a data sheet's peak.
MATMUL = 0.72  # kernels.md: 0.80 alone, 0.76 forward and backward at D = 4,096; less for a warm GPU
FP8_MATMUL = 0.41  # training.md: with it a 1B step is told to 1 %, quantizing included
FP32_MATMUL = 0.8  # assumed: no tensor cores
ATTENTION = 0.45  # operators.md: 0.41 at L = 8,192, 0.48 at 32,768, of causal FLOPs, both passes
BANDWIDTH = 0.87  # kernels.md, copies: 0.85 to 0.89

# Time of a fused Hyena operator over that of a copy of what it has to move: 4 L D numbers forward,
# 11 L D forward and backward. Source: kernels.md, "fused" at D = 4,096 and L = 8,192.
OPERATOR_FORWARD = {"S": 1.23, "M": 1.69, "L": 2.17}
OPERATOR_BOTH = {"S": 2.10, "M": 2.83, "L": 3.32}

# Bytes that rotary positions and the splitting of projections read and write, a channel of an
# attention block.
ROTARY_FORWARD, ROTARY_BACKWARD = 8, 28

# Bytes a parameter that an optimizer's step reads and writes in fp32: the gradient's norm (4) and
# clipping (8), then AdamW on weight, gradient and two moments (28).
OPTIMIZER_BYTES = 40
# Bytes a parameter that a micro-batch adds: fp32 weights cast to bf16 (6), bf16 gradients cast (6)
# and added (12); DeepSpeed only adds bf16 gradients to fp32 ones (10).
PLAIN_PARAMETER_BYTES, DEEPSPEED_PARAMETER_BYTES = 24, 10

# Collectives: rings as NCCL builds them. Latencies of a step in seconds, by NCCL's own tuning
# model (src/graph/tuning.cc, LL128): start, over NVLink, over the network.
RING_START, RING_LINK, RING_NETWORK = 14e-6, 1.9e-6, 4.0e-6
LINKS = 0.8  # assumed: share of the slower of NVLink and the node's network ports together
OVERLAP = 0.7  # assumed: share of a computation that transfers (ZeRO 3, ring) hide behind, at most
GPUS_PER_NODE = 8

# DeepSpeed's defaults (deepspeed/runtime/zero/config.py, 0.19), in elements.
BUCKET = 500_000_000  # gradients reduced together
LIVE = 1_000_000_000  # gathered parameters kept under ZeRO 3
PREFETCH = 50_000_000  # parameters gathered together under ZeRO 3

# Memory that torch's allocator does not count.
CONTEXT = 1.0 * GIB  # assumed: CUDA, cuBLAS and compiled kernels
CHANNELS = 1.5 * GIB  # assumed: NCCL's buffers, where there are several GPUs
FRAGMENTATION = 0.04  # assumed: share of what is allocated that lies between its pieces
