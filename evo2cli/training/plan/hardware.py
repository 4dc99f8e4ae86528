"""GPU specifications: peak rates without sparsity, memory, and interconnect."""

from dataclasses import dataclass

from evo2cli.training.plan.calibration import GIB

GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Accelerator:
    """A GPU model.

    Attributes:
        key: Its name on the command line.
        device_name: Its name in `torch.cuda.get_device_name`.
        memory: Bytes of memory, as reported by CUDA.
        bf16: Dense FLOP/s with fp32 accumulation.
        fp8: Dense FLOP/s; None without FP8 units.
        fp32: FLOP/s without tensor cores.
        bandwidth: Bytes/s of its memory.
        link: Bytes/s to the other GPUs of its node, in one direction.
        network: Bytes/s to other nodes, in one direction, with one network port per GPU.
    """

    key: str
    device_name: str
    memory: float
    bf16: float
    fp8: float | None
    fp32: float
    bandwidth: float
    link: float
    network: float


# NVIDIA's data sheets, without sparsity: memory in GiB; bf16, FP8 and fp32 in TFLOP/s; bandwidth in
# TB/s; link (half the sum of both directions) and network in GB/s. The network is 400 Gb/s per GPU
# as in DGX H100 and B200, 200 as in DGX A100, 100 for an L40S, 10 for a consumer card.
_TABLE = """
b200       178.3  2250.0  4500.0  80.0  8.000  900  50.00  NVIDIA B200
h200       139.8   989.4  1978.9  66.9  4.800  450  50.00  NVIDIA H200
h100-80gb   79.1   989.4  1978.9  66.9  3.350  450  50.00  NVIDIA H100 80GB HBM3
h100-pcie   79.1   756.0  1513.0  51.2  2.000   64  50.00  NVIDIA H100 PCIe
a100-80gb   79.1   312.0       -  19.5  2.039  300  25.00  NVIDIA A100-SXM4-80GB
a100-40gb   39.4   312.0       -  19.5  1.555  300  25.00  NVIDIA A100-SXM4-40GB
l40s        44.4   362.0   733.0  91.6  0.864   32  12.50  NVIDIA L40S
rtx4090     23.5   165.2   330.3  82.6  1.008   32   1.25  NVIDIA GeForce RTX 4090
"""


def _read(line: str) -> Accelerator:
    key, memory, bf16, fp8, fp32, bandwidth, link, network, name = line.split(maxsplit=8)
    return Accelerator(
        key,
        name,
        memory=float(memory) * GIB,
        bf16=float(bf16) * TERA,
        fp8=None if fp8 == "-" else float(fp8) * TERA,
        fp32=float(fp32) * TERA,
        bandwidth=float(bandwidth) * TERA,
        link=float(link) * GIGA,
        network=float(network) * GIGA,
    )


ACCELERATORS = [_read(line) for line in _TABLE.split("\n") if line]


def find_accelerator(name: str) -> Accelerator | None:
    """The GPU model with this key or device name; None if it is not in the table."""
    return next((gpu for gpu in ACCELERATORS if name in (gpu.key, gpu.device_name)), None)


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of the GPU with this `torch.cuda.get_device_name`; None if unknown.

    FP8 runs use the same peak, so that their MFU is comparable.
    """
    gpu = find_accelerator(device_name)
    return None if gpu is None else gpu.bf16
