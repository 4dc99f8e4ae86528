"""Task heads: pool the outputs of a layer into features, and predict labels from them.

The outputs of one layer are pooled over the positions of a sequence into one vector. If both
strands are read, their vectors are averaged. The features of a pair are [h_a, h_b - h_a]. The task
tokens has a vector at each position instead.

N examples, S sequences read per example (of a pair, on both strands), L positions, D channels of
the layer, F features (D, or 2D for pairs), C outputs. Pooling and features are fp32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as collectives
import torch.nn.functional as F
from torch import Tensor, nn

from evo2cli.errors import UserError
from evo2cli.finetune.tasks import NO_LABEL, Task
from stripedhyena2 import StripedHyena2

POOLS = ("mean", "last", "max", "attention", "center:W")
SUMS = ("mean", "last", "center")  # pools that are sums over positions: context parallelism works
CLIP = 20.0  # clips standardized features, so that near-constant channels cannot dominate


@dataclass(frozen=True)
class Pool:
    """How to pool the positions of a sequence into one vector.

    Attributes:
        kind: "mean", "last" (the last position), "max", "attention" (a learned softmax over
            positions), "center" (the mean of the central positions), or "none".
        width: Number of positions for "center".
    """

    kind: str
    width: int = 0

    @classmethod
    def read(cls, text: str) -> "Pool":
        """Parse `--pool`.

        Raises:
            UserError: It is not one of `POOLS`.
        """
        kind, _, width = text.partition(":")
        if kind in ("center", "centre") and width.isdecimal() and int(width):
            return cls("center", int(width))
        if text in POOLS[:-1]:
            return cls(text)
        raise UserError(
            f"--pool {text}: must be one of {', '.join(POOLS)} (the W bases in the middle)"
        )


@dataclass(frozen=True)
class Reading:
    """How features are computed from the model.

    Attributes:
        layer: Name of a module.
        pool: As `Pool.read` takes it; "none" for tokens.
        strand: "fwd", or "both" to average both strands.
        is_pair: Whether an example has two sequences.
    """

    layer: str
    pool: str
    strand: Literal["fwd", "both"] = "fwd"
    is_pair: bool = False

    @property
    def by_token(self) -> bool:
        """Whether there are features at each position."""
        return self.pool == "none"

    @property
    def num_parts(self) -> int:
        """Number of D-channel vectors in the features: two for a pair, [h_a, h_b - h_a]."""
        return 2 if self.is_pair else 1

    @property
    def num_sequences(self) -> int:
        """Number of sequences read per example, over pair and strands, S."""
        return (2 if self.is_pair else 1) * (2 if self.strand == "both" else 1)


class Pooling(nn.Module):
    """Pools the outputs of a layer over positions.

    Args:
        pool: The kind of pooling.
        width: Channels of the layer.

    Attributes:
        group: Context-parallel process group; None if this rank has all positions.
        first: First position of this rank.
    """

    def __init__(self, pool: Pool, width: int) -> None:
        super().__init__()
        self.pool = pool
        self.group: dist.ProcessGroup | None = None
        self.first = 0
        self.query_D: nn.Parameter | None
        query = nn.Parameter(torch.zeros(width)) if pool.kind == "attention" else None
        self.register_parameter("query_D", query)

    def forward(self, x_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        """Pool sequences of these lengths, padded at the end, into vectors [B, D]."""
        length = x_BLD.shape[1]
        position_L = torch.arange(self.first, self.first + length, device=x_BLD.device)
        ends_B1 = lengths_B[:, None]
        inside_BL = position_L < ends_B1
        x_BLD = x_BLD.float()
        if self.pool.kind == "max":
            return x_BLD.masked_fill(~inside_BL[:, :, None], -torch.inf).amax(dim=1)
        if self.query_D is not None:
            score_BL = x_BLD @ self.query_D.float()
            weight_BL = score_BL.masked_fill(~inside_BL, -torch.inf).softmax(dim=1)
        else:
            starts_B1 = torch.zeros_like(ends_B1)
            if self.pool.kind == "last":
                starts_B1 = ends_B1 - 1
            elif self.pool.kind == "center":
                starts_B1 = (ends_B1 - self.pool.width).clamp_min(0) // 2
                ends_B1 = torch.minimum(starts_B1 + self.pool.width, ends_B1)
            chosen_BL = (position_L >= starts_B1) & (position_L < ends_B1)
            weight_BL = chosen_BL / (ends_B1 - starts_B1)
        y_BD = torch.einsum("bl,bld->bd", weight_BL, x_BLD)
        if self.group is not None:
            y_BD = collectives.all_reduce(y_BD, group=self.group)  # type: ignore[no-untyped-call] # torch does not annotate it
        return y_BD


class Head(nn.Module):
    """Predicts labels from features.

    "linear" is a single linear layer; "mlp" is LayerNorm, a linear layer of the same width, GELU,
    dropout and an output layer. Features are first shifted and scaled (`scale_features`).

    Args:
        num_features: Number of features, F.
        num_outputs: Number of outputs, C.
        kind: "linear" or "mlp".
        dropout: Dropout probability of "mlp".
    """

    mean_F: Tensor
    deviation_F: Tensor

    def __init__(
        self, num_features: int, num_outputs: int, kind: str, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("mean_F", torch.zeros(num_features))
        self.register_buffer("deviation_F", torch.ones(num_features))
        self.hidden: nn.Module = nn.Identity()
        if kind == "mlp":
            self.hidden = nn.Sequential(
                nn.LayerNorm(num_features),
                nn.Linear(num_features, num_features),
                nn.GELU(),
                nn.Dropout(dropout),
            )
        self.out = nn.Linear(num_features, num_outputs)

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        """Initialize the parameters; all predictions are the same at first.

        The output layer starts at 0, so that the layers below get no random gradients; a hidden
        layer is drawn from N(0, 1 / fan-in).
        """
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                deviation = module.in_features**-0.5
                module.weight.copy_(
                    torch.empty(module.weight.shape).normal_(0, deviation, generator=generator)
                )
                module.bias.zero_()
        self.out.weight.zero_()

    @torch.no_grad()
    def scale_features(self, features_NF: Tensor, num_parts: int, *, frozen: bool) -> None:
        """Set the constants that scale features, from features of the frozen base.

        If the base stays frozen, each feature is standardized. Otherwise each part is only divided
        by its root mean square: pooled features vary little between sequences, so dividing by their
        standard deviation would amplify every change of the base.

        Args:
            features_NF: Features of training examples.
            num_parts: As in `Reading`.
            frozen: Whether the base stays frozen.
        """
        if frozen:
            self.mean_F.copy_(features_NF.mean(dim=0))
            self.deviation_F.copy_(features_NF.std(dim=0, correction=0).clamp_min(1e-6))
            return
        for part, scale in zip(
            features_NF.chunk(num_parts, dim=1), self.deviation_F.chunk(num_parts), strict=True
        ):
            scale.fill_(part.square().mean().sqrt().clamp_min(1e-6))

    def forward(self, features: Tensor) -> Tensor:
        """Outputs [..., C] of features [..., F], in fp32."""
        with torch.autocast(features.device.type, enabled=False):
            x = (features.float() - self.mean_F.float()) / self.deviation_F.float()
            x = x.clamp(-CLIP, CLIP).to(self.out.weight.dtype)
            y: Tensor = self.out(self.hidden(x))
            return y.float()


class TaskModel(nn.Module):
    """A model with a task head.

    Args:
        trunk: The model; None if the inputs are cached features.
        head: The head.
        reading: The features that the head reads.
    """

    def __init__(self, trunk: StripedHyena2 | None, head: Head, reading: Reading) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.reading = reading
        self.pooling: Pooling | None = None
        if trunk is not None and not reading.by_token:
            width = len(head.mean_F) // reading.num_parts
            self.pooling = Pooling(Pool.read(reading.pool), width)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Outputs [N, C], or [N, L, C] for tokens.

        Args:
            inputs: Features [N, F]; or with a trunk, token ids [N, S, L], padded at the end, and
                sequence lengths [N, S].
        """
        features = inputs[0] if self.trunk is None else self.features(*inputs)
        outputs: Tensor = self.head(features)
        return outputs

    def features(self, ids_NSL: Tensor, lengths_NS: Tensor) -> Tensor:
        """Features [N, F], or [N, L, F] for tokens; arguments as for `forward`."""
        assert self.trunk is not None
        (x,) = self.trunk.read_layers(ids_NSL.flatten(0, 1), [self.reading.layer])
        return combine(x, lengths_NS, self.reading, self.pooling)


def combine(
    x_BLD: Tensor, lengths_NS: Tensor, reading: Reading, pooling: nn.Module | None
) -> Tensor:
    """Pool the outputs of a layer, and combine strands and pairs into features.

    Args:
        x_BLD: Outputs for all sequences of all examples, B = N S.
        lengths_NS: Their lengths.
        reading: Strand and pairs.
        pooling: The pooling; None for tokens.
    """
    num_strands = 2 if reading.strand == "both" else 1
    if pooling is None:
        x_NSLD: Tensor = x_BLD.float().unflatten(0, lengths_NS.shape)  # type: ignore[no-untyped-call] # torch does not annotate it
        if num_strands == 1:
            return x_NSLD[:, 0]
        return (x_NSLD[:, 0] + _mirrored(x_NSLD[:, 1], lengths_NS[:, 1])) / 2
    h_BD: Tensor = pooling(x_BLD, lengths_NS.flatten())
    h_NPD = h_BD.view(len(lengths_NS), -1, num_strands, h_BD.shape[1]).mean(dim=2)
    if not reading.is_pair:
        return h_NPD[:, 0]
    return torch.cat([h_NPD[:, 0], h_NPD[:, 1] - h_NPD[:, 0]], dim=1)


def _mirrored(x_NLD: Tensor, lengths_N: Tensor) -> Tensor:
    """Reverse the positions of each sequence; padding stays at the end."""
    position_L = torch.arange(x_NLD.shape[1], device=x_NLD.device)
    from_NL = lengths_N[:, None] - 1 - position_L
    from_NL = torch.where(from_NL >= 0, from_NL, position_L)
    return x_NLD.gather(1, from_NL[:, :, None].expand_as(x_NLD))


def padded(sequences: Sequence[Sequence[bytes]], length: int, pad: int) -> tuple[Tensor, Tensor]:
    """Token ids [N, S, length], padded at the end, and lengths [N, S]."""
    ids_NSL = torch.full((len(sequences), len(sequences[0]), length), pad, dtype=torch.uint8)
    for row, group in zip(ids_NSL, sequences, strict=True):
        for ids_L, letters in zip(row, group, strict=True):
            ids_L[: len(letters)] = torch.frombuffer(bytearray(letters), dtype=torch.uint8)
    lengths = torch.tensor([[len(letters) for letters in group] for group in sequences])
    return ids_NSL.long(), lengths


def task_loss(task: Task, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of losses.

    classify: cross-entropy of [N, C]. tokens: of [N, L, C]. multilabel: binary cross-entropy of
    each of [N, C]. regress: half the squared error of each.
    """
    if task in (Task.CLASSIFY, Task.TOKENS):
        losses = F.cross_entropy(
            outputs.flatten(0, -2), targets.flatten(), reduction="none", ignore_index=NO_LABEL
        )
        return (losses * weights.flatten()).sum()
    if task is Task.MULTILABEL:
        return F.binary_cross_entropy_with_logits(outputs, targets, weights, reduction="sum")
    return ((outputs - targets).square() / 2 * weights).sum()
