"""transformers models of Evo 2: wrappers of `StripedHyena2`, some with a head.

Padding on either side, or between tokens, does not affect the outputs at tokens: the tokens of a
row are compacted before the model runs, so that neither convolutions nor attention see padding.
Outputs at a padding position are copies of those at the last token before it.

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
"""`target_modules` for PEFT, all linear layers that support adapters: the input and output
projections of every Hyena and attention mixer, and the three layers of every MLP."""

_MODEL = "model."  # prefix of the tensor names of the `StripedHyena2`
_IGNORED = -100  # the label that the loss ignores


class _Padding(NamedTuple):
    """The padding of a batch.

    Attributes:
        is_token_BN: Whether a position is a token.
        order_BN: Positions of a row in compacted order: tokens first, then padding.
        source_BN: For each position, the index in `order_BN` of the last token up to it.
    """

    is_token_BN: Tensor
    order_BN: Tensor
    source_BN: Tensor

    @classmethod
    def of(cls, mask: Tensor | None, num_new: int) -> "_Padding | None":
        """The padding among the last `num_new` positions of a mask; None if there is none."""
        if mask is None:
            return None
        if mask.ndim != 2:
            raise UserError(
                f"attention_mask has the shape {list(mask.shape)}; give [batch, length], 1 for a "
                "token and 0 for padding"
            )
        is_token_BN = mask[:, -num_new:].bool()
        if bool(is_token_BN.all()):
            return None
        order_BN = is_token_BN.int().argsort(dim=1, descending=True, stable=True)
        return cls(is_token_BN, order_BN, (is_token_BN.cumsum(1) - 1).clamp(min=0))

    @property
    def is_first(self) -> Tensor:
        """Whether a position is the first token of its row, [B, N]."""
        return self.is_token_BN & (self.is_token_BN.cumsum(1) == 1)


def _gathered(x: Tensor, index_BN: Tensor) -> Tensor:
    """Gather positions from [B, N] or [B, N, D]."""
    index_BN = index_BN.to(x.device)
    return x.gather(1, index_BN if x.ndim == 2 else index_BN[..., None].expand(-1, -1, x.shape[2]))


class Evo2PreTrainedModel(transformers.PreTrainedModel):
    """Base class of the Evo 2 models: loading, saving and the forward pass through the blocks.

    Args:
        config: The configuration.
        model: The wrapped model; by default a new one with random weights.

    Attributes:
        model: The wrapped `StripedHyena2`, which has its own `score`, `embed` and `generate`.
    """

    config_class = Evo2Config
    config: Evo2Config
    model: StripedHyena2
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True  # accepted, though attention always uses our kernel
    _is_stateful = True  # the cache cannot be cropped
    _no_split_modules = ["Block"]  # noqa: RUF012 - as in transformers

    def __init__(self, config: Evo2Config, model: StripedHyena2 | None = None) -> None:
        super().__init__(config)
        if model is None:
            model = StripedHyena2.from_seed(config.shape, int(torch.randint(2**62, ())))
        self.model = model
        for tensor in self._fp32_tensors():  # transformers may create all in 16 bits
            tensor.data = tensor.data.to(torch.promote_types(tensor.dtype, torch.float32))
        self.gradient_checkpointing = False
        self.register_load_state_dict_pre_hook(_accept_released_names)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = None, every_n_layers: int = 1
    ) -> None:
        """Checkpoint every block (non-reentrant) or none."""
        del gradient_checkpointing_func  # StripedHyena2 checkpoints its blocks itself
        if every_n_layers != 1:
            raise UserError(f"every_n_layers = {every_n_layers} is not supported, only 1")
        self.gradient_checkpointing = enable  # read by `is_gradient_checkpointing`
        self.model.activation_checkpointing = int(enable)

    def init_weights(self) -> None:
        """Initialize the head; the `StripedHyena2` initializes itself."""
        for name, parameter in self.named_parameters():
            if name.startswith(_MODEL):
                continue
            if parameter.ndim == 1:
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02)

    def _fp32_tensors(self) -> list[Tensor]:
        """Tensors that need fp32 or better: poles, residues and rotary frequencies."""
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
        """Replace the embedding, which is tied to the language-model head."""
        self.model.embedding = cast("nn.Embedding", value)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, *_: Any, **__: Any
    ) -> nn.Module:
        """Return the embedding, which cannot be resized, because tokens are bytes.

        Raises:
            UserError: `new_num_tokens` is not the size of the vocabulary.
        """
        size = self.config.shape.vocabulary
        if new_num_tokens not in (None, size):
            raise UserError(
                f"the vocabulary has {size} tokens, not {new_num_tokens}: tokens are bytes; ids "
                f"from 256 to {size - 1} are unused and free for new tokens"
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
        """Outputs of the last block [B, N, D], and the hidden states if requested, else None.

        The hidden states, as in transformers, are the embeddings, the outputs of all blocks but the
        last, and those of the final norm.
        """
        all_blocks = self._returns_states(output_hidden_states)
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("give either input_ids or inputs_embeds")
        if input_ids is not None:
            check_batch(input_ids)
            self._check(input_ids, self.config.shape.vocabulary, "token id", attention_mask)
        x_BND = self.model.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        batch, num_new = x_BND.shape[:2]

        def run(x_BND: Tensor, cache: Cache | None) -> list[Tensor]:
            states = [x_BND]
            blocks = [block for block in self.model.blocks[:-1] if all_blocks]
            with listening((block, states.append) for block in blocks):
                last_BND = self.model.through_blocks(x_BND, cache)
            return [*states, last_BND] if all_blocks else [last_BND]

        padding = _Padding.of(attention_mask, num_new)
        if padding is not None:
            x_BND = _gathered(x_BND, padding.order_BN)
        if cache is None:
            states = run(x_BND, None)
        else:
            counts = [num_new] * batch if padding is None else padding.is_token_BN.sum(1).tolist()
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
        """Refuse out-of-range ids or labels, which on a GPU would crash the process.

        Training steps on a GPU skip the check, to avoid a synchronization, unless there is a mask,
        which synchronizes anyway.
        """
        if not (self.training and ids.is_cuda and mask is None):
            check_range(ids, count, name, ignored=ignored)

    def _normed(self, x_BLD: Tensor) -> Tensor:
        """The final norm, in fp32 or better."""
        with full_precision(x_BLD):
            y_BLD: Tensor = self.model.norm(x_BLD.to(accumulation_dtype(x_BLD)))
        return y_BLD

    def _returns_states(self, output_hidden_states: bool | None) -> bool:
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
            pretrained_model_name_or_path: A folder or Hub repository in the Hugging Face layout, or
                anything that `stripedhyena2.load` reads.
            config: Configuration; by default that of the checkpoint.
            dtype: Dtype of weights and activations; "auto" is that of the stored weights.
            device_map: A device, or "auto" for as many GPUs as needed, or the CPU without GPUs.
                None is torch's default device.
            float8: As for `stripedhyena2.load`.
            revision: Branch, tag or commit of a repository.
            ignore_mismatched_sizes: Initialize the head if the stored one has another shape.
            output_loading_info: Also return the missing keys.
            values: Config values to override, such as `num_labels`, and arguments for the Hub
                download, such as `cache_dir`.

        Raises:
            InputError: The checkpoint is not usable; the message says why.
            UserError: An argument is not supported.
        """
        name = str(pretrained_model_name_or_path)
        hub = {key: values.pop(key) for key in _HUB if key in values}
        adapter = (values.pop("adapter_kwargs", None) or {}).get("_adapter_model_path")
        for key in _WITHOUT_EFFECT & values.keys():
            values.pop(key)
        for key in _REFUSED & values.keys():
            if values.pop(key) is not None:
                raise UserError(f"{name}: {key} is not supported for Evo 2; leave it out")
        path = _checkpoint_path(name, revision, hub)
        requested = values.pop("torch_dtype", None) or dtype
        loaded = load(
            path,
            dtype=None if requested in (None, "auto") else _dtype(requested),
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
            raise UserError(f"{name}: the given config and the checkpoint differ in shape")
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
        """Load the head from a folder; return the names of tensors that it does not have."""
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
                    f"{folder}: {name} has shape {list(value.shape)}, but num_labels = "
                    f"{self.config.num_labels} needs {list(parameter.shape)}; give the stored "
                    "number, or ignore_mismatched_sizes=True for a newly initialized head"
                )
            if value is None or value.shape != parameter.shape:
                missing.add(name)
            else:
                parameter.data.copy_(value)
        if missing:
            _LOG.warning(f"{folder}: {', '.join(sorted(missing))}: newly initialized; train it")
        return missing

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        **values: Any,
    ) -> None:
        """Write a folder in the Hugging Face layout: weights, configs, tokenizer and model card.

        With a PEFT adapter added, only the adapter is written, as in transformers.

        Args:
            save_directory: Created if missing; an existing tokenizer and model card are kept.
            is_main_process: Whether this process writes the files that all processes share.
            state_dict: Weights to write instead of those of the model, by the same names.
            values: As for other transformers models.

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
        """Rename tensors to those of the released files; the head keeps its names."""
        ours = {
            name.removeprefix(_MODEL): tensor
            for name, tensor in state.items()
            if name.startswith(_MODEL)
        }
        parameters = dict(self.model.named_parameters())
        trained = [(name, tensor) for name, tensor in ours.items() if name in parameters]
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


def _checkpoint_path(name: str, revision: str | None, hub: Mapping[str, Any]) -> str:
    """The path or name of a checkpoint; a Hub repository is downloaded."""
    if Path(name).exists():
        return name
    if name.count("/") != 1:  # not a repository
        return name if revision in (None, "main") else f"{name}@{revision}"
    patterns = [*PATTERNS]
    try:
        return str(snapshot_download(name, revision=revision, allow_patterns=patterns, **hub))
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(
            f"{name}: no such file or folder, and not available on the Hub ({reason_of(error)})"
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
    """Translate a transformers `device_map` for `load`."""
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
    """The device of each part of a model, in the format of accelerate."""
    parts = {
        "model.embedding": model.embedding,
        **{f"model.blocks.{index}": block for index, block in enumerate(model.blocks)},
        "model.norm": model.norm,
    }
    devices = {name: next(part.parameters()).device for name, part in parts.items()}
    return devices if len(set(devices.values())) > 1 else {"": devices["model.norm"]}


def _accept_released_names(
    module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Rename the tensors of a saved folder, which `Trainer` passes to `load_state_dict` as is."""
    assert isinstance(module, Evo2PreTrainedModel)
    for entry in layout(module.config.shape):
        if (key := prefix + entry.theirs) in state:
            state[prefix + _MODEL + entry.ours] = entry.to_ours(state.pop(key))


def _unsupported(values: Mapping[str, Any]) -> None:
    """Refuse arguments of `forward` that are not supported and would affect the result."""
    if values.get("position_ids") is not None:
        raise UserError("position_ids cannot be given: positions are counted from the first token")
    if values.get("output_attentions"):
        raise UserError("output_attentions is not supported: attention weights are never stored")


class Evo2Model(Evo2PreTrainedModel):
    """The bare model, without a head."""

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
        """Compute the outputs of the final norm, [B, N, D].

        Args:
            input_ids: Token ids [B, N].
            attention_mask: 1 for a token, 0 for padding; [B, L] or [B, N].
            cache: States of earlier positions, updated in place.
            inputs_embeds: Embedded tokens [B, N, D] instead of token ids.
            use_cache: Whether to create a cache if none is given, and return it.
            output_hidden_states: Whether to return the embeddings and the outputs of all blocks.
            past_key_values: Alias of `cache`.
            values: Other arguments; refused if they would affect the result.

        Raises:
            UserError: An argument is not supported or not valid.
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
    cache = cache if cache is not None else past_key_values
    if cache is not None and not isinstance(cache, Evo2Cache):
        raise UserError(
            f"the cache is a {type(cache).__name__}; Evo 2 needs an evo2cli.hf.Evo2Cache"
        )
    return Evo2Cache() if cache is None and use_cache else cache


class Evo2ForCausalLM(Evo2PreTrainedModel, GenerationMixin):
    """The model with its language-model head, which is tied to the embedding."""

    def __init__(self, config: Evo2Config, model: StripedHyena2 | None = None) -> None:
        super().__init__(config, model)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The embedding, which shares its weights with the head."""
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
        """Compute next-token logits [B, N, V], in fp32 or better, and the loss.

        Args:
            input_ids: As for `Evo2Model`.
            attention_mask: As for `Evo2Model`.
            cache: As for `Evo2Model`.
            inputs_embeds: As for `Evo2Model`.
            labels: Target tokens [B, N], usually `input_ids`; they are shifted here, so that the
                label at position t is the target of the logits at t - 1. -100, padding and the
                first token of a row are ignored.
            use_cache: As for `Evo2Model`.
            logits_to_keep: Number of last positions, or indices of the positions, to compute
                logits for; 0 is all.
            output_hidden_states: As for `Evo2Model`.
            past_key_values: As for `Evo2Model`.
            values: `num_items_in_batch` of `Trainer`; others are refused if they would affect the
                result.

        Raises:
            UserError: An argument is not supported or not valid.
        """
        _unsupported(values)
        cache = _cache(cache, past_key_values, use_cache)
        returns_states = self._returns_states(output_hidden_states)
        keeps_last = isinstance(logits_to_keep, int) and logits_to_keep == 1
        if cache is not None and input_ids is not None and not returns_states and labels is None:
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
            labels = _masked_labels(labels, attention_mask, skip_first=True)
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
        """Next-token logits [B, V] after the last token of each row, from the decoder."""
        batch, num_new = ids_BN.shape
        padding = _Padding.of(mask, num_new)
        if padding is None:
            return cache.decode(self.model, ids_BN, [num_new] * batch)
        counts = padding.is_token_BN.sum(1).tolist()
        return cache.decode(self.model, _gathered(ids_BN, padding.order_BN), counts)

    def _prepare_cache_for_generation(  # there is no public hook for a custom cache
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Create the cache of `generate`.

        It uses a decoder unless beams reorder rows, the prompt comes in chunks, or there are hooks.
        """
        if generation_config.cache_implementation is not None:
            raise UserError(
                f"cache_implementation = {generation_config.cache_implementation!r}: Evo 2 uses "
                "its own cache; leave it out"
            )
        if model_kwargs.get("cache") is None and generation_config.use_cache is not False:
            uses_decoder = (
                generation_config.num_beams == 1
                and generation_config.prefill_chunk_size is None
                and not _has_hooks(self.model)
            )
            model_kwargs["cache"] = Evo2Cache(max_cache_length if uses_decoder else None)
        super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )


def _has_hooks(model: nn.Module) -> bool:
    """Whether modules have forward hooks of the user, which a decoder does not call."""
    return any(
        hook is not to_own_device
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )


def _masked_labels(labels: Tensor, mask: Tensor | None, *, skip_first: bool) -> Tensor:
    """Set the labels [B, N] at padding, and if asked at the first token of a row, to -100."""
    padding = _Padding.of(mask, labels.shape[1])
    if padding is None:
        return labels
    is_ignored_BN = ~padding.is_token_BN | (padding.is_first & skip_first)
    return labels.masked_fill(is_ignored_BN.to(labels.device), _IGNORED)


class _Evo2Classifier(Evo2PreTrainedModel):
    """Base class of the classifiers: a linear head on the final norm.

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
        """Compute the logits and, given labels, the loss; the class documents their shapes.

        Args:
            input_ids: Token ids [B, N].
            attention_mask: 1 for a token, 0 for padding; [B, N].
            inputs_embeds: Embedded tokens [B, N, D] instead of token ids.
            labels: Targets of the loss.
            output_hidden_states: Whether to return the embeddings and the outputs of all blocks.
            values: Other arguments; refused if they would affect the result.

        Raises:
            UserError: An argument is not supported or not valid.
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
        """The attention mask to use if none is given."""
        del input_ids
        return None

    def _logits(self, x_BLD: Tensor) -> Tensor:
        """The outputs of the head at each position, in fp32 or better."""
        normed_BLD = self._normed(x_BLD)
        like = next(self.score.parameters())
        logits: Tensor = self.score(normed_BLD.to(like.device, like.dtype))
        return logits.to(accumulation_dtype(logits))

    def _loss(self, logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        """The loss of these logits."""
        raise NotImplementedError

    def _check_classes(self, labels: Tensor, mask: Tensor | None) -> None:
        self._check(labels, self.config.num_labels, "label", mask, ignored=_IGNORED)


class Evo2ForSequenceClassification(_Evo2Classifier):
    """Classification or regression of sequences, from the last token: logits [B, num_labels].

    Labels are classes [B] (int64) for single-label classification, 0 or 1 [B, num_labels] (float)
    for multi-label classification, or numbers [B] or [B, num_labels] (float) for regression.
    `config.problem_type` selects the problem; by default it is inferred from `num_labels` and the
    dtype of the labels. Without an attention mask, padding tokens are masked.
    """

    _output = SequenceClassifierOutputWithPast

    def __init__(self, config: Evo2Config, model: StripedHyena2 | None = None) -> None:
        super().__init__(config, model, bias=False)

    def _default_mask(self, input_ids: Tensor) -> Tensor:
        return input_ids.ne(self.config.pad_token_id)

    def _logits(self, x_BLD: Tensor) -> Tensor:
        return super()._logits(x_BLD[:, -1:])[:, 0]  # right padding repeats the last token

    def _loss(self, logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        problem, is_integer = self.config.problem_type, not labels.is_floating_point()
        if problem == "single_label_classification" or (
            problem is None and self.config.num_labels > 1 and is_integer
        ):
            self._check_classes(labels, mask)
        loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return cast("Tensor", loss)


class Evo2ForTokenClassification(_Evo2Classifier):
    """Classification of tokens: logits [B, N, num_labels].

    Labels are classes [B, N]; -100 and padding are ignored.
    """

    _output = TokenClassifierOutput

    def __init__(self, config: Evo2Config, model: StripedHyena2 | None = None) -> None:
        super().__init__(config, model, bias=True)

    def _loss(self, logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        labels = _masked_labels(labels, mask, skip_first=False)
        self._check_classes(labels, mask)
        return cast("Tensor", self.loss_function(logits, labels, self.config))
