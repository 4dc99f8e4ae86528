"""Evo 2 for Hugging Face transformers; importing this package registers it with the Auto classes.

    import evo2cli.hf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("folder")     # written by `save_pretrained`
    model = evo2cli.hf.Evo2ForCausalLM.from_pretrained("nano") # or anything that `load` reads

config.py     `Evo2Config`
tokenizer.py  the byte-level tokenizer
cache.py      the generation cache: keys and values, filter and modal states
modeling.py   the models; each wraps a `StripedHyena2` as `.model`, some with a head
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from evo2cli.hf.cache import Evo2Cache
from evo2cli.hf.config import Evo2Config
from evo2cli.hf.modeling import (
    TARGET_MODULES,
    Evo2ForCausalLM,
    Evo2ForSequenceClassification,
    Evo2ForTokenClassification,
    Evo2Model,
)
from evo2cli.hf.tokenizer import Evo2Tokenizer

__all__ = [
    "TARGET_MODULES",
    "Evo2Cache",
    "Evo2Config",
    "Evo2ForCausalLM",
    "Evo2ForSequenceClassification",
    "Evo2ForTokenClassification",
    "Evo2Model",
    "Evo2Tokenizer",
]

AutoConfig.register(Evo2Config.model_type, Evo2Config)
AutoTokenizer.register(Evo2Config, fast_tokenizer_class=Evo2Tokenizer)
AutoModel.register(Evo2Config, Evo2Model)
AutoModelForCausalLM.register(Evo2Config, Evo2ForCausalLM)
AutoModelForSequenceClassification.register(Evo2Config, Evo2ForSequenceClassification)
AutoModelForTokenClassification.register(Evo2Config, Evo2ForTokenClassification)
