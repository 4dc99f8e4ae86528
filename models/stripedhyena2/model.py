"""StripedHyena 2 on one page.

B batch, L tokens, D channels, V vocabulary. Source: arXiv:2503.01868.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hyenakernels import add_rms_norm, rms_norm
from hyenakernels.precision import accumulation_dtype, full_precision
from stripedhyena2.cache import Cache, Past, RoomyPast
from stripedhyena2.config import ATTENTION, ModelConfig
from stripedhyena2.inference import Inference
from stripedhyena2.operators import Attention, Hyena


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
    """RMSNorm of a sum, in the same pass over memory."""

    def forward(  # type: ignore[override]  # a sum has two terms
        self, x_BLD: Tensor, y_BLD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Normalize x + y; returns that, and the sum."""
        return add_rms_norm(x_BLD, y_BLD, self.scale, self.eps)


MLP_TOKENS = 131_072  # of a sequence at a time: bounds what lies between the layers of the MLP


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)), without biases."""

    def __init__(self, config: ModelConfig, *, gelu: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down = nn.Linear(config.mlp_width, config.width, bias=False)
        self.activation = F.gelu if gelu else nn.Identity()

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Mix along D; longer sequences in pieces, computed anew in the backward pass."""
        pieces = torch.split(x_BLD, MLP_TOKENS, dim=1)
        if len(pieces) == 1:
            return self._mix(x_BLD)
        return torch.cat([checkpoint(self._mix, x, use_reentrant=False) for x in pieces], dim=1)

    def _mix(self, x_BLD: Tensor) -> Tensor:
        y: Tensor = self.down(self.activation(self.gate(x_BLD)) * self.up(x_BLD))
        return y


class Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        kind = config.stripes[index]
        self.pre_norm = RMSNorm(config.width, config.norm_eps)
        self.mixer = Attention(config) if kind == ATTENTION else Hyena(config, kind)
        self.post_norm = SumRMSNorm(config.width, config.norm_eps)
        # Evo 2 was trained with a GELU in the first block's MLP only; all later ones are bilinear.
        self.mlp = GatedMLP(config, gelu=index == 0)

    def forward(self, x_BLD: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """One stripe; returns the residual stream and the past of what follows."""
        mixed_BLD, following = self.mixer(self.pre_norm(x_BLD), past)
        normed_BLD, x_BLD = self.post_norm(x_BLD, mixed_BLD)
        return x_BLD + self.mlp(normed_BLD), following


class StripedHyena2(Inference, nn.Module):
    """Token ids to next-token logits, through the blocks that `config.stripes` spells.

    Attributes:
        activation_checkpointing: While training, keep the input of so many blocks only, and compute
            them anew in the backward pass; 0 keeps all.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = 0
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
        model = cls(config)
        initialize(model, seed)
        return model

    def new_cache(
        self, batch_size: int, capacity: int | None = None, *, float8: bool = False
    ) -> Cache:
        """The state of `batch_size` sequences before their first token.

        Args:
            batch_size: How many.
            capacity: Take memory for the keys and values of so many tokens now, and copy none while
                they grow. Such a cache has no clones that go on: one line of tokens fills it.
            float8: Keep keys and values of these in FP8.
        """
        pasts: list[Past | None] = [None] * self.config.depth
        if capacity is not None:
            for index, block in enumerate(self.blocks):
                if isinstance(block.mixer, Attention):
                    room = block.mixer.room(batch_size, capacity, float8=float8)
                    pasts[index] = RoomyPast.within(room)
        return Cache(batch_size, position=0, pasts=pasts)

    def forward(self, ids_BL: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits of the token that follows each of `ids`.

        Args:
            ids_BL: int64 token ids in [0, V).
            cache: Continue the sequences of this cache, and leave it after the last of `ids`.

        Returns:
            Logits [B, L, V], in fp32 (fp64 for a fp64 model).

        Raises:
            ValueError: The cache is of another batch size.
        """
        if cache is not None and cache.batch_size != ids_BL.shape[0]:
            raise ValueError(
                f"the cache holds {cache.batch_size} sequences, the ids {ids_BL.shape[0]}"
            )
        x_BLD = self.embedding(ids_BL)
        if cache is None:
            return self.unembed(self._through_blocks(x_BLD))
        for index, block in enumerate(self.blocks):
            x_BLD, cache.pasts[index] = block(x_BLD, cache.pasts[index])
        cache.position += ids_BL.shape[1]
        return self.unembed(x_BLD)

    def _through_blocks(self, x_BLD: Tensor) -> Tensor:
        """All blocks, from the start of the sequences; group by group where they are recomputed."""

        def run(x_BLD: Tensor, first: int, last: int) -> Tensor:
            for block in self.blocks[first:last]:
                x_BLD, _ = block(x_BLD, None)
            return x_BLD

        group = self.activation_checkpointing
        if not (group and torch.is_grad_enabled()):
            return run(x_BLD, 0, len(self.blocks))
        for first in range(0, len(self.blocks), group):
            x_BLD = checkpoint(run, x_BLD, first, first + group, use_reentrant=False)
        return x_BLD

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

    Projections N(0, 2 / 5D); output projections N(0, (2 / (depth * sqrt(D)))^2); taps of featurizer
    and SE uniform within sqrt(1 / featurizer taps); MR taps 1e-5 * N(0, 1) / sqrt(context); poles
    -U(0.01, 0.1) / e; residues 0.1 * N(0, 1) / sqrt(modes); skips and biases 0; norms 1.

    They are drawn on the CPU in fp32, one after the other, so that a seed gives the same model
    everywhere; `model` tells names and shapes and may lie on the meta device.

    Source: the public Evo 2 training recipes; the skips, which they leave undefined, start at 0.
    """
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    projection = math.sqrt(2 / (5 * config.width))
    output = 2 / (config.depth * math.sqrt(config.width))
    bound = math.sqrt(1 / config.num_featurizer_taps)

    for name, parameter in model.named_parameters():
        value = torch.empty(parameter.shape, device="cpu", dtype=torch.float32)
        parent, _, last = name.rpartition(".")
        if last in ("skip_D", "bias"):
            value.zero_()
        elif last == "scale":
            value.fill_(1)
        elif last == "log_poles_DS":
            value.uniform_(0.01, 0.1, generator=generator).div_(-math.e)
        elif last == "residues_DS":
            value.normal_(0, 0.1 / math.sqrt(config.num_modes), generator=generator)
        elif last == "taps_GK" and parameter.shape[1] == config.num_medium_taps:
            value.normal_(0, 1e-5 / math.sqrt(config.original_context), generator=generator)
        elif last in ("taps_GK", "featurizer_taps_CK"):
            value.uniform_(-bound, bound, generator=generator)
        elif parent.endswith(("project_out", "mlp.down")):
            value.normal_(0, output, generator=generator)
        else:
            value.normal_(0, projection, generator=generator)
        yield value
