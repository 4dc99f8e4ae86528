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
    """x * scale / (rms(x) + eps), with eps outside the square root, as released weights expect."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Normalize each token, in fp32 or better; returns the dtype of x or of autocast."""
        return rms_norm(x_BLD, self.scale, self.eps)


class SumRMSNorm(RMSNorm):
    """Residual addition and RMSNorm, in one pass over memory."""

    def forward(  # type: ignore[override]  # a sum has two terms
        self, x_BLD: Tensor, y_BLD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the normalized x + y, and x + y."""
        return add_rms_norm(x_BLD, y_BLD, self.scale, self.eps)


MLP_TOKENS = 131_072  # tokens computed at once: bounds the memory of the MLP's inner activations


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)), without biases."""

    def __init__(self, config: ModelConfig, *, gelu: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down = nn.Linear(config.mlp_width, config.width, bias=False)
        self.activation = F.gelu if gelu else nn.Identity()

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Mix along D. Long sequences run in chunks, which the backward pass recomputes."""
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

        A `Pooled` past, for a batch of sequences with prefixes of their own, is returned unchanged.
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
    """Token ids to next-token logits, through the blocks that `config.stripes` lists.

    Attributes:
        activation_checkpointing: Blocks per checkpoint: in training, only the input of each group
            of this many blocks is saved, and the backward pass recomputes the rest. 0 saves all
            activations.
        checks_ids: Whether ids out of range are refused. On a GPU the check synchronizes, so a
            caller whose ids are known to be valid sets it to False, as every command does. An id
            out of range then is a device-side assert, which ends the process.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = 0
        self.checks_ids = True
        # Not initialized here: random numbers on the meta device import torch._dynamo, which takes
        # seconds.
        table_VD = torch.empty(config.vocabulary, config.width)
        self.embedding: nn.Embedding = nn.Embedding.from_pretrained(  # type: ignore[no-untyped-call]
            table_VD, freeze=False
        )
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.depth))
        self.norm = RMSNorm(config.width, config.norm_eps)

    @classmethod
    def from_seed(cls, config: ModelConfig, seed: int) -> "StripedHyena2":
        """A model with random initial weights, which are the same for the same seed."""
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
        """An empty cache for `batch_size` sequences.

        Args:
            batch_size: Number of sequences.
            capacity: Preallocate keys and values for this many tokens, instead of copying them as
                they grow. Such a cache cannot branch: its clones share the memory.
            float8: Store the preallocated keys and values in FP8.
        """
        pasts: list[Past | None] = [None] * self.config.depth
        if capacity is not None:
            pasts = [mixer.new_past(batch_size, capacity, float8=float8) for mixer in self.mixers]
        return Cache(batch_size, position=0, pasts=pasts)

    def forward(self, ids_BL: Tensor, cache: Cache | None = None) -> Tensor:
        """Next-token logits at each position.

        Args:
            ids_BL: int64 token ids in [0, V); L may be 0.
            cache: Continue the sequences of this cache, which is updated.

        Returns:
            Logits [B, L, V], in fp32 (fp64 for a fp64 model).

        Raises:
            InputError: The ids are not integers [B, L], or out of range; or the cache has another
                batch size, or no capacity for them. The cache is then unchanged.
        """
        self._check(ids_BL)
        if cache is None:
            return self.unembed(self.through_blocks(self.embedding(ids_BL)))
        if cache.batch_size != ids_BL.shape[0]:
            raise InputError(
                f"the cache holds {cache.batch_size} sequences, the ids {ids_BL.shape[0]}"
            )
        for mixer, past in zip(self.mixers, cache.pasts, strict=True):
            mixer.check_capacity(past, ids_BL.shape[1])
        return self.unembed(self.through_blocks(self.embedding(ids_BL), cache))

    def through_blocks(
        self, x_BLD: Tensor, cache: Cache | None = None, depth: int | None = None
    ) -> Tensor:
        """The residual stream after all blocks or the first `depth`.

        Without a cache, `activation_checkpointing` applies.

        Args:
            x_BLD: Embedded tokens.
            cache: As for `forward`.
            depth: The number of blocks, only without a cache; None for all.
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
        """Final norm and tied output head, in fp32 or better whatever the dtype of the model."""
        dtype = accumulation_dtype(x_BLD)
        with full_precision(x_BLD):
            return F.linear(self.norm(x_BLD.to(dtype)), self.embedding.weight.to(dtype))


@torch.no_grad()
def initialize(model: StripedHyena2, seed: int) -> None:
    """Fill every parameter with the `initial_values` of a seed."""
    for parameter, value in zip(model.parameters(), initial_values(model, seed), strict=True):
        parameter.copy_(value)


def initial_values(model: StripedHyena2, seed: int) -> Iterator[Tensor]:
    """Initial values of all parameters of `model`, in order, as in Savanna for Evo 2.

    Embedding and MLP N(0, 2 / 5D); outputs of the MLP N(0, (2 / (depth * sqrt(D)))^2); norms 1;
    mixers as in their `Mixer.initial`.

    They are drawn on the CPU in fp32, by several threads that give the numbers of a single one, so
    that a seed gives the same model everywhere (to the last bit on CPUs with AVX2; others round the
    last bits differently). Only names and shapes of `model` matter; it may be on the meta device.

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
