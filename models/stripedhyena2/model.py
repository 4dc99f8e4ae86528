"""StripedHyena 2 on one page.

B batch, L tokens, D channels, V vocabulary. Source: arXiv:2503.01868.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hyenakernels import add_rms_norm, rms_norm
from hyenakernels.precision import accumulation_dtype, full_precision
from stripedhyena2.cache import Cache, Past, Pooled
from stripedhyena2.config import ModelConfig
from stripedhyena2.errors import InputError
from stripedhyena2.ids import check_batch, check_range
from stripedhyena2.inference import Inference
from stripedhyena2.initial import Draw, Uninitialized, constant, normal
from stripedhyena2.layers import listening, num_blocks
from stripedhyena2.operators import Mixer


class RMSNorm(nn.Module):
    """x * scale / (rms(x) + eps): eps stands outside the root, as the released weights expect."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Normalize each token, in fp32 or better; returns the dtype it was given or autocast's."""
        return rms_norm(x_BLD, self.scale, self.eps)


class SumRMSNorm(RMSNorm):
    """The RMSNorm of a sum, in the same pass over memory."""

    def forward(  # type: ignore[override]  # a sum has two terms
        self, x_BLD: Tensor, y_BLD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Normalize x + y; returns the result and the sum."""
        return add_rms_norm(x_BLD, y_BLD, self.scale, self.eps)


MLP_TOKENS = 131_072  # positions computed together: bounds the memory between the MLP's layers


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)), without biases."""

    def __init__(self, config: ModelConfig, *, gelu: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down = nn.Linear(config.mlp_width, config.width, bias=False)
        self.activation = F.gelu if gelu else nn.Identity()

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Mix along D; long sequences in chunks, which the backward pass recomputes."""
        chunks = torch.split(x_BLD, MLP_TOKENS, dim=1)
        if len(chunks) == 1:
            return self._mix(x_BLD)
        return torch.cat([checkpoint(self._mix, x, use_reentrant=False) for x in chunks], dim=1)

    def _mix(self, x_BLD: Tensor) -> Tensor:
        y: Tensor = self.down(self.activation(self.gate(x_BLD)) * self.up(x_BLD))
        return y


class Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.pre_norm = RMSNorm(config.width, config.norm_eps)
        self.mixer: Mixer = config.mixers[index](config)
        self.post_norm = SumRMSNorm(config.width, config.norm_eps)
        # Evo 2 was trained with a GELU in the first block's MLP only; all later ones are bilinear.
        self.mlp = GatedMLP(config, gelu=index == 0)

    def forward(self, x_BLD: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """Returns the residual stream, and the past for the tokens that follow.

        Sequences that are read side by side have a `Pooled` past, which is returned unchanged.
        """
        if isinstance(past, Pooled):
            launch = past.launch.to(x_BLD.device)
            mixed_BLD = self.mixer.read_rows(self.pre_norm(x_BLD), past.pool, launch)
            following: Past = past
        else:
            mixed_BLD, following = self.mixer(self.pre_norm(x_BLD), past)
        normed_BLD, x_BLD = self.post_norm(x_BLD, mixed_BLD)
        return x_BLD + self.mlp(normed_BLD), following


class StripedHyena2(Inference, nn.Module):
    """Token ids to next-token logits, through the blocks that `config.stripes` spells.

    Attributes:
        activation_checkpointing: Blocks per checkpoint: while training, only the input of each
            group of this many blocks is kept, and the backward pass recomputes the rest. 0 keeps
            all activations.
        checks_ids: Whether ids out of range are refused. On a GPU the check waits for all earlier
            work, so a caller whose ids are known to be valid sets it to False, as every command
            does. An id out of range then ends the process.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = 0
        self.checks_ids = True
        # Not drawn here: a draw on the meta device imports torch._dynamo, which takes seconds.
        table_VD = torch.empty(config.vocabulary, config.width)
        self.embedding: nn.Embedding = nn.Embedding.from_pretrained(  # type: ignore[no-untyped-call]
            table_VD, freeze=False
        )
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.depth))
        self.norm = RMSNorm(config.width, config.norm_eps)

    @classmethod
    def from_seed(cls, config: ModelConfig, seed: int) -> "StripedHyena2":
        """A model with fresh random weights, the same for the same seed."""
        with Uninitialized():
            model = cls(config)
        initialize(model, seed)
        return model

    @property
    def mixers(self) -> list[Mixer]:
        """The mixer of each block."""
        return [module for module in self.blocks.modules() if isinstance(module, Mixer)]

    def new_cache(
        self, batch_size: int, capacity: int | None = None, *, float8: bool = False
    ) -> Cache:
        """The state of `batch_size` sequences before their first token.

        Args:
            batch_size: Number of sequences.
            capacity: Allocate the keys and values of this many tokens now, instead of copying them
                as they grow. Such a cache cannot branch: its clones share the memory.
            float8: Store these keys and values in FP8.
        """
        pasts: list[Past | None] = [None] * self.config.depth
        if capacity is not None:
            pasts = [mixer.new_past(batch_size, capacity, float8=float8) for mixer in self.mixers]
        return Cache(batch_size, position=0, pasts=pasts)

    def forward(self, ids_BL: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits of the token that follows each of `ids`.

        Args:
            ids_BL: int64 token ids in [0, V); L may be 0.
            cache: Continue the sequences of this cache, which is updated.

        Returns:
            Logits [B, L, V], in fp32 (fp64 for a fp64 model).

        Raises:
            InputError: The ids are not integers [B, L], or out of range; or the cache has another
                batch size, or no memory for them, and stays as it was.
        """
        self._check(ids_BL)
        if cache is None:
            return self.unembed(self.through_blocks(self.embedding(ids_BL)))
        if cache.batch_size != ids_BL.shape[0]:
            raise InputError(
                f"the cache holds {cache.batch_size} sequences, the ids {ids_BL.shape[0]}"
            )
        for mixer, past in zip(self.mixers, cache.pasts, strict=True):
            mixer.require_room(past, ids_BL.shape[1])
        return self.unembed(self.through_blocks(self.embedding(ids_BL), cache))

    def through_blocks(
        self, x_BLD: Tensor, cache: Cache | None = None, depth: int | None = None
    ) -> Tensor:
        """All blocks, or the first; without a cache, the backward pass may recompute groups.

        Args:
            x_BLD: Embedded tokens.
            cache: As for `forward`.
            depth: The number of blocks, without a cache; None for all.
        """
        if cache is not None:
            for index, block in enumerate(self.blocks):
                x_BLD, cache.pasts[index] = block(x_BLD, cache.pasts[index])
            cache.position += x_BLD.shape[1]
            return x_BLD
        depth = len(self.blocks) if depth is None else depth

        def run(x_BLD: Tensor, first: int, last: int) -> Tensor:
            for block in self.blocks[first:last]:
                x_BLD, _ = block(x_BLD, None)
            return x_BLD

        group = self.activation_checkpointing
        if not (group and torch.is_grad_enabled()):
            return run(x_BLD, 0, depth)
        for first in range(0, depth, group):
            last = min(first + group, depth)
            x_BLD = checkpoint(run, x_BLD, first, last, use_reentrant=False)
        return x_BLD

    def read_layers(self, ids_BL: Tensor, layers: Sequence[str]) -> list[Tensor]:
        """The output of each layer at each position, [B, L, D]; deeper blocks are not computed.

        Args:
            ids_BL: int64 token ids in [0, V).
            layers: Names of modules, as in `named_modules`.

        Raises:
            InputError: The ids are not integers [B, L], or out of range.
        """
        self._check(ids_BL)
        outputs: dict[str, Tensor] = {}

        keep = outputs.__setitem__
        with listening((self.get_submodule(layer), partial(keep, layer)) for layer in layers):
            depth = num_blocks(self.config, layers)
            x_BLD = self.through_blocks(self.embedding(ids_BL), depth=depth)
            if "norm" in layers:
                self.norm(x_BLD)
        return [outputs[layer] for layer in layers]

    def _check(self, ids_BL: Tensor) -> None:
        check_batch(ids_BL)
        if self.checks_ids:
            check_range(ids_BL, self.config.vocabulary)

    def unembed(self, x_BLD: Tensor) -> Tensor:
        """Final norm and the tied head, in fp32 or better whatever the model's dtype."""
        dtype = accumulation_dtype(x_BLD)
        with full_precision(x_BLD):
            return F.linear(self.norm(x_BLD.to(dtype)), self.embedding.weight.to(dtype))


@torch.no_grad()
def initialize(model: StripedHyena2, seed: int) -> None:
    """Fill every parameter with the `initial_values` of a seed."""
    for parameter, value in zip(model.parameters(), initial_values(model, seed), strict=True):
        parameter.copy_(value)


def initial_values(model: StripedHyena2, seed: int) -> Iterator[Tensor]:
    """A fresh value for every parameter of `model` in their order, as Savanna does for Evo 2.

    Embedding and MLP N(0, 2 / 5D); outputs of the MLP N(0, (2 / (depth * sqrt(D)))^2); norms 1;
    mixers as their `Mixer.initial` says.

    They are drawn on the CPU in fp32, by threads with the numbers of a single one, so that a seed
    gives the same model everywhere (to the last bit on CPUs with AVX2; others round the last bits
    otherwise). Only names and shapes of `model` matter, which may be on the meta device.

    Source: the public Evo 2 training recipes; the skips, which they leave undefined, start at 0.
    """
    config = model.config
    projection = normal(math.sqrt(2 / (5 * config.width)))
    output = normal(2 / (config.depth * math.sqrt(config.width)))
    draws: dict[str, Draw] = {"embedding.weight": projection, "norm.scale": constant(1)}
    for index, mixer in enumerate(config.mixers):
        block = {
            "pre_norm.scale": constant(1),
            **{f"mixer.{name}": draw for name, draw in mixer.initial(config).items()},
            "post_norm.scale": constant(1),
            "mlp.gate.weight": projection,
            "mlp.up.weight": projection,
            "mlp.down.weight": output,
        }
        draws |= {f"blocks.{index}.{name}": draw for name, draw in block.items()}

    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        value = torch.empty(parameter.shape, device="cpu", dtype=torch.float32)
        draws[name](value, generator)
        yield value
