"""Low-rank adapters (LoRA) on the projections of a model, and their folders.

lora.py    target modules, the forward and backward pass of an adapter, and merging
folder.py  the folder of an adapter, in the format of `peft`
"""

from stripedhyena2.adapters.folder import (
    Adapter,
    check_base,
    is_adapter,
    read_adapter,
    write_adapter,
)
from stripedhyena2.adapters.lora import LoRA, adapter_tensors, add_adapters, merged_weights

__all__ = [
    "Adapter",
    "LoRA",
    "adapter_tensors",
    "add_adapters",
    "check_base",
    "is_adapter",
    "merged_weights",
    "read_adapter",
    "write_adapter",
]
