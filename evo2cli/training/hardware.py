"""Accelerators by their data sheets: dense peaks, memory, and links."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Accelerator:
    """One GPU.

    Attributes:
        key: Its name on our command line.
        device_names: What `torch.cuda.get_device_name` calls it.
        memory: Bytes that CUDA reports in all.
        bf16: Dense FLOP/s with sums in fp32.
        fp8: Dense FLOP/s; None where there are no such units.
        bandwidth: Bytes/s to its own memory.
        link: Bytes/s to the GPUs of its node, one direction.
        network: Bytes/s to other nodes, one direction, at one network port a GPU.
    """

    key: str
    device_names: tuple[str, ...]
    memory: float
    bf16: float
    fp8: float | None
    bandwidth: float
    link: float
    network: float


# NVIDIA's data sheets without sparsity. A link's two directions are halved; network is 400 Gb/s
# InfiniBand a GPU as in DGX H100 and B200, 200 Gb/s as in DGX A100, 100 and 10 Gb/s for the rest.
ACCELERATORS: dict[str, Accelerator] = {
    gpu.key: gpu
    for gpu in (
        Accelerator("b200", ("NVIDIA B200",), 178.3 * GIB, 2_250e12, 4_500e12, 8.0e12, 900e9, 50e9),
        Accelerator(
            "h200", ("NVIDIA H200",), 139.8 * GIB, 989.4e12, 1_978.9e12, 4.8e12, 450e9, 50e9
        ),
        Accelerator(
            "h100-80gb",
            ("NVIDIA H100 80GB HBM3",),
            79.1 * GIB,
            989.4e12,
            1_978.9e12,
            3.35e12,
            450e9,
            50e9,
        ),
        Accelerator(
            "h100-pcie", ("NVIDIA H100 PCIe",), 79.1 * GIB, 756e12, 1_513e12, 2.0e12, 64e9, 50e9
        ),
        Accelerator(
            "a100-80gb",
            ("NVIDIA A100-SXM4-80GB",),
            79.1 * GIB,
            312e12,
            None,
            2.039e12,
            300e9,
            25e9,
        ),
        Accelerator(
            "a100-40gb",
            ("NVIDIA A100-SXM4-40GB",),
            39.4 * GIB,
            312e12,
            None,
            1.555e12,
            300e9,
            25e9,
        ),
        Accelerator("l40s", ("NVIDIA L40S",), 44.4 * GIB, 362e12, 733e12, 0.864e12, 32e9, 12.5e9),
        Accelerator(
            "rtx4090",
            ("NVIDIA GeForce RTX 4090",),
            23.5 * GIB,
            165.2e12,
            330.3e12,
            1.008e12,
            32e9,
            1.25e9,
        ),
    )
}


def find_accelerator(name: str) -> Accelerator | None:
    """The accelerator of this key or device name; None when it is not in the table."""
    for gpu in ACCELERATORS.values():
        if name == gpu.key or name in gpu.device_names:
            return gpu
    return None


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of what `torch.cuda.get_device_name` names; None when it is unknown.

    FP8 runs are held against the same peak, so that their utilization can be compared.
    """
    gpu = find_accelerator(device_name)
    return None if gpu is None else gpu.bf16
