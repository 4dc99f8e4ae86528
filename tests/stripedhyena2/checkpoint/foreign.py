"""One random model, written as the programs that hold Evo 2 models write it.

Names and forms are taken from descriptions of those programs, not from the code that is tested.

D width, H MLP width, V vocabulary, G filter groups, K taps, S modes, L positions of training.
"""

import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from stripedhyena2 import ModelConfig
from stripedhyena2.config import to_released

TRAINED = 160  # positions that Savanna's filters are as long as


def parts_of(config: ModelConfig, seed: int = 5) -> dict[str, Any]:
    """The parts of a random model, in the form in which it trains."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 0.1) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    width, hidden, modes = config.width, config.mlp_width, config.num_modes
    blocks = []
    for letter in config.stripes:
        block = {
            "letter": letter,
            "pre": 1 + normal(width),
            "post": 1 + normal(width),
            "w1": normal(hidden, width),
            "w2": normal(hidden, width),
            "w3": normal(width, hidden),
            "project": normal(3 * width, width),
            "out": normal(width, width),
            "bias": normal(width),
        }
        if letter != "A":
            block["featurizer"] = normal(3 * width, config.num_featurizer_taps, scale=0.5)
        if letter == "S":
            block["h"] = normal(config.num_short_filter_groups, config.num_short_taps)
        if letter in "ML":
            block["D"] = normal(width)
        if letter == "M":
            groups = config.num_medium_filter_groups
            block["h"] = normal(groups, TRAINED)
            rate = torch.logspace(-2, 2, groups)[:, None]
            block["decay"] = torch.exp(-rate * torch.arange(TRAINED) / (TRAINED - 1))
        if letter == "L":
            block["p"] = -1 + normal(width, modes)
            block["gamma"] = normal(width, modes, scale=1)
            block["R"] = normal(width, modes)
        blocks.append(block)
    return {
        "embedding": normal(config.vocabulary, width, scale=0.5),
        "norm": 1 + normal(width),
        "blocks": blocks,
    }


def frequencies(config: ModelConfig) -> Tensor:
    """Of the rotary positions, in fp32."""
    head = config.width // config.num_heads
    return torch.tensor([config.rotary_base ** (-i / head) for i in range(0, head, 2)])


def vortex(config: ModelConfig, parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a released file."""
    found = {"embedding_layer.weight": parts["embedding"], "norm.scale": parts["norm"]}
    found["unembed.weight"] = parts["embedding"]
    for index, block in enumerate(parts["blocks"]):
        name = f"blocks.{index}."
        found[name + "pre_norm.scale"], found[name + "post_norm.scale"] = (
            block["pre"],
            block["post"],
        )
        for number in (1, 2, 3):
            found[f"{name}mlp.l{number}.weight"] = block[f"w{number}"]
        if block["letter"] == "A":
            found[name + "inner_mha_cls.Wqkv.weight"] = block["project"]
            found[name + "inner_mha_cls.out_proj.weight"] = block["out"]
            found[name + "inner_mha_cls.out_proj.bias"] = block["bias"]
            found[name + "inner_mha_cls.rotary_emb.inv_freq"] = frequencies(config)
            continue
        found[name + "projections.weight"] = block["project"]
        found[name + "filter.short_filter_weight"] = block["featurizer"][:, None]
        found[name + "out_filter_dense.weight"] = block["out"]
        found[name + "out_filter_dense.bias"] = block["bias"]
        if "D" in block:
            found[name + "filter.D"] = block["D"]
        if block["letter"] == "S":
            found[name + "filter.h"] = block["h"][:, None]
        if block["letter"] == "M":
            taps = block["h"] * block["decay"]
            found[name + "filter.h"] = taps[:, None, : config.num_medium_taps].contiguous()
        if block["letter"] == "L":
            found[name + "filter.log_poles"] = -(block["p"].exp() * block["gamma"].exp())[..., None]
            found[name + "filter.residues"] = block["R"]
    return found


def _operator(block: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a Hyena operator that Savanna and Megatron-Bridge name alike."""
    found = {"hyena_proj_conv.short_conv_weight": block["featurizer"]}
    if block["letter"] == "S":
        found["mixer.short_conv.short_conv_weight"] = block["h"][:, None]
    else:
        found["mixer.conv_bias"] = block["D"]
    if block["letter"] == "M":
        found |= {"mixer.filter.h": block["h"], "mixer.filter.decay": block["decay"]}
    if block["letter"] == "L":
        found |= {f"mixer.filter.{name}": block[name] for name in ("p", "gamma", "R")}
    return found


def savanna(
    config: ModelConfig, parts: Mapping[str, Any], *, norm: str | None = None
) -> dict[str, Tensor]:
    """The tensors of a Savanna checkpoint, with what such files carry beside them."""
    last = norm or f"sequential.{config.depth + 3}.norm.weight"
    found = {"sequential.0.word_embeddings.weight": parts["embedding"], last: parts["norm"]}
    for index, block in enumerate(parts["blocks"]):
        name = f"sequential.{index + 2}."
        found[name + "input_layernorm.weight"] = block["pre"]
        found[name + "pre_mlp_layernorm.weight"] = block["post"]
        found[name + "post_attention_layernorm.weight"] = torch.ones(config.width)
        found[name + "outer_mlp_layernorm.weight"] = torch.ones(config.width)
        for number in (1, 2, 3):
            found[f"{name}mlp.w{number}.weight"] = block[f"w{number}"]
        found[name + "mixer.dense_projection.weight"] = block["project"]
        found[name + "mixer.dense.weight"] = block["out"]
        found[name + "mixer.dense.bias"] = block["bias"]
        if block["letter"] == "A":
            found[name + "mixer.rotary_emb.inv_freq"] = frequencies(config)
        else:
            found |= {f"{name}mixer.{key}": value for key, value in _operator(block).items()}
        if block["letter"] == "L":
            found[name + "mixer.mixer.filter.t"] = torch.zeros(1, 1, TRAINED)
    return found


def record() -> bytes:
    """The FP8 state of a layer, as far as it matters."""
    file = io.BytesIO()
    torch.save({"scale_fwd": torch.tensor([8.0, 64.0, 1.0])}, file)
    return file.getvalue()


def write_savanna(
    config: ModelConfig, parts: Mapping[str, Any], folder: Path, *, ranks: int = 1
) -> Path:
    """A folder as DeepSpeed writes it, cut over model-parallel ranks."""
    step = folder / "global_step7"
    step.mkdir(parents=True)
    (folder / "latest").write_text("global_step7")
    whole = savanna(config, parts)
    for rank in range(ranks):
        module: dict[str, Any] = {}
        for name, tensor in whole.items():
            if name.endswith(("norm.weight", ".bias", "filter.t", "inv_freq")):
                module[name] = tensor
            else:
                by_columns = name.endswith(("mixer.dense.weight", "mlp.w3.weight"))
                module[name] = tensor.chunk(ranks, 1 if by_columns else 0)[rank].contiguous()
        for index, letter in enumerate(config.stripes):
            if letter != "A":
                name = f"sequential.{index + 2}.mixer.dense_projection._extra_state"
                module[name] = io.BytesIO(record())
        file = step / f"mp_rank_{rank:02}_model_states.pt"
        torch.save({"module": module, "global_steps": 7, "optimizer": None}, file)
    return folder


def bridge(parts: Mapping[str, Any], *, fused_norms: bool = True) -> dict[str, Tensor]:
    """The tensors of Megatron-Bridge; with Transformer Engine, norms are fused."""
    found = {
        "embedding.word_embeddings.weight": parts["embedding"],
        "decoder.final_norm.weight": parts["norm"],
    }
    for index, block in enumerate(parts["blocks"]):
        name = f"decoder.layers.{index}."
        is_attention = block["letter"] == "A"
        projection = "self_attention.linear_qkv." if is_attention else "mixer.dense_projection."
        plain = "input_layernorm.weight" if is_attention else "norm.weight"
        found[name + (projection + "layer_norm_weight" if fused_norms else plain)] = block["pre"]
        post = "mlp.linear_fc1.layer_norm_weight" if fused_norms else "pre_mlp_layernorm.weight"
        found[name + post] = block["post"]
        found[name + projection + "weight"] = block["project"]
        out = "self_attention.linear_proj." if is_attention else "mixer.dense."
        found[name + out + "weight"], found[name + out + "bias"] = block["out"], block["bias"]
        found[name + "mlp.linear_fc1.weight"] = torch.cat([block["w1"], block["w2"]])
        found[name + "mlp.linear_fc2.weight"] = block["w3"]
        if not is_attention:
            found |= {f"{name}mixer.{key}": value for key, value in _operator(block).items()}
    return found


PATTERN = str.maketrans("SMLA", "SDH*")


def write_bridge(
    config: ModelConfig, parts: Mapping[str, Any], folder: Path, *, nemo: bool = False
) -> Path:
    """A torch-distributed checkpoint with the description that lies beside it."""
    import torch.distributed.checkpoint as dcp

    described = {
        "hybrid_override_pattern": config.stripes.translate(PATTERN),
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "ffn_hidden_size": config.mlp_width,
        "num_groups_hyena_short": config.num_short_filter_groups,
        "num_groups_hyena_medium": config.num_medium_filter_groups,
        "seq_length": config.context,
        "rotary_base": config.rotary_base,
        "seq_len_interpolation_factor": config.rotary_scale,
    }
    tensors = bridge(parts, fused_norms=not nemo)
    if nemo:
        tensors = {f"module.{name}": tensor for name, tensor in tensors.items()}
        where = folder / "weights"
        (folder / "context").mkdir(parents=True)
        (folder / "context" / "model.yaml").write_text(yaml.safe_dump({"config": described}))
    else:
        where = folder / "iter_0000007"
        where.mkdir(parents=True)
        (folder / "latest_checkpointed_iteration.txt").write_text("7")
        (where / "run_config.yaml").write_text(yaml.safe_dump({"model": described}))
    tensors["optimizer.step"] = torch.zeros(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.save(tensors, checkpoint_id=where, no_dist=True)
    return folder


def transformers(config: ModelConfig, parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors as pull request 42210 of transformers names them, rows grouped correctly."""
    found = {"model.embed_tokens.weight": parts["embedding"], "model.norm.weight": parts["norm"]}
    found["lm_head.weight"] = parts["embedding"].clone()
    released = vortex(config, parts)
    for index, block in enumerate(parts["blocks"]):
        name, theirs = f"model.layers.{index}.block.", f"blocks.{index}."
        found[name + "input_layernorm.weight"] = block["pre"]
        found[name + "post_attention_layernorm.weight"] = block["post"]
        for number, key in ((1, "gate"), (2, "up"), (3, "down")):
            found[f"{name}mlp.{key}_proj.weight"] = block[f"w{number}"]
        if block["letter"] == "A":
            by_head = block["project"].reshape(config.num_heads, 3, -1, config.width)
            for part, key in enumerate("qkv"):
                rows = by_head[:, part].reshape(config.width, config.width)
                found[f"{name}attention.{key}_proj.weight"] = rows.contiguous()
            found[name + "attention.o_proj.weight"] = block["out"]
            found[name + "attention.o_proj.bias"] = block["bias"]
        for key, tensor in released.items():
            if key.startswith((theirs + "filter.", theirs + "proj", theirs + "out")):
                rest = key.removeprefix(theirs)
                found[name + ("" if rest.startswith("filter.") else "filter.") + rest] = tensor
    return found


def write_hf(config: ModelConfig, parts: Mapping[str, Any], folder: Path, dialect: str) -> Path:
    """A Hugging Face folder in one of three dialects: port, bionemo or transformers."""
    folder.mkdir(parents=True)
    common = {
        "model_type": "evo2",
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "vocab_size": config.vocabulary,
    }
    if dialect == "port":
        tensors = vortex(config, parts)
        del tensors["unembed.weight"]
        values = {**common, **to_released(config)}
    elif dialect == "bionemo":
        tensors = bridge(parts)
        values = {
            **common,
            "hybrid_override_pattern": config.stripes.translate(PATTERN),
            "num_hidden_layers": config.depth,
            "intermediate_size": config.mlp_width,
            "num_groups_hyena": config.width,
            "num_groups_hyena_short": config.num_short_filter_groups,
            "num_groups_hyena_medium": config.num_medium_filter_groups,
            "hcs_filter_length": config.num_short_taps,
            "hcm_filter_length": config.num_medium_taps,
            "hcl_state_size": config.num_modes,
            "short_conv_length": config.num_featurizer_taps,
            "rms_norm_eps": config.norm_eps,
            "rotary_base": config.rotary_base,
            "seq_len_interpolation_factor": config.rotary_scale,
            "max_position_embeddings": config.context,
            "tie_word_embeddings": True,
        }
    else:
        tensors = transformers(config, parts)
        values = {
            **common,
            "layer_types": ["attention" if x == "A" else "hyena" for x in config.stripes],
            "intermediate_size": config.mlp_width,
            "num_hidden_layers": config.depth,
            "hyena_filters": config.num_short_filter_groups,
            "rope_theta": config.rotary_base,
            "max_position_embeddings": config.context,
            "rms_norm_eps": config.norm_eps,
        }
    (folder / "config.json").write_text(json.dumps(values))
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    return folder


def without_interpolation(config: ModelConfig) -> ModelConfig:
    """The same shape as the dialect of transformers can say it."""
    return replace(config, rotary_scale=1, base_context=None)
