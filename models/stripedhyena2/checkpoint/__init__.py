"""Checkpoints: our native folder, the released layout, and the published names.

native.py     config.toml + model.safetensors + provenance.json, under the model's own names
released.py   the layout of the published Evo 2 files: names, orders, shapes, both ways
files.py      tensors from .pt, .partN and .safetensors files; nothing else is unpickled
scales.py     the FP8 scales in released files
precision.py  whether a checkpoint gives the published numbers on a device
published.py  names such as evo2_7b: their shapes, their files, the precision they need
hub.py        those files in the local cache, or fetched through huggingface-hub
loading.py    any of these -> a `Checkpoint` -> a model
"""

from stripedhyena2.checkpoint.contents import Checkpoint, CheckpointError
from stripedhyena2.checkpoint.loading import load, read_checkpoint, save, save_weights

__all__ = ["Checkpoint", "CheckpointError", "load", "read_checkpoint", "save", "save_weights"]
