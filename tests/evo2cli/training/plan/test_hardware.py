"""Accelerators are found by both of their names, and nothing is guessed."""

from evo2cli.training.plan.hardware import ACCELERATORS, find_accelerator, peak_flops


def test_an_accelerator_is_found_by_key_and_by_what_torch_calls_it() -> None:
    for gpu in ACCELERATORS:
        assert find_accelerator(gpu.key) is gpu
        assert find_accelerator(gpu.device_name) is gpu


def test_an_unknown_device_has_no_peak() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_flops("NVIDIA H100") is None


def test_fp8_is_twice_as_fast_where_there_is_any() -> None:
    for gpu in ACCELERATORS:
        assert gpu.fp8 is None or abs(gpu.fp8 / gpu.bf16 - 2) < 0.03
