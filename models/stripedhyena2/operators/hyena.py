"""The three Hyena operators: Hyena-SE, Hyena-MR and Hyena-LI.

B batch, L new tokens, D channels, C = 3D channels, G filter groups, K taps, F featurizer taps,
S modes, P past samples. Source: arXiv:2503.01868.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

import hyenakernels
from hyenakernels import (
    FIRFilters,
    HyenaPast,
    ModalFilters,
    hyena_fir,
    hyena_fir_step,
    hyena_modal,
    hyena_modal_step,
    parallel,
    rings,
)
from hyenakernels.launch import modal_segment
from hyenakernels.precision import accumulation_dtype
from stripedhyena2.cache import Launch, Pool, Slots, padded_rows
from stripedhyena2.config import ModelConfig
from stripedhyena2.initial import Draw, constant, normal, uniform
from stripedhyena2.layout import Entry, by_owner, by_part, newest_first, newest_last
from stripedhyena2.mixer import Mixer
from stripedhyena2.parametrization import DecayingPoles, DecayWindow, PublishedPoles

CHUNKS = 4  # chunks of a rank's channels in a pipelined all-to-all

FIR_EXCHANGES: dict[str, Callable[..., Any]] = {
    "halo": parallel.hyena_fir_halo,
    "overlapped": parallel.hyena_fir_overlapped,
    "all-to-all": parallel.hyena_fir_all_to_all,
    "pipelined": partial(parallel.hyena_fir_all_to_all, num_chunks=CHUNKS),
}
MODAL_EXCHANGES: dict[str, Callable[..., Any]] = {
    "states": parallel.hyena_modal_states,
    "all-to-all": parallel.hyena_modal_all_to_all,
    "pipelined": partial(parallel.hyena_modal_all_to_all, num_chunks=CHUNKS),
    "fft": parallel.hyena_modal_fft,
}


def _num_parts(scheme: str, count: int) -> int:
    """The number of parts that a scheme divides the channels or groups into; 0 for no limit."""
    return {"all-to-all": count, "pipelined": CHUNKS * count}.get(scheme, 0)


@dataclass(frozen=True)
class HyenaSlots(hyenakernels.HyenaSlots, Slots):
    """The slots of the kernels, as `Slots`.

    Attributes:
        is_modal: Whether the inner pasts are modal states, not rings.
    """

    is_modal: bool = False

    def take(self, row: int, length: int) -> HyenaPast:
        """As in `Slots`."""
        rows = slice(row, row + 1)
        lengths_1 = torch.tensor([length], device=self.inner.device)
        inner = self.inner[rows]
        return HyenaPast(
            rings.past_of(self.featurizer_BFC[rows], lengths_1),
            inner.clone() if self.is_modal else rings.past_of(inner, lengths_1),
        )

    def state(self) -> tuple[Tensor, ...]:
        """As in `Slots`: a repeated step rewrites the same row of a ring, but advances a state."""
        return (self.inner,)


class HyenaPool(Pool):
    """The pasts of many prefixes, by state index; index 0 holds zeros, that of an empty prefix."""

    def __init__(self) -> None:
        super().__init__()
        self._num_states = 1
        self._pasts: HyenaPast | None = None

    def reserve(self, num_states: int, num_pages: int) -> None:
        """As in `Pool`."""
        del num_pages
        self._num_states = max(num_states, self._num_states)
        if self._pasts is not None:
            self._pasts = self._padded(self._pasts)

    def _padded(self, pasts: HyenaPast) -> HyenaPast:
        return HyenaPast(
            padded_rows(pasts.featurizer_BPC, self._num_states),
            padded_rows(pasts.inner, self._num_states),
        )

    def gather(self, states_B: Tensor, empty: HyenaPast) -> HyenaPast:
        """The pasts of some prefixes.

        Args:
            states_B: Their state indices, int64.
            empty: A past of zero sequences, for the shape, dtype and device of the pool.
        """
        if self._pasts is None:
            self._pasts = self._padded(empty)
        return HyenaPast(
            self._pasts.featurizer_BPC.index_select(0, states_B),
            self._pasts.inner.index_select(0, states_B),
        )

    def store(self, states_N: Tensor | None, past: HyenaPast) -> None:
        """Store the pasts of the first N sequences at these indices; None stores none."""
        if states_N is None:
            return
        assert self._pasts is not None, "`gather` is called before `store`"
        count = len(states_N)
        self._pasts.featurizer_BPC.index_copy_(0, states_N, past.featurizer_BPC[:count])
        self._pasts.inner.index_copy_(0, states_N, past.inner[:count])


class HyenaOperator(nn.Module):
    """The operator between the projections of a Hyena mixer: featurizer, gate, convolution, gate.

    y = x2 * (conv(u) + skip * u) with u = x1 * v, where [x2 | x1 | v] are the featurized
    projections. Subclasses differ in `conv`: each has a fused operator, `convolve`, and one for a
    decoding step, `convolve_step`.
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
        """Mix the projections of one token of each sequence into [B, 1, D]."""
        return self.convolve_step(z_B1C, self.filters(), slots)

    def filters(self) -> FIRFilters | ModalFilters:
        """The parameters as the record that the kernels take."""
        raise NotImplementedError

    def new_inner(self, batch_size: int, like: Tensor) -> Tensor:
        """The initial past of the inner convolution, as stored in `HyenaSlots`."""
        raise NotImplementedError

    def start(self, batch_size: int, like: Tensor) -> HyenaPast:
        """The past before the first token: zeros."""
        channels, num_taps = self.featurizer_taps_CK.shape
        featurizer_BPC = like.new_zeros(batch_size, num_taps - 1, channels)
        return HyenaPast(featurizer_BPC, self.new_inner(batch_size, like))


class HyenaFIR(HyenaOperator):
    """An FIR filter per group of channels, and optionally a skip weight per channel."""

    convolve = staticmethod(hyena_fir)
    convolve_step = staticmethod(hyena_fir_step)

    def __init__(self, config: ModelConfig, num_groups: int, num_taps: int, *, skip: bool) -> None:
        super().__init__(config)
        self.taps_GK = nn.Parameter(torch.empty(num_groups, num_taps))
        self.skip_D: nn.Parameter | None
        self.register_parameter("skip_D", nn.Parameter(torch.empty(config.width)) if skip else None)

    def filters(self) -> FIRFilters:
        """As in `HyenaOperator`."""
        return FIRFilters(self.featurizer_taps_CK, self.taps_GK, self.skip_D)

    def new_inner(self, batch_size: int, like: Tensor) -> Tensor:
        """A ring buffer of samples."""
        sizes = (batch_size, self.taps_GK.shape[1], self.featurizer_taps_CK.shape[0] // 3)
        return like.new_zeros(sizes)

    def start(self, batch_size: int, like: Tensor) -> HyenaPast:
        """As in `HyenaOperator`; a past has one sample less than a ring."""
        past = super().start(batch_size, like)
        return HyenaPast(past.featurizer_BPC, past.inner[:, 1:])


class HyenaModal(HyenaOperator):
    """A sum of decaying exponentials per channel, and a skip weight per channel."""

    convolve = staticmethod(hyena_modal)
    convolve_step = staticmethod(hyena_modal_step)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.log_poles_DS = nn.Parameter(torch.empty(config.width, config.num_modes))
        self.residues_DS = nn.Parameter(torch.empty(config.width, config.num_modes))
        self.skip_D = nn.Parameter(torch.empty(config.width))

    def filters(self) -> ModalFilters:
        """As in `HyenaOperator`."""
        return ModalFilters(
            self.featurizer_taps_CK, self.log_poles_DS, self.residues_DS, self.skip_D
        )

    def new_inner(self, batch_size: int, like: Tensor) -> Tensor:
        """States with channels contiguous in memory."""
        sizes = (batch_size, *self.log_poles_DS.shape[::-1])
        return like.new_zeros(sizes, dtype=accumulation_dtype(like)).transpose(1, 2)


class Hyena(Mixer):
    """A Hyena mixer: projection to 3D channels, operator, projection back.

    Attributes:
        slowdown: Time of the fused operator relative to a copy of the bytes it must move, for
            forward, and for forward and backward together. Source: tests/benchmarks/results/
            kernels_log.md, D = 4,096 and L = 8,192 on an H200.
    """

    float8_record = "projections._extra_state"
    operator: HyenaOperator
    slowdown: ClassVar[tuple[float, float]]

    def forward(self, x_BLD: Tensor, past: HyenaPast | None) -> tuple[Tensor, HyenaPast]:
        """As in `Mixer`."""
        y_BLD, past = self.operator(self.project_in(x_BLD), past)
        return self.project_out(y_BLD), past

    def step(self, z_B1C: Tensor, slots: HyenaSlots) -> Tensor:
        """As in `Mixer`."""
        return self.operator.step(z_B1C, slots)

    def new_pool(self) -> HyenaPool:
        """As in `Mixer`."""
        return HyenaPool()

    def read_rows(self, x_BLD: Tensor, pool: HyenaPool, launch: Launch) -> Tensor:
        """As in `Mixer`."""
        z_BLC = self.project_in(x_BLD)
        past = pool.gather(launch.prefix_states_B, self.operator.start(0, z_BLC))
        y_BLD, past = self.operator(z_BLC, past)
        pool.store(launch.new_states_N, past)
        projected_BLD: Tensor = self.project_out(y_BLD)
        return projected_BLD

    def new_slots(
        self, batch_size: int, capacity: int, lengths_B: Tensor, *, float8: bool = False
    ) -> HyenaSlots:
        """As in `Mixer`; the state does not grow with the capacity."""
        del capacity, float8
        # The bias has the dtype of the activations, even if weights are in FP8.
        like = self.project_out.bias
        channels, num_taps = self.operator.featurizer_taps_CK.shape
        ring_BFC = like.new_zeros(batch_size, num_taps, channels)
        inner = self.operator.new_inner(batch_size, like)
        return HyenaSlots(ring_BFC, inner, lengths_B, isinstance(self.operator, HyenaModal))

    def wrap_operator(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """As in `Mixer`."""
        self.operator.convolve = wrap(self.operator.convolve)

    @classmethod
    def initial(cls, config: ModelConfig) -> dict[str, Draw]:
        """As in `Mixer`; featurizer taps U(-b, b) with b = sqrt(1 / featurizer taps)."""
        bound = math.sqrt(1 / config.num_featurizer_taps)
        return {**super().initial(config), "operator.featurizer_taps_CK": uniform(-bound, bound)}

    @classmethod
    def state_bytes(cls, config: ModelConfig, length: int, element: int) -> int:
        """As in `Mixer`: the past samples of the featurizer, whatever the length."""
        del length
        return (config.num_featurizer_taps - 1) * 3 * config.width * element

    @classmethod
    def flops(cls, config: ModelConfig, length: int) -> int:
        """As in `Mixer`: 2 F 3D for the featurizer, 2 D for two gates, and the convolution."""
        del length
        gates = 2
        multiply_adds = 3 * config.num_featurizer_taps + cls.inner_multiply_adds(config)
        return config.width * (2 * multiply_adds + gates)

    @classmethod
    def inner_multiply_adds(cls, config: ModelConfig) -> int:
        """Multiply-adds of the inner convolution and the skip, per token and channel."""
        raise NotImplementedError

    @classmethod
    def moved_bytes(cls, config: ModelConfig, element: int, recomputed: int) -> float:
        """As in `Mixer`, times the measured slowdowns."""
        forward, both = cls.slowdown
        return (11 * both + 4 * forward * recomputed) * config.width * element

    @classmethod
    def released_tensors(cls, config: ModelConfig) -> Iterator[Entry]:
        """As in `Mixer`."""
        width = config.width
        yield Entry(
            "project_in.weight",
            "projections.weight",
            lambda rows: by_part(rows, width),
            lambda rows: by_owner(rows, width),
        )
        yield Entry(
            "operator.featurizer_taps_CK",
            "filter.short_filter_weight",
            lambda taps: by_part(newest_first(taps), width),
            lambda taps: newest_last(by_owner(taps, width)),
        )
        yield Entry("project_out.weight", "out_filter_dense.weight")
        yield Entry("project_out.bias", "out_filter_dense.bias")


def _check_groups(num_groups: int, scheme: str, count: int) -> None:
    if num_groups < _num_parts(scheme, count):
        raise ValueError(
            f'fir = "{scheme}": {num_groups} filter groups for {_num_parts(scheme, count)} parts; '
            'use "overlapped"'
        )


class HyenaSE(Hyena, letter="S"):
    """Short explicit filter: a few taps, each a parameter."""

    title = "Hyena-SE"
    colour = "green"
    released_indices = "hcs_layer_idxs"
    scheme = "fir"
    exchanges = FIR_EXCHANGES
    slowdown = (1.0, 2.05)

    def __init__(self, config: ModelConfig) -> None:
        groups, taps = config.num_short_filter_groups, config.num_short_taps
        super().__init__(config, HyenaFIR(config, groups, taps, skip=False))

    @classmethod
    def initial(cls, config: ModelConfig) -> dict[str, Draw]:
        """As in `Hyena`; taps U(-b, b) with b = sqrt(1 / featurizer taps)."""
        bound = math.sqrt(1 / config.num_featurizer_taps)
        return {**super().initial(config), "operator.taps_GK": uniform(-bound, bound)}

    @classmethod
    def state_bytes(cls, config: ModelConfig, length: int, element: int) -> int:
        """As in `Hyena`, plus the past samples of the filter."""
        inner = config.width * (config.num_short_taps - 1) * element
        return super().state_bytes(config, length, element) + inner

    @classmethod
    def inner_multiply_adds(cls, config: ModelConfig) -> int:
        """As in `Hyena`: K."""
        return config.num_short_taps

    @classmethod
    def check_exchange(cls, config: ModelConfig, scheme: str, count: int) -> None:
        """As in `Mixer`."""
        _check_groups(config.num_short_filter_groups, scheme, count)

    @classmethod
    def released_tensors(cls, config: ModelConfig) -> Iterator[Entry]:
        """As in `Mixer`."""
        yield from super().released_tensors(config)
        yield Entry("operator.taps_GK", "filter.h", newest_first, newest_last)


class HyenaMR(Hyena, letter="M"):
    """Medium regularized filter: about a hundred taps under a decay window, and a skip."""

    title = "Hyena-MR"
    colour = "cyan"
    published_free = (*Hyena.published_free, "operator.taps_GK")
    released_indices = "hcm_layer_idxs"
    scheme = "fir"
    exchanges = FIR_EXCHANGES
    slowdown = (1.44, 3.1)

    operator: HyenaFIR

    def __init__(self, config: ModelConfig) -> None:
        groups, taps = config.num_medium_filter_groups, config.num_medium_taps
        super().__init__(config, HyenaFIR(config, groups, taps, skip=True))

    def training_forms(self, context: int, *, published: bool) -> dict[str, nn.Module]:  # noqa: ARG002 - the same for both
        """As in `Mixer`: taps under a decay window."""
        taps_GK = self.operator.taps_GK
        groups, taps = taps_GK.shape
        return {"operator.taps_GK": DecayWindow(groups, taps, context).to(taps_GK.device)}

    @classmethod
    def initial(cls, config: ModelConfig) -> dict[str, Draw]:
        """As in `Hyena`; taps 1e-5 * N(0, 1) / sqrt(context), skip 0."""
        return {
            **super().initial(config),
            "operator.taps_GK": normal(1e-5 / math.sqrt(config.original_context)),
            "operator.skip_D": constant(0),
        }

    @classmethod
    def state_bytes(cls, config: ModelConfig, length: int, element: int) -> int:
        """As in `Hyena`, plus the past samples of the filter."""
        inner = config.width * (config.num_medium_taps - 1) * element
        return super().state_bytes(config, length, element) + inner

    @classmethod
    def inner_multiply_adds(cls, config: ModelConfig) -> int:
        """As in `Hyena`: K, and 1 for the skip."""
        return config.num_medium_taps + 1

    @classmethod
    def check_exchange(cls, config: ModelConfig, scheme: str, count: int) -> None:
        """As in `Mixer`."""
        _check_groups(config.num_medium_filter_groups, scheme, count)

    @classmethod
    def released_tensors(cls, config: ModelConfig) -> Iterator[Entry]:
        """As in `Mixer`; the taps of MR are stored newest first, as ours."""
        yield from super().released_tensors(config)
        yield Entry(
            "operator.taps_GK", "filter.h", lambda h: h.squeeze(1), lambda h: h.unsqueeze(1)
        )
        yield Entry("operator.skip_D", "filter.D")


def _draw_log_poles(value: Tensor, generator: Generator) -> None:
    value.uniform_(0.01, 0.1, generator=generator).div_(-math.e)


class HyenaLI(Hyena, letter="L"):
    """Long implicit filter: a sum of decaying exponentials per channel, over the whole past."""

    title = "Hyena-LI"
    colour = "blue"
    fp32_tensors = ("operator.log_poles_DS", "operator.residues_DS")
    released_indices = "hcl_layer_idxs"
    scheme = "modal"
    exchanges = MODAL_EXCHANGES
    slowdown = (2.3, 3.5)

    operator: HyenaModal

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, HyenaModal(config))

    def training_forms(self, context: int, *, published: bool) -> dict[str, nn.Module]:  # noqa: ARG002 - poles have no decay window
        """As in `Mixer`: poles that stay negative."""
        poles = PublishedPoles() if published else DecayingPoles(self.operator.log_poles_DS)
        return {"operator.log_poles_DS": poles}

    @classmethod
    def initial(cls, config: ModelConfig) -> dict[str, Draw]:
        """As in `Hyena`; poles -U(0.01, 0.1) / e, residues 0.1 * N(0, 1) / sqrt(modes), skip 0."""
        return {
            **super().initial(config),
            "operator.log_poles_DS": _draw_log_poles,
            "operator.residues_DS": normal(0.1 / math.sqrt(config.num_modes)),
            "operator.skip_D": constant(0),
        }

    @classmethod
    def state_bytes(cls, config: ModelConfig, length: int, element: int) -> int:
        """As in `Hyena`, plus the fp32 states of all modes."""
        return super().state_bytes(config, length, element) + 4 * config.width * config.num_modes

    @classmethod
    def inner_multiply_adds(cls, config: ModelConfig) -> int:
        """As in `Hyena`: 2 per mode, for its recurrence and its output, and 1 for the skip."""
        return 2 * config.num_modes + 1

    @classmethod
    def saved_bytes(cls, config: ModelConfig, element: int) -> float:
        """As in `Mixer`, plus the fp32 state before each segment of the scan."""
        states = 4 * config.num_modes * config.width / modal_segment(config.width)
        return super().saved_bytes(config, element) + states

    @classmethod
    def check_exchange(cls, config: ModelConfig, scheme: str, count: int) -> None:
        """As in `Mixer`."""
        if config.width < _num_parts(scheme, count):
            raise ValueError(
                f'modal = "{scheme}": {config.width} channels for {_num_parts(scheme, count)} '
                'parts; use "states"'
            )
        if scheme == "fft" and count & (count - 1):
            raise ValueError(f'modal = "fft": {count} ranks are not a power of two; use "states"')

    @classmethod
    def released_tensors(cls, config: ModelConfig) -> Iterator[Entry]:
        """As in `Mixer`."""
        yield from super().released_tensors(config)
        yield Entry(
            "operator.log_poles_DS",
            "filter.log_poles",
            lambda p: p.squeeze(2),
            lambda p: p.unsqueeze(2),
        )
        yield Entry("operator.residues_DS", "filter.residues")
        yield Entry("operator.skip_D", "filter.D")
