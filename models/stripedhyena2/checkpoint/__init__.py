"""Checkpoints: our native folder, the released layout, and the published names.

native.py     config.toml + model.safetensors + provenance.json, under the model's own names
released.py   the layout of the published Evo 2 files: names, orders, shapes, both ways
files.py      tensors out of .pt, raw .partN pieces and .safetensors; nothing else is unpickled
scales.py     the FP8 scales among what released files carry
precision.py  whether a checkpoint gives the numbers it was published for
published.py  names such as evo2_7b: their shapes, their files, the precision they need
hub.py        those files: found here, or fetched through huggingface-hub
loading.py    any of these -> a `Checkpoint` -> a model
"""

from stripedhyena2.checkpoint.contents import Checkpoint, CheckpointError
from stripedhyena2.checkpoint.loading import load, read_checkpoint, save, save_weights

__all__ = ["Checkpoint", "CheckpointError", "load", "read_checkpoint", "save", "save_weights"]
