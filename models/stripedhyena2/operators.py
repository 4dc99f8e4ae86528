"""The four mixers of the stripes: Hyena-SE, Hyena-MR, Hyena-LI and attention.

B batch, L new tokens, T tokens seen, D channels, C = 3D channels, G filter groups, K taps, S modes,
H heads, W channels a head. Source: arXiv:2503.01868.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenakernels import hyena_fir, hyena_modal
from stripedhyena2.cache import AttentionPast, HyenaPast
from stripedhyena2.config import LONG, MEDIUM, SHORT, ModelConfig


class HyenaOperator(nn.Module):
    """What stands between a Hyena mixer's projections: featurizer, gate, convolution, gate.

    y = x2 * (conv(u) + skip * u) with u = x1 * v, where x2, x1, v are the featurized projections,
    side by side. Kinds differ in `conv`; each is one fused operator, `convolve`.
    """

    convolve: Callable[..., tuple[Tensor, Tensor, Tensor]]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.featurizer_taps_CK = nn.Parameter(
            torch.empty(3 * config.width, config.num_featurizer_taps)
        )

    def forward(self, z_BLC: Tensor, past: HyenaPast | None) -> tuple[Tensor, HyenaPast]:
        """Mix the projections [x2 | x1 | v] along L into [B, L, D]."""
        featurizer_past, inner_past = (past.featurizer_BPC, past.inner) if past else (None, None)
        y_BLD, featurizer_past, inner_past = self.mix(z_BLC, featurizer_past, inner_past)
        return y_BLD, HyenaPast(featurizer_past, inner_past)

    def mix(
        self, z_BLC: Tensor, featurizer_past: Tensor | None, past: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The fused operator; returns the output, and both pasts for what follows."""
        raise NotImplementedError


class HyenaSE(HyenaOperator):
    """Short explicit: a handful of taps, learned one by one."""

    convolve = staticmethod(hyena_fir)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.taps_GK = nn.Parameter(torch.empty(config.num_filter_groups, config.num_short_taps))

    def mix(
        self, z_BLC: Tensor, featurizer_past: Tensor | None, past: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A FIR with the group's taps."""
        return self.convolve(
            z_BLC, self.featurizer_taps_CK, self.taps_GK, None, featurizer_past, past
        )


class HyenaMR(HyenaOperator):
    """Medium regularized: about a hundred taps, and a skip per channel."""

    convolve = staticmethod(hyena_fir)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.taps_GK = nn.Parameter(torch.empty(config.num_filter_groups, config.num_medium_taps))
        self.skip_D = nn.Parameter(torch.empty(config.width))

    def mix(
        self, z_BLC: Tensor, featurizer_past: Tensor | None, past: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A FIR with the group's taps, plus the skip."""
        return self.convolve(
            z_BLC, self.featurizer_taps_CK, self.taps_GK, self.skip_D, featurizer_past, past
        )


class HyenaLI(HyenaOperator):
    """Long implicit: a sum of decaying exponentials per channel, over the whole past."""

    convolve = staticmethod(hyena_modal)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.log_poles_DS = nn.Parameter(torch.empty(config.width, config.num_modes))
        self.residues_DS = nn.Parameter(torch.empty(config.width, config.num_modes))
        self.skip_D = nn.Parameter(torch.empty(config.width))

    def mix(
        self, z_BLC: Tensor, featurizer_past: Tensor | None, past: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A modal convolution, plus the skip; its past is the state of the modes."""
        return self.convolve(
            z_BLC,
            self.featurizer_taps_CK,
            self.log_poles_DS,
            self.residues_DS,
            self.skip_D,
            featurizer_past,
            past,
        )


HYENA_OPERATORS: dict[str, type[HyenaOperator]] = {SHORT: HyenaSE, MEDIUM: HyenaMR, LONG: HyenaLI}


class Hyena(nn.Module):
    """A Hyena mixer: projection to 3D channels, operator, projection back."""

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__()
        self.project_in = nn.Linear(config.width, 3 * config.width, bias=False)
        self.operator = HYENA_OPERATORS[kind](config)
        self.project_out = nn.Linear(config.width, config.width)

    def forward(self, x_BLD: Tensor, past: HyenaPast | None) -> tuple[Tensor, HyenaPast]:
        """Mix along L; returns the shape it was given, and the past of what follows."""
        y_BLD, past = self.operator(self.project_in(x_BLD), past)
        return self.project_out(y_BLD), past


def rotary_frequencies(config: ModelConfig) -> Tensor:
    """Radians a position, rotary_base^(-2i / head width) for each pair i of a head, in fp32."""
    even = torch.arange(0, config.width // config.num_heads, 2, dtype=torch.float64)
    exponent = even * config.num_heads / config.width
    return torch.pow(config.rotary_base, -exponent).to(torch.float32)


QUERY_BLOCK = 256  # queries a call when there is a past: bounds the mask to 256 x T


def causal_attention(q_BHLW: Tensor, k_BHTW: Tensor, v_BHTW: Tensor) -> Tensor:
    """Softmax attention of the last L of T positions over all positions up to each of them."""
    length, seen = q_BHLW.shape[2], k_BHTW.shape[2]
    if length == seen:
        return F.scaled_dot_product_attention(q_BHLW, k_BHTW, v_BHTW, is_causal=True)
    pieces = []
    for start in range(0, length, QUERY_BLOCK):
        q = q_BHLW[:, :, start : start + QUERY_BLOCK]
        first = seen - length + start
        end = first + q.shape[2]
        positions = torch.arange(end, device=q.device)
        visible = positions[None, :] <= positions[first:, None]
        pieces.append(
            F.scaled_dot_product_attention(
                q, k_BHTW[:, :, :end], v_BHTW[:, :, :end], attn_mask=visible
            )
        )
    return torch.cat(pieces, dim=2)


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions.

    The frequencies are stored, not recomputed: released checkpoints carry rounded ones.

    Attributes:
        first_position: Of a sequence that has no past here; not 0 where other ranks hold its start.
    """

    attend: Callable[..., Tensor] = staticmethod(causal_attention)
    inverse_frequency: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.first_position = 0
        self.rotary_scale = config.rotary_scale
        self.project_in = nn.Linear(config.width, 3 * config.width, bias=False)
        self.project_out = nn.Linear(config.width, config.width)
        self.register_buffer("inverse_frequency", rotary_frequencies(config))

    def rotate(self, x_BHLW: Tensor, position: int) -> Tensor:
        """Turn each pair (i, i + W/2) by its angle at `position`, `position` + 1, ...

        angle(t, i) = t / rotary_scale * inverse_frequency[i], in fp32 or better.
        """
        frequency = self.inverse_frequency
        steps = torch.arange(
            position, position + x_BHLW.shape[2], device=x_BHLW.device, dtype=frequency.dtype
        )
        angle_LV = torch.outer(steps / self.rotary_scale, frequency)
        cos_LV, sin_LV = angle_LV.cos(), angle_LV.sin()
        a, b = x_BHLW.to(frequency.dtype).chunk(2, dim=3)
        turned = torch.cat([a * cos_LV - b * sin_LV, a * sin_LV + b * cos_LV], dim=3)
        return turned.to(x_BHLW.dtype)

    def forward(self, x_BLD: Tensor, past: AttentionPast | None) -> tuple[Tensor, AttentionPast]:
        """Mix along L; returns the shape it was given, and the past of what follows."""
        qkv_BLD = self.project_in(x_BLD).chunk(3, dim=2)
        q, k, v = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in qkv_BLD)
        position = past.keys_BHTW.shape[2] if past else self.first_position
        q, k = self.rotate(q, position), self.rotate(k, position)
        if past:
            k = torch.cat([past.keys_BHTW, k], dim=2)
            v = torch.cat([past.values_BHTW, v], dim=2)
        y_BLD = self.attend(q, k, v).transpose(1, 2).flatten(2)
        return self.project_out(y_BLD), AttentionPast(k, v)
