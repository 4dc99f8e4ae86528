"""The layouts of checkpoints.

native.py        our folder: config.toml, model.safetensors, provenance.json
vortex.py        the files of the published models
savanna.py       the training program of Evo 2
bridge.py        Megatron-Bridge and NeMo 2
hf.py            folders for Hugging Face libraries, with the names of vortex
transformers.py  the names of a pull request to transformers

Each is a class that knows names and forms of tensors (base.py); those that are defined relative to
vortex share named.py. native, vortex, savanna and hf can be written.
"""

from collections.abc import Collection

from stripedhyena2.checkpoint.layouts.base import Layout
from stripedhyena2.checkpoint.layouts.bridge import Bridge
from stripedhyena2.checkpoint.layouts.native import Native
from stripedhyena2.checkpoint.layouts.savanna import Savanna
from stripedhyena2.checkpoint.layouts.transformers import Transformers
from stripedhyena2.checkpoint.layouts.vortex import Vortex

LAYOUTS: tuple[Layout, ...] = (Native(), Vortex(), Savanna(), Bridge(), Transformers())


def layout_of(names: Collection[str]) -> Layout | None:
    """The layout that uses these names, or None."""
    return next((layout for layout in LAYOUTS if layout.claims(names)), None)
