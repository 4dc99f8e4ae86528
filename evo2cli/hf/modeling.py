"""Evo 2 as models of transformers: each holds a `StripedHyena2`, and perhaps a head.

Padding, on either side or in between, changes nothing for other positions: the tokens of a row are
moved together before the model reads them, so that no filter and no attention meets padding. At
padding, outputs are those of the last token before it.

B rows, N new positions, L all positions, D channels, V vocabulary.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # its client's
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.utils import can_return_tuple

from evo2cli.errors import UserError
from evo2cli.hf.cache import Evo2Cache
from evo2cli.hf.config import Evo2Config
from hyenakernels.precision import accumulation_dtype, full_precision
from stripedhyena2 import Cache, StripedHyena2, load
from stripedhyena2.checkpoint.hub import PATTERNS
from stripedhyena2.checkpoint.layouts.hf import GENERATION, head_tensors, is_hf, write_beside
from stripedhyena2.checkpoint.layouts.vortex import Vortex
from stripedhyena2.checkpoint.tensors import Tensors
from stripedhyena2.device_map import to_own_device
from stripedhyena2.errors import reason_of
from stripedhyena2.float8.inference import float8_parts
from stripedhyena2.ids import check_batch, check_range
from stripedhyena2.layers import listening
from stripedhyena2.layout import layout
from stripedhyena2.parametrization import folded_state

_LOG = logging.getLogger(__name__)

TARGET_MODULES = ("project_in", "project_out", "gate", "up", "down")
"""The linear layers that adapters can be put on, for `target_modules` of PEFT: the projections into
and out of every Hyena and attention mixer, and the three layers of every MLP."""

_MODEL = "model."  # begins the names of the tensors of the `StripedHyena2`
_IGNORED = -100  # as a label


class _Padding(NamedTuple):
    """Where the tokens of a padded batch are.

    Attributes:
        real_BN: Whether a position is a token.
        order_BN: The positions of a row, those of tokens first.
        source_BN: For each position the place, in that order, of the last token up to it.
    """

    real_BN: Tensor
    order_BN: Tensor
    source_BN: Tensor

    @classmethod
    def of(cls, mask: Tensor | None, num_new: int) -> "_Padding | None":
        """The padding of the last positions of a mask; None if there is none."""
        if mask is None:
            return None
        if mask.ndim != 2:
            raise UserError(
                f"attention_mask has the shape {list(mask.shape)}; give [batch, length], 1 for a "
                "token and 0 for padding"
            )
        real_BN = mask[:, -num_new:].bool()
        if bool(real_BN.all()):
            return None
        order_BN = real_BN.int().argsort(dim=1, descending=True, stable=True)
        return cls(real_BN, order_BN, (real_BN.cumsum(1) - 1).clamp(min=0))

    @property
    def first(self) -> Tensor:
        """Whether a position is the first token of its row, [B, N]."""
        return self.real_BN & (self.real_BN.cumsum(1) == 1)


def _gathered(x: Tensor, index_BN: Tensor) -> Tensor:
    """Pick these positions from [B, N] or [B, N, D]."""
    index_BN = index_BN.to(x.device)
    return x.gather(1, index_BN if x.ndim == 2 else index_BN[..., None].expand(-1, -1, x.shape[2]))


class Evo2PreTrainedModel(transformers.PreTrainedModel):
    """What all Evo 2 models have in common.

    Args:
        config: The shape, and what else transformers wants to know.
        model: The model; by default one with fresh random weights.

    Attributes:
        model: The `StripedHyena2`, with `score`, `embed` and `generate` of its own.
    """

    config_class = Evo2Config
    config: Evo2Config
    model: StripedHyena2
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True  # whatever is asked for, attention is ours
    _is_stateful = True  # a past cannot be shortened
    _no_split_modules = ["Block"]  # noqa: RUF012 - as in transformers

    def __init__(self, config: Evo2Config, model: StripedHyena2 | None = None) -> None:
        super().__init__(config)
        if model is None:
            model = StripedHyena2.from_seed(config.shape, int(torch.randint(2**62, ())))
        self.model = model
        for tensor in self._wide_tensors():  # transformers may make all in a narrow dtype
            tensor.data = tensor.data.to(torch.promote_types(tensor.dtype, torch.float32))
        self.gradient_checkpointing = False
        self.register_load_state_dict_pre_hook(_accept_released_names)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = None, every_n_layers: int = 1
    ) -> None:
        """Recompute every block in the backward pass, or none; never reentrant."""
        del gradient_checkpointing_func  # ours
        if every_n_layers != 1:
            raise UserError(f"every_n_layers = {every_n_layers} is not possible, only 1")
        self.gradient_checkpointing = enable  # by this attribute it is asked for
        self.model.activation_checkpointing = int(enable)

    def init_weights(self) -> None:
        """Fresh weights for the head; the model has its own."""
        for name, parameter in self.named_parameters():
            if name.startswith(_MODEL):
                continue
            if parameter.ndim == 1:
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02)

    def _wide_tensors(self) -> list[Tensor]:
        """Poles, residues and rotary frequencies."""
        named = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        return [
            named[name]
            for index, mixer in enumerate(self.model.mixers)
            for fp32 in mixer.fp32_tensors
            if (name := f"blocks.{index}.mixer.{fp32}") in named
        ]

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding, and with it the unembedding."""
        self.model.embedding = cast("nn.Embedding", value)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, *_: Any, **__: Any
    ) -> nn.Module:
        """The embedding; its size is fixed, because tokens are bytes.

        Raises:
            UserError: Another size is asked for.
        """
        size = self.config.shape.vocabulary
        if new_num_tokens not in (None, size):
            raise UserError(
                f"the vocabulary has {size} tokens, not {new_num_tokens}: tokens are bytes; ids "
                f"from 256 to {size - 1} are free for new ones"
            )
        return self.get_input_embeddings()

    def _states(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        cache: Evo2Cache | None,
        inputs_embeds: Tensor | None,
        output_hidden_states: bool | None,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Outputs of the last block [B, N, D], and the hidden states if they are wanted.

        These are the embeddings, the outputs of all blocks but the last, and of the final norm.
        """
        all_blocks = self._wants_states(output_hidden_states)
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("give either input_ids or inputs_embeds")
        if input_ids is not None:
            check_batch(input_ids)
            self._check(input_ids, self.config.shape.vocabulary, "token id", attention_mask)
        x_BND = self.model.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        batch, num_new = x_BND.shape[:2]

        def run(x_BND: Tensor, past: Cache | None) -> list[Tensor]:
            states = [x_BND]
            blocks = [block for block in self.model.blocks[:-1] if all_blocks]
            with listening((block, states.append) for block in blocks):
                last_BND = self.model.through_blocks(x_BND, past)
            return [*states, last_BND] if all_blocks else [last_BND]

        padding = _Padding.of(attention_mask, num_new)
        if padding is not None:
            x_BND = _gathered(x_BND, padding.order_BN)
        if cache is None:
            states = run(x_BND, None)
        else:
            counts = [num_new] * batch if padding is None else padding.real_BN.sum(1).tolist()
            states = cache.advance(self.model, x_BND, counts, run)
        if padding is not None:
            states = [_gathered(state, padding.source_BN) for state in states]
        *before, last_BND = states
        return last_BND, (*before, self._normed(last_BND)) if all_blocks else None

    def _check(
        self,
        ids: Tensor,
        count: int,
        name: str,
        mask: Tensor | None,
        *,
        ignored: int | None = None,
    ) -> None:
        """Refuse ids or labels out of range: on a GPU, they would end the process.

        Steps of training do not wait for the GPU only for this, but a mask is read in any case.
        """
        if not (self.training and ids.is_cuda and mask is None):
            check_range(ids, count, name, ignored=ignored)

    def _normed(self, x_BLD: Tensor) -> Tensor:
        """The final norm, in fp32 or better."""
        with full_precision(x_BLD):
            y_BLD: Tensor = self.model.norm(x_BLD.to(accumulation_dtype(x_BLD)))
        return y_BLD

    def _wants_states(self, output_hidden_states: bool | None) -> bool:
        if output_hidden_states is None:
            return bool(self.config.output_hidden_states)
        return output_hidden_states

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: Evo2Config | None = None,
        dtype: str | torch.dtype | None = "auto",
        device_map: Any = None,
        float8: bool | None = None,
        revision: str | None = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **values: Any,
    ) -> Any:
        """Load a model, in evaluation mode.

        Args:
            pretrained_model_name_or_path: A folder in the Hugging Face layout; a repository of the
                hub with such files; or anything that `stripedhyena2.load` reads.
            config: The shape and labels; by default that of the checkpoint.
            dtype: Of weights and activations; "auto" is that of the stored weights.
            device_map: A device; or "auto": the GPUs that are needed, or the CPU. None is the CPU.
            float8: As for `stripedhyena2.load`.
            revision: Of a repository.
            ignore_mismatched_sizes: Start with a fresh head if the stored one has another size.
            output_loading_info: Return what was missing, too.
            values: Values of the config, such as `num_labels`; and arguments of transformers for
                its cache of the hub.

        Raises:
            InputError: The checkpoint is not usable; the message says why.
            UserError: An argument has no meaning here.
        """
        name = str(pretrained_model_name_or_path)
        hub = {key: values.pop(key) for key in _HUB if key in values}
        adapter = (values.pop("adapter_kwargs", None) or {}).get("_adapter_model_path")
        for key in _WITHOUT_EFFECT & values.keys():
            values.pop(key)
        for key in _REFUSED & values.keys():
            if values.pop(key) is not None:
                raise UserError(f"{name}: {key} has no meaning for Evo 2; leave it out")
        path = _located(name, revision, hub)
        asked = values.pop("torch_dtype", None) or dtype
        loaded = load(
            path,
            dtype=None if asked in (None, "auto") else _dtype(asked),
            device=_devices(device_map),
            float8=float8,
        )
        folder = Path(path)
        if config is not None:
            config = copy.deepcopy(config)
        elif is_hf(folder):
            config = Evo2Config.from_pretrained(folder)
        else:
            config = Evo2Config.from_shape(loaded.config)
        for key, value in values.items():
            if not hasattr(config, key):
                raise UserError(f"{name}: from_pretrained has no argument {key!r}")
            setattr(config, key, value)
        if config.shape != loaded.config:
            raise UserError(f"{name}: the given config describes another shape of model")
        config.name_or_path = name
        embedding = loaded.embedding.weight
        config.dtype = embedding.dtype
        model = cls(config, model=loaded)
        missing = model._load_head(folder, ignore_mismatched_sizes)
        if device_map is not None:
            model.hf_device_map = _device_map(loaded)
        if model.can_generate() and (folder / GENERATION).is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        if adapter is not None:
            model.load_adapter(adapter)
        model.eval()
        if not output_loading_info:
            return model
        return model, {"missing_keys": missing, "unexpected_keys": set(), "error_msgs": []}

    def _load_head(self, folder: Path, ignore_mismatched_sizes: bool) -> set[str]:
        """Fill the head from a folder; returns the tensors that stay fresh."""
        like = self.model.embedding.weight
        stored = head_tensors(folder) if folder.is_dir() else {}
        missing = set()
        for name, parameter in self.named_parameters():
            if name.startswith(_MODEL):
                continue
            parameter.data = parameter.data.to(like.device, like.dtype)
            value = stored.get(name)
            if value is not None and value.shape != parameter.shape and not ignore_mismatched_sizes:
                raise UserError(
                    f"{folder}: {name} is {list(value.shape)}, and num_labels = "
                    f"{self.config.num_labels} needs {list(parameter.shape)}; give the stored "
                    "number, or ignore_mismatched_sizes=True for a fresh head"
                )
            if value is None or value.shape != parameter.shape:
                missing.add(name)
            else:
                parameter.data.copy_(value)
        if missing:
            _LOG.warning(f"{folder}: {', '.join(sorted(missing))}: fresh weights, to be trained")
        return missing

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        **values: Any,
    ) -> None:
        """Write a folder in the Hugging Face layout: weights, configs, tokenizer and model card.

        With an adapter of `add_adapter`, only the adapter is written, as transformers does.

        Args:
            save_directory: Made if it is missing; a tokenizer and a card that are there stay.
            is_main_process: Whether this process writes what all have in common.
            state_dict: Weights to write instead of those of the model, by the same names.
            values: As for other models of transformers.

        Raises:
            UserError: Weights of the model were rounded to FP8.
        """
        if float8_parts(self.model):
            raise UserError(
                f"{save_directory}: weights rounded to FP8 are not saved; load with float8=False"
            )
        is_adapter = getattr(self, "_hf_peft_config_loaded", False)
        if not is_adapter:
            state_dict = self._released(self.state_dict() if state_dict is None else state_dict)
        super().save_pretrained(
            save_directory, is_main_process=is_main_process, state_dict=state_dict, **values
        )
        if is_main_process and not is_adapter:
            origin = {"source": self.name_or_path} if self.name_or_path else {}
            write_beside(Path(save_directory), self.config.shape, origin)

    def _released(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by the names of the released files; the head keeps its names."""
        of_model = {
            name.removeprefix(_MODEL): tensor
            for name, tensor in state.items()
            if name.startswith(_MODEL)
        }
        parameters = dict(self.model.named_parameters())
        trained = [(name, tensor) for name, tensor in of_model.items() if name in parameters]
        folded = Tensors.of(folded_state(self.model, trained))
        released = dict(Vortex().from_ours(folded, self.config.shape))
        del released["unembed.weight"]  # tied
        head = {name: tensor for name, tensor in state.items() if not name.startswith(_MODEL)}
        return {**released, **head}


_HUB = ("cache_dir", "token", "local_files_only", "force_download")
_REFUSED = frozenset(
    ("quantization_config", "gguf_file", "state_dict", "tp_plan", "tp_size", "device_mesh")
    + ("distributed_config", "max_memory", "key_mapping", "variant", "load_in_4bit", "load_in_8bit")
    + ("subfolder",)
)
_WITHOUT_EFFECT = frozenset(
    ("_from_auto", "_from_pipeline", "_commit_hash", "trust_remote_code", "code_revision")
    + ("low_cpu_mem_usage", "use_safetensors", "weights_only", "offload_folder", "proxies")
    + ("offload_state_dict", "attn_implementation")
)


def _located(name: str, revision: str | None, hub: Mapping[str, Any]) -> str:
    """The path or name of a checkpoint; files of a repository of the hub are fetched."""
    if Path(name).exists():
        return name
    if name.count("/") != 1:  # not a repository
        return name if revision in (None, "main") else f"{name}@{revision}"
    patterns = [*PATTERNS]
    try:
        return str(snapshot_download(name, revision=revision, allow_patterns=patterns, **hub))
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(
            f"{name}: no such file or folder, and the hub does not give it ({reason_of(error)})"
        ) from None


def _dtype(name: str | torch.dtype) -> torch.dtype:
    dtype = getattr(torch, name, None) if isinstance(name, str) else name
    if dtype not in (torch.float32, torch.bfloat16, torch.float64):
        raise UserError(
            f"dtype = {name!r}: give float32, bfloat16 or float64, or auto for the stored one; "
            "float16 cannot hold the activations of Evo 2"
        )
    return dtype


def _devices(device_map: Any) -> str | torch.device | Sequence[torch.device]:
    """The devices that a `device_map` of transformers means."""
    if isinstance(device_map, Mapping) and list(device_map) == [""]:
        device_map = device_map[""]
    if device_map is None:
        return torch.get_default_device()
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
        return gpus or "cpu"
    if isinstance(device_map, int):
        return torch.device("cuda", device_map)
    if isinstance(device_map, str | torch.device):
        return device_map
    raise UserError(f"device_map = {device_map!r}: give one device, or auto to spread the blocks")


def _device_map(model: StripedHyena2) -> dict[str, Any]:
    """Where the parts of a model are, as accelerate writes it down."""
    parts = {
        "model.embedding": model.embedding,
        **{f"model.blocks.{index}": block for index, block in enumerate(model.blocks)},
        "model.norm": model.norm,
    }
    found = {name: next(part.parameters()).device for name, part in parts.items()}
    return found if len(set(found.values())) > 1 else {"": found["model.norm"]}


def _accept_released_names(
    module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Translate tensors of a saved folder, which `Trainer` loads as they are."""
    assert isinstance(module, Evo2PreTrainedModel)
    for entry in layout(module.config.shape):
        if (key := prefix + entry.theirs) in state:
            state[prefix + _MODEL + entry.ours] = entry.to_ours(state.pop(key))


def _unsupported(values: Mapping[str, Any]) -> None:
    """Refuse arguments of `forward` that would change a result and that we do not heed."""
    if values.get("position_ids") is not None:
        raise UserError("position_ids cannot be given: positions are counted from the first token")
    if values.get("output_attentions"):
        raise UserError("output_attentions is not possible: attention weights are never stored")


class Evo2Model(Evo2PreTrainedModel):
    """The model without a head."""

    def __init__(self, config: Evo2Config, model: StripedHyena2 | None = None) -> None:
        super().__init__(config, model)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Evo2Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        past_key_values: Evo2Cache | None = None,
        **values: Any,
    ) -> BaseModelOutputWithPast:
        """Outputs of the final norm.

        Args:
            input_ids: Token ids [B, N].
            attention_mask: [B, L] or [B, N]: 1 for a token, 0 for padding.
            cache: What was seen before; it is updated.
            inputs_embeds: Embedded tokens [B, N, D] instead of token ids.
            use_cache: Return a cache; by default if one is given.
            output_hidden_states: Return the embeddings, and the outputs of all blocks.
            past_key_values: Another name of `cache`.
            values: Refused if they would matter.
        """
        _unsupported(values)
        cache = _cache(cache, past_key_values, use_cache)
        last_BND, hidden_states = self._states(
            input_ids, attention_mask, cache, inputs_embeds, output_hidden_states
        )
        return BaseModelOutputWithPast(
            last_hidden_state=self._normed(last_BND),
            cache=cache,
            hidden_states=hidden_states,
        )


def _cache(
    cache: Evo2Cache | None, past_key_values: Evo2Cache | None, use_cache: bool | None
) -> Evo2Cache | None:
    found = cache if cache is not None else past_key_values
    if found is not None and not isinstance(found, Evo2Cache):
        raise UserError(
            f"the cache is a {type(found).__name__}; Evo 2 needs an evo2cli.hf.Evo2Cache"
        )
    return Evo2Cache() if found is None and use_cache else found


class Evo2ForCausalLM(Evo2PreTrainedModel, GenerationMixin):
    """The model with its head, which is tied to the embedding."""

    def __init__(self, config: Evo2Config, model: StripedHyena2 | None = None) -> None:
        super().__init__(config, model)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The embedding, whose weights are the head's."""
        return self.get_input_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """As `set_input_embeddings`."""
        self.set_input_embeddings(new_embeddings)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Evo2Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        past_key_values: Evo2Cache | None = None,
        **values: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the token that follows each position, in fp32 or better.

        Arguments are those of `Evo2Model.forward`, and:

        Args:
            input_ids: Token ids [B, N].
            attention_mask: [B, L] or [B, N].
            cache: What was seen before.
            inputs_embeds: Instead of token ids.
            labels: Tokens [B, N], in general the same as `input_ids`: position t is compared with
                what was predicted before it. -100, padding and the first token do not count.
            use_cache: Return a cache.
            logits_to_keep: Compute only the last so many logits, or those of some positions; 0 is
                all.
            output_hidden_states: Return the embeddings, and the outputs of all blocks.
            past_key_values: Another name of `cache`.
            values: `num_items_in_batch` of `Trainer`; others are refused if they would matter.
        """
        _unsupported(values)
        cache = _cache(cache, past_key_values, use_cache)
        asked = self._wants_states(output_hidden_states)
        keeps_last = isinstance(logits_to_keep, int) and logits_to_keep == 1
        if cache is not None and input_ids is not None and not asked and labels is None:
            num_new = input_ids.shape[1]
            if (keeps_last or num_new == 1) and cache.can_decode(num_new):
                logits_BV = self._decoded(input_ids, attention_mask, cache)
                return CausalLMOutputWithPast(logits=logits_BV[:, None], cache=cache)
        last_BND, hidden_states = self._states(
            input_ids, attention_mask, cache, inputs_embeds, output_hidden_states
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BNV = self.model.unembed(last_BND[:, kept])
        loss = None
        if labels is not None:
            labels = _counted(labels, attention_mask, skip_first=True)
            vocabulary = self.config.shape.vocabulary
            self._check(labels, vocabulary, "label", attention_mask, ignored=_IGNORED)
            loss = self.loss_function(
                logits=logits_BNV, labels=labels, vocab_size=logits_BNV.shape[2], **values
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits_BNV,
            cache=cache,
            hidden_states=hidden_states,
        )

    def _decoded(self, ids_BN: Tensor, mask: Tensor | None, cache: Evo2Cache) -> Tensor:
        """Logits [B, V] after the last token of each row."""
        batch, num_new = ids_BN.shape
        padding = _Padding.of(mask, num_new)
        if padding is None:
            return cache.decode(self.model, ids_BN, [num_new] * batch)
        counts = padding.real_BN.sum(1).tolist()
        return cache.decode(self.model, _gathered(ids_BN, padding.order_BN), counts)

    def _prepare_cache_for_generation(  # transformers has no public place for a cache of one's own
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Give `generate` a cache, in a decoder where prompts are read whole and rows stay."""
        if generation_config.cache_implementation is not None:
            raise UserError(
                f"cache_implementation = {generation_config.cache_implementation!r}: Evo 2 has a "
                "cache of its own; leave it out"
            )
        if model_kwargs.get("cache") is None and generation_config.use_cache is not False:
            in_place = (
                generation_config.num_beams == 1
                and generation_config.prefill_chunk_size is None
                and not _has_hooks(self.model)
            )
            model_kwargs["cache"] = Evo2Cache(max_cache_length if in_place else None)
        super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )


def _has_hooks(model: nn.Module) -> bool:
    """Whether modules have hooks, which a decoder does not call."""
    return any(
        hook is not to_own_device
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )


def _counted(labels: Tensor, mask: Tensor | None, *, skip_first: bool) -> Tensor:
    """Labels [B, N] without those at padding, and without the first of each row."""
    padding = _Padding.of(mask, labels.shape[1])
    if padding is None:
        return labels
    without = ~padding.real_BN | (padding.first & skip_first)
    return labels.masked_fill(without.to(labels.device), _IGNORED)


class _Evo2Classifier(Evo2PreTrainedModel):
    """A model with a linear head on the final norm.

    Attributes:
        score: The head.
    """

    _output: ClassVar[type[SequenceClassifierOutputWithPast] | type[TokenClassifierOutput]]

    def __init__(
        self, config: Evo2Config, model: StripedHyena2 | None = None, *, bias: bool
    ) -> None:
        super().__init__(config, model)
        self.score = nn.Linear(config.shape.width, config.num_labels, bias=bias)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **values: Any,
    ) -> SequenceClassifierOutputWithPast | TokenClassifierOutput:
        """Outputs of the head; the class says of which shape they and the labels are.

        Args:
            input_ids: Token ids [B, N].
            attention_mask: [B, N].
            inputs_embeds: Instead of token ids.
            labels: What the outputs are compared with.
            output_hidden_states: Return the embeddings, and the outputs of all blocks.
            values: Refused if they would matter.
        """
        _unsupported(values)
        if attention_mask is None and input_ids is not None:
            attention_mask = self._default_mask(input_ids)
        last_BND, hidden_states = self._states(
            input_ids, attention_mask, None, inputs_embeds, output_hidden_states
        )
        logits = self._logits(last_BND)
        return self._output(
            loss=None if labels is None else self._loss(logits, labels, attention_mask),
            logits=logits,
            hidden_states=hidden_states,
        )

    def _default_mask(self, input_ids: Tensor) -> Tensor | None:
        """The mask where none is given."""
        del input_ids
        return None

    def _logits(self, x_BLD: Tensor) -> Tensor:
        """The head's outputs at each position, in fp32 or better."""
        normed_BLD = self._normed(x_BLD)
        like = next(self.score.parameters())
        scores: Tensor = self.score(normed_BLD.to(like.device, like.dtype))
        return scores.to(accumulation_dtype(scores))

    def _loss(self, logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        """The loss of these outputs."""
        raise NotImplementedError

    def _check_classes(self, labels: Tensor, mask: Tensor | None) -> None:
        self._check(labels, self.config.num_labels, "label", mask, ignored=_IGNORED)


class Evo2ForSequenceClassification(_Evo2Classifier):
    """A class, several, or numbers for each sequence, from its last token: [B, num_labels].

    Labels are classes [B] (int64), several [B, num_labels] (0 or 1, float), or numbers [B] or
    [B, num_labels] (float); `config.problem_type` says which, by default it is told from
    `num_labels` and the dtype. Without an attention mask, the padding token is padding.
    """

    _output = SequenceClassifierOutputWithPast

    def __init__(self, config: Evo2Config, model: StripedHyena2 | None = None) -> None:
        super().__init__(config, model, bias=False)

    def _default_mask(self, input_ids: Tensor) -> Tensor:
        return input_ids.ne(self.config.pad_token_id)

    def _logits(self, x_BLD: Tensor) -> Tensor:
        return super()._logits(x_BLD[:, -1:])[:, 0]  # at padding stands the last token before

    def _loss(self, logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        problem, is_whole = self.config.problem_type, not labels.is_floating_point()
        if problem == "single_label_classification" or (
            problem is None and self.config.num_labels > 1 and is_whole
        ):
            self._check_classes(labels, mask)
        loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return cast("Tensor", loss)


class Evo2ForTokenClassification(_Evo2Classifier):
    """A class for each token: [B, N, num_labels].

    Labels are classes [B, N]; -100 and padding do not count.
    """

    _output = TokenClassifierOutput

    def __init__(self, config: Evo2Config, model: StripedHyena2 | None = None) -> None:
        super().__init__(config, model, bias=True)

    def _loss(self, logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        labels = _counted(labels, mask, skip_first=False)
        self._check_classes(labels, mask)
        return cast("Tensor", self.loss_function(logits, labels, self.config))
