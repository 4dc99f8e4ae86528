"""The four mixers of the stripes: Hyena-SE, Hyena-MR, Hyena-LI and attention.

B batch, L new tokens, T tokens seen, D channels, C = 3D channels, G filter groups, K taps, S modes,
H heads, W channels a head. Source: arXiv:2503.01868.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hyenakernels import (
    FIRFilters,
    HyenaPast,
    HyenaSlots,
    ModalFilters,
    append_token,
    causal_attention,
    decode_attention,
    hyena_fir,
    hyena_fir_step,
    hyena_modal,
    hyena_modal_step,
    rotary,
)
from hyenakernels.attention.float8 import Float8Rows, Rows
from hyenakernels.attention.reference import rotary_angles
from hyenakernels.precision import accumulation_dtype
from stripedhyena2.cache import AttentionPast, AttentionSlots
from stripedhyena2.config import LONG, MEDIUM, SHORT, ModelConfig


class HyenaOperator(nn.Module):
    """What stands between a Hyena mixer's projections: featurizer, gate, convolution, gate.

    y = x2 * (conv(u) + skip * u) with u = x1 * v, where x2, x1, v are the featurized projections,
    side by side. Kinds differ in `conv`; each is one fused operator, `convolve`, and one of a token
    of each sequence, `convolve_step`.
    """

    convolve: Callable[..., tuple[Tensor, HyenaPast]]
    convolve_step: Callable[..., Tensor]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.featurizer_taps_CK = nn.Parameter(
            torch.empty(3 * config.width, config.num_featurizer_taps)
        )

    def forward(self, z_BLC: Tensor, past: HyenaPast | None) -> tuple[Tensor, HyenaPast]:
        """Mix the projections [x2 | x1 | v] along L into [B, L, D]."""
        return self.convolve(z_BLC, self.filters(), past)

    def step(self, z_B1C: Tensor, slots: HyenaSlots) -> Tensor:
        """Mix the projections of a token of each sequence into [B, 1, D]."""
        return self.convolve_step(z_B1C, self.filters(), slots)

    def filters(self) -> FIRFilters | ModalFilters:
        """The parameters, as the operators take them."""
        raise NotImplementedError

    def inner_room(self, batch_size: int, like: Tensor) -> Tensor:
        """The past of the inner convolution of sequences before their first token, as slots."""
        raise NotImplementedError


class HyenaFIR(HyenaOperator):
    """A FIR with the taps of the channel's group, and perhaps a skip per channel."""

    taps_GK: nn.Parameter
    skip_D: nn.Parameter | None

    convolve = staticmethod(hyena_fir)
    convolve_step = staticmethod(hyena_fir_step)

    def filters(self) -> FIRFilters:
        """Featurizer, taps, skip."""
        return FIRFilters(self.featurizer_taps_CK, self.taps_GK, self.skip_D)

    def inner_room(self, batch_size: int, like: Tensor) -> Tensor:
        """A ring of samples."""
        sizes = (batch_size, self.taps_GK.shape[1], self.featurizer_taps_CK.shape[0] // 3)
        return like.new_zeros(sizes)


class HyenaSE(HyenaFIR):
    """Short explicit: a handful of taps, learned one by one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.taps_GK = nn.Parameter(torch.empty(config.num_filter_groups, config.num_short_taps))
        self.register_parameter("skip_D", None)


class HyenaMR(HyenaFIR):
    """Medium regularized: about a hundred taps, and a skip per channel."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.taps_GK = nn.Parameter(torch.empty(config.num_filter_groups, config.num_medium_taps))
        self.skip_D = nn.Parameter(torch.empty(config.width))


class HyenaLI(HyenaOperator):
    """Long implicit: a sum of decaying exponentials per channel, over the whole past."""

    convolve = staticmethod(hyena_modal)
    convolve_step = staticmethod(hyena_modal_step)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.log_poles_DS = nn.Parameter(torch.empty(config.width, config.num_modes))
        self.residues_DS = nn.Parameter(torch.empty(config.width, config.num_modes))
        self.skip_D = nn.Parameter(torch.empty(config.width))

    def filters(self) -> ModalFilters:
        """Featurizer, poles, residues, skip."""
        return ModalFilters(
            self.featurizer_taps_CK, self.log_poles_DS, self.residues_DS, self.skip_D
        )

    def inner_room(self, batch_size: int, like: Tensor) -> Tensor:
        """States, of which the channels lie side by side."""
        sizes = (batch_size, *self.log_poles_DS.shape[::-1])
        return like.new_zeros(sizes, dtype=accumulation_dtype(like)).transpose(1, 2)


HYENA_OPERATORS: dict[str, type[HyenaOperator]] = {SHORT: HyenaSE, MEDIUM: HyenaMR, LONG: HyenaLI}


class Hyena(nn.Module):
    """A Hyena mixer: projection to 3D channels, operator, projection back."""

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__()
        self.project_in = nn.Linear(config.width, 3 * config.width, bias=False)
        self.operator = HYENA_OPERATORS[kind](config)
        self.project_out = nn.Linear(config.width, config.width)

    def room(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Memory for `HyenaSlots`: of sequences before their first token."""
        like = self.project_out.weight
        channels, num_taps = self.operator.featurizer_taps_CK.shape
        ring_BFC = like.new_zeros(batch_size, num_taps, channels)
        return ring_BFC, self.operator.inner_room(batch_size, like)

    def forward(self, x_BLD: Tensor, past: HyenaPast | None) -> tuple[Tensor, HyenaPast]:
        """Mix along L; returns the shape it was given, and the past of what follows."""
        y_BLD, past = self.operator(self.project_in(x_BLD), past)
        return self.project_out(y_BLD), past

    def step(self, z_B1C: Tensor, slots: HyenaSlots) -> Tensor:
        """What stands between the projections, for a token of each sequence; [B, 1, D]."""
        y_B1D: Tensor = self.operator.step(z_B1C, slots)
        return y_B1D


def rotary_frequencies(config: ModelConfig) -> Tensor:
    """Radians a position, rotary_base^(-2i / head width) for each pair i of a head, in fp32."""
    evens = range(0, config.width // config.num_heads, 2)
    # Python's numbers: torch's, on the meta device, import all of torch._dynamo.
    radians = [config.rotary_base ** (-even * config.num_heads / config.width) for even in evens]
    return torch.tensor(radians, dtype=torch.float32)


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

    def room(
        self, batch_size: int, num_tokens: int, *, on_host: bool = False, float8: bool = False
    ) -> tuple[Rows, Rows]:
        """Memory for the keys and the values of sequences, [B, H, T, W] each.

        Args:
            batch_size: B.
            num_tokens: T.
            on_host: Pinned memory of the host, in the order [T, B, H, W], so that some tokens are
                one piece of it.
            float8: Keep them in FP8.
        """
        like, width = self.project_out.weight, self.project_out.in_features // self.num_heads
        heads, dtype = self.num_heads, like.dtype

        def memory() -> Rows:
            if on_host:
                order = (num_tokens, batch_size, heads, width)
                pinned_TBHW = torch.empty(order, dtype=dtype, pin_memory=like.is_cuda)
                return pinned_TBHW.permute(1, 2, 0, 3)
            sizes = (batch_size, heads, num_tokens, width)
            if float8:
                return Float8Rows.empty(sizes, dtype, like.device)
            return like.new_empty(sizes)

        return memory(), memory()

    def rotate(self, x_BLHW: Tensor, positions_BL: Tensor) -> Tensor:
        """Turn each pair (i, i + W/2) by its angle; B of the positions may be 1.

        angle(t, i) = t / rotary_scale * inverse_frequency[i], in fp32 or better.
        """
        angle_BLV = rotary_angles(positions_BL, self.inverse_frequency, self.rotary_scale)
        return rotary(x_BLHW, angle_BLV.cos(), angle_BLV.sin())

    def forward(self, x_BLD: Tensor, past: AttentionPast | None) -> tuple[Tensor, AttentionPast]:
        """Mix along L; returns the shape it was given, and the past of what follows."""
        length, device = x_BLD.shape[1], x_BLD.device
        qkv_BLHW = self.project_in(x_BLD).unflatten(2, (3 * self.num_heads, -1))
        qk_BLHW, v_BLHW = qkv_BLHW.split([2 * self.num_heads, self.num_heads], dim=2)
        first = past.keys_BHTW.shape[2] if past else self.first_position
        positions_1L = torch.arange(first, first + length, device=device)[None]
        q_BLHW, k_BLHW = self.rotate(qk_BLHW, positions_1L).chunk(2, dim=2)
        q, k, v = (part.transpose(1, 2) for part in (q_BLHW, k_BLHW, v_BLHW))
        past = past.extended(k, v) if past else AttentionPast(k, v)
        y_BHLW = self.attend(q, past.keys_BHTW, past.values_BHTW)
        return self.project_out(y_BHLW.transpose(1, 2).flatten(2)), past

    def step(self, qkv_B1C: Tensor, slots: AttentionSlots) -> Tensor:
        """What stands between the projections, for a token of each sequence; [B, 1, D]."""
        rows = slots.keys_BHTW, slots.values_BHTW
        angles = self.inverse_frequency, self.rotary_scale
        q_BHW = append_token(qkv_B1C[:, 0], *angles, *rows, slots.lengths_B)
        return decode_attention(q_BHW, *rows, slots.lengths_B + 1).flatten(1)[:, None]
