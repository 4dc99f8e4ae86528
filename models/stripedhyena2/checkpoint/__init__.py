"""Checkpoints: found by path or name, read from any layout, and written in four of them.

sources.py      from a path to named tensors, whichever program wrote them
files.py        a single file of tensors in any format
pickles.py      torch.save files, of which only tensors and raw bytes are unpickled
shards.py       safetensors files, and models that are sharded over several of them
parts.py        files that were split into .partN
distributed.py  tensors in torch.distributed checkpoints
tensors.py      lazily loaded tensors, and tables that translate them between layouts
layouts/        names and forms of the tensors in each layout
scales.py       the FP8 scales in released files
precision.py    whether a checkpoint gives its published numbers on a device
published.py    names such as evo2_7b: their shapes, their files, the precision they need
hub.py          repositories of the hub, in the local cache or fetched through huggingface-hub
loading.py      any of these -> a `Checkpoint` -> a model
"""

from stripedhyena2.checkpoint.contents import Checkpoint, CheckpointError
from stripedhyena2.checkpoint.loading import (
    load,
    named_shape,
    read_checkpoint,
    save,
    save_weights,
)

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "load",
    "named_shape",
    "read_checkpoint",
    "save",
    "save_weights",
]
