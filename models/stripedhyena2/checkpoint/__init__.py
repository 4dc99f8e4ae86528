"""Checkpoints: found under a path or a name, read from any layout, and written in four.

sources.py      from a path to named tensors, whatever program wrote them
files.py        a file of tensors, whatever its format
pickles.py      files of torch.save, of which only tensors and raw bytes are unpickled
shards.py       files of safetensors, and models that are cut into several
parts.py        files that were cut into .partN
distributed.py  tensors in checkpoints of torch.distributed
tensors.py      tensors that stay in their file until they are read, and tables that translate them
layouts/        the names and forms of tensors in each layout
scales.py       the FP8 scales in released files
precision.py    whether a checkpoint gives the published numbers on a device
published.py    names such as evo2_7b: their shapes, their files, the precision they need
hub.py          repositories of the hub in the local cache, or fetched through huggingface-hub
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
