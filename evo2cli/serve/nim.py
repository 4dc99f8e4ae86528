"""The paths of NVIDIA's Evo 2 NIM: `generate` and `forward`.

Paths are those of the container (/biology/arc/evo2) and those of the hosted service
(/v1/biology/arc/evo2-40b); layers have the names of NIM 1 (ours and those of the released models)
or of NIM 2 (Megatron's).

L bases, H channels of a layer, V vocabulary.
"""

import base64
import io
import math
import re
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
import torch
from fastapi import APIRouter, Header, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field
from torch import Tensor

from evo2cli.serve.answers import Json, results
from evo2cli.serve.engine import Engine, Generation, SampledToken, Served, Task
from evo2cli.serve.reading import check_answer, check_number, read_dna, sample_requests
from stripedhyena2 import Sampler, StripedHyena2
from stripedhyena2.generation import PREFILL_CHUNK, token_text
from stripedhyena2.layers import find_module, layer_widths
from stripedhyena2.scoring import require_finite, token_ids

MODELS = ("evo2", "evo2-7b", "evo2-40b")
Layout = Literal["sequence-first", "batch-first"]
LOGITS = ("output_layer", "unembed")
STATIC = ("embedding", "embedding_layer")  # the token table, mistaken by clients for embeddings
_MEGATRON = re.compile(r"decoder\.(?:layers\.(?P<block>\d{1,4})(?:\.(?P<part>.+))?|final_norm)")
_PARTS = {
    None: ("",),
    "mixer": (".mixer",),
    "self_attention": (".mixer",),
    "mlp": (".mlp",),
    "mlp.linear_fc1": (".mlp.gate", ".mlp.up"),
    "mlp.linear_fc2": (".mlp.down",),
}


class Generate(BaseModel):
    """A request to continue a sequence."""

    sequence: str = Field(min_length=1)
    num_tokens: Annotated[int, Field(ge=1)] | None = 100
    temperature: float | None = 0.7
    top_k: int | None = Field(3, description="0 samples from all tokens, 1 takes the likeliest.")
    top_p: float | None = Field(0.0, description="0 and 1 sample from all tokens.")
    random_seed: int | None = None
    enable_logits: bool = False
    enable_sampled_probs: bool = False
    enable_elapsed_ms_per_token: bool = False


class Forward(BaseModel):
    """A request for outputs of layers."""

    sequence: str = Field(min_length=1)
    output_layers: list[str] = Field(min_length=1)


def routes(engine: Engine, max_layers: int) -> APIRouter:
    """The router of the paths, with both prefixes and all names of the model."""
    router = APIRouter(tags=["NIM"])

    async def generate(body: Generate, request: Request) -> Response:
        """Continue a sequence."""
        started = time.monotonic()
        defaults = {name: field.default for name, field in Generate.model_fields.items()}
        given = {name: value for name, value in body if value is not None}
        values: dict[str, Any] = defaults | given  # null means the default
        num_tokens = values["num_tokens"]
        served = engine.require_served()
        if body.enable_logits:
            check_answer(num_tokens * served.model.config.vocabulary)
        job = Generation(
            sample_requests(served, {"sequence": body.sequence}, 1, num_tokens, body.random_seed),
            Sampler(values["temperature"], values["top_k"], values["top_p"] or 1.0),
            engine.deadline(),
            keep_logits=body.enable_logits,
            each_token=body.enable_elapsed_ms_per_token,
        )
        both = await results(engine, job, request)
        tokens = [each for each in both if isinstance(each, SampledToken)]
        ((_, sample),) = [each for each in both if not isinstance(each, SampledToken)]
        times = [started, *(token.seconds for token in tokens)]
        steps = [_milliseconds(after - before) for before, after in pairwise(times)]
        return Json(
            {
                "sequence": token_text(sample.ids),
                "logits": [logits_V.tolist() for logits_V in sample.logits] or None,
                "sampled_probs": [math.exp(value) for value in sample.logprobs]
                if body.enable_sampled_probs
                else None,
                "elapsed_ms": _milliseconds(time.monotonic() - started),
                "elapsed_ms_per_token": steps or None,
            }
        )

    def forward(layout: Layout) -> Any:
        async def forward(
            body: Forward, request: Request, x_evo2_layout: Annotated[Layout, Header()] = layout
        ) -> Response:
            """Outputs of layers, as base64 of an .npz; X-Evo2-Layout sets the order of the axes."""
            started = time.monotonic()
            check_number("layers", len(body.output_layers), max_layers)
            axis = 1 if x_evo2_layout == "sequence-first" else 0

            def work(served: Served) -> Iterator[str]:
                yield _outputs(served, body.sequence, body.output_layers, axis)

            (data,) = await results(engine, Task(work, engine.deadline()), request)
            answer = {"data": data, "elapsed_ms": _milliseconds(time.monotonic() - started)}
            headers = {}
            if not set(body.output_layers).isdisjoint(STATIC):
                note = "embedding is the static table of tokens, the same in every context"
                headers["Warning"] = f'199 - "{note}; ask for a block such as decoder.layers.N"'
            return Json(answer, headers=headers)

        return forward

    for model in MODELS:
        for prefix, layout in (("", "sequence-first"), ("/v1", "batch-first")):
            path = f"{prefix}/biology/arc/{model}"
            is_documented = prefix == "" and model == MODELS[0]
            router.post(f"{path}/generate", include_in_schema=is_documented)(generate)
            router.post(f"{path}/forward", include_in_schema=is_documented)(forward(layout))  # type: ignore[arg-type]
    return router


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def modules_of(model: StripedHyena2, name: str) -> list[str]:
    """The modules whose concatenated outputs are the layer with this name.

    Raises:
        InputError: The model has no such layer.
    """
    if name in STATIC:
        return ["embedding"]
    match = _MEGATRON.fullmatch(name)
    if match is None:
        return [find_module(model, name)]
    if match["block"] is None:
        return ["norm"]
    parts = _PARTS.get(match["part"], (f".{match['part']}",))
    return [find_module(model, f"blocks.{int(match['block'])}{part}") for part in parts]


def _outputs(served: Served, text: str, layers: list[str], axis: int) -> str:
    """The outputs of layers, as base64 of an .npz with the arrays `<layer>.output`.

    Args:
        served: The model.
        text: The sequence.
        layers: Names of the layers.
        axis: Where the batch axis is inserted: arrays are [1, L, H] for 0, [L, 1, H] for 1.
    """
    model = served.model
    tag, bases = read_dna(served, "sequence", text)
    letters = tag + bases
    modules = {name: modules_of(model, name) for name in layers if name not in LOGITS}
    needed = list(dict.fromkeys(module for each in modules.values() for module in each))
    widths = layer_widths(model, needed) if needed else {}
    num_values = sum(widths[module] for each in modules.values() for module in each)
    num_values += model.config.vocabulary * sum(name in LOGITS for name in layers)
    check_answer(len(letters) * num_values)
    outputs: dict[str, Tensor] = {}
    if needed:
        embeddings = model.embed([letters], layers=needed, pool="none")
        vectors = {module: embeddings[module][0] for module in needed}
        outputs = {
            name: torch.cat([vectors[module] for module in each], dim=1)
            for name, each in modules.items()
        }
    for name in layers:
        if name in LOGITS:
            outputs[name] = _logits(model, letters)
    buffer = io.BytesIO()
    arrays = {f"{name}.output": outputs[name].float().unsqueeze(axis).numpy() for name in layers}
    np.savez(buffer, allow_pickle=False, **arrays)
    return base64.b64encode(buffer.getvalue()).decode()


@torch.inference_mode()
def _logits(model: StripedHyena2, letters: bytes) -> Tensor:
    """The logits after each base, [L, V], on the CPU."""
    ids_L = token_ids(model, letters)
    cache = model.new_cache(1)
    logits_LV = torch.cat(
        [model(part_L[None], cache=cache)[0].cpu() for part_L in torch.split(ids_L, PREFILL_CHUNK)]
    )
    require_finite(logits_LV.sum().item(), model, letters, "sequence")
    return logits_LV
