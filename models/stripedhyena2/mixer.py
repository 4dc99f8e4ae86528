"""The base class of all mixers (token-mixing operators), and their registry by letter.

B batch, L new tokens, D channels, C = 3D channels.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from hyenakernels.precision import accumulation_dtype
from stripedhyena2.cache import Launch, Past, Pool, Slots
from stripedhyena2.initial import Draw, constant, normal
from stripedhyena2.layout import Entry

if TYPE_CHECKING:  # `config` imports this module to look up letters
    from stripedhyena2.config import ModelConfig

MIXERS: dict[str, type["Mixer"]] = {}  # every operator by its letter; its class registers itself


def folded_name(name: str) -> str:
    """The name of a parameter in the folded (inference) form, whatever form it trains in."""
    path, marker, rest = name.partition(".parametrizations.")
    return f"{path}.{rest.partition('.')[0]}" if marker else name


class Mixer(nn.Module):
    """Mixes the tokens in a block: a projection to 3D channels, an operator, a projection back.

    A subclass with a letter is an operator that can be used in `ModelConfig.stripes`:

        class HyenaSE(Hyena, letter="S"): ...

    It defines `forward` and `step`, and `new_slots` if it has state; `new_pool` and `read_rows`
    make it fast when many sequences are read in one batch. It also has every fact about itself that
    training, planning, checkpoints and printing need; the defaults here are for an operator without
    state and without parameters between the projections. Names of tensors are relative to the
    mixer. `element` is the size in bytes of a number in the dtype of the activations.

    Attributes:
        letter: Its upper-case letter in `ModelConfig.stripes`.
        title: Its name in messages.
        colour: The colour of its letter on a terminal, as rich names it.
        fp32_tensors: Tensors that stay in fp32 or better whatever the dtype of the model, also in
            their training form: `to`, `bfloat16` and the like do not lower their precision.
        decaying: Parameters that weight decay applies to.
        published_free: Parameters without weight decay in the published training runs.
        released_indices: The key of the released yml that lists its blocks; None if released models
            cannot have it.
        float8_record: The name, within a block of a released file, of the FP8 scales that its input
            projection was trained with; None if the projection ran in bf16.
        is_quadratic: Whether it is bound by FLOPs that grow quadratically with the length; other
            operators are bound by the bytes they move.
        scheme: The field of `parallelize.Schemes` that selects its exchange.
        exchanges: Its operator for context parallelism, by the name of the scheme.
        first_position: Position of the first token of sequences without a past; not 0 on ranks that
            hold a later part of a sequence.
        keeps_fp32: Whether parameters among `fp32_tensors` keep their precision when the module is
            cast. A training engine with fp32 master weights of all parameters sets it to False.
    """

    letter: ClassVar[str]
    title: ClassVar[str] = "custom operator"
    colour: ClassVar[str] = "white"
    fp32_tensors: ClassVar[tuple[str, ...]] = ()
    decaying: ClassVar[tuple[str, ...]] = ("project_in.weight", "project_out.weight")
    published_free: ClassVar[tuple[str, ...]] = ("project_out.bias",)
    released_indices: ClassVar[str | None] = None
    float8_record: ClassVar[str | None] = None
    is_quadratic: ClassVar[bool] = False
    scheme: ClassVar[str | None] = None
    exchanges: ClassVar[Mapping[str, Callable[..., Any]]] = {}

    def __init_subclass__(cls, *, letter: str | None = None) -> None:
        super().__init_subclass__()
        if letter is None:  # a base class of several operators, or a parametrized class
            return
        if letter in MIXERS:
            raise ValueError(f"the letter {letter!r} already stands for {MIXERS[letter].title}")
        cls.letter = letter
        MIXERS[letter] = cls

    def __init__(self, config: "ModelConfig", operator: nn.Module | None = None) -> None:
        super().__init__()
        self.first_position = 0
        self.keeps_fp32 = True
        self.project_in = nn.Linear(config.width, 3 * config.width, bias=False)
        if operator is not None:  # between the two, since initial values are drawn in this order
            self.operator = operator
        self.project_out = nn.Linear(config.width, config.width)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Mixer":
        """Called by `to`, `bfloat16`, `cuda` and the like, for which torch has no public hook."""
        parameters = self.named_parameters() if self.keeps_fp32 else ()
        named = [*parameters, *self.named_buffers()]
        wide = [tensor for name, tensor in named if folded_name(name) in self.fp32_tensors]
        wide += [tensor.grad for tensor in wide if tensor.grad is not None]

        def convert(x: Tensor) -> Tensor:
            y = fn(x)
            dtype = accumulation_dtype(y) if any(x is tensor for tensor in wide) else y.dtype
            return y if y.dtype == dtype else x.to(y.device, dtype)

        super()._apply(convert, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, x_BLD: Tensor, past: Any) -> tuple[Tensor, Any]:
        """Mix along L; returns the shape of the input, and the past for the tokens that follow.

        Args:
            x_BLD: New tokens.
            past: The past returned for the previous tokens; None at the start of a sequence.
        """
        raise NotImplementedError

    def step(self, z_B1C: Tensor, slots: Any) -> Tensor:
        """One decoding step: mix the projections of one token of each sequence, [B, 1, D].

        Args:
            z_B1C: The output of `project_in`.
            slots: From `new_slots`; updated in place.
        """
        raise NotImplementedError

    def new_past(
        self, batch_size: int, num_tokens: int, *, on_host: bool = False, float8: bool = False
    ) -> Past | None:
        """A past preallocated for `num_tokens` tokens if it grows with the sequence, else None.

        Args:
            batch_size: Number of sequences.
            num_tokens: Tokens of each sequence.
            on_host: Use pinned host memory.
            float8: Store keys and values in FP8.
        """
        del batch_size, num_tokens, on_host, float8
        return None

    def check_capacity(self, past: Any, num_tokens: int) -> None:
        """Check the capacity of a preallocated past, before any block reads the new tokens.

        Raises:
            InputError: The tokens seen and the new ones exceed it.
        """

    def new_pool(self) -> Any:
        """An empty pool for the pasts of many prefixes."""
        return Pool()

    def read_rows(self, x_BLD: Tensor, pool: Any, launch: Launch) -> Tensor:
        """Mix a batch of sequences along L, each after a prefix of its own.

        By default, one sequence is read after the other.

        Args:
            x_BLD: New tokens.
            pool: From `new_pool`; new states are stored at the indices that the launch names.
            launch: The prefixes, on the device of the tokens.

        Returns:
            A tensor with the shape of the input.
        """
        targets = [] if launch.new_states_N is None else launch.new_states_N.tolist()
        rows = []
        for row, source in enumerate(launch.prefix_states_B.tolist()):
            y_1LD, past = self(x_BLD[row : row + 1], pool.pasts.get(source))
            rows.append(y_1LD)
            if row < len(targets):
                pool.pasts[targets[row]] = past
        return torch.cat(rows)

    def new_slots(
        self, batch_size: int, capacity: int, lengths_B: Tensor, *, float8: bool = False
    ) -> Slots:
        """State for sequences that grow by one token per step, before their first token.

        Args:
            batch_size: Number of sequences.
            capacity: The maximum number of tokens of a sequence.
            lengths_B: Tokens seen by each sequence, int64; the caller increments them after each
                step.
            float8: Store keys and values in FP8.
        """
        del batch_size, capacity, lengths_B, float8
        return Slots()

    def training_forms(self, context: int, *, published: bool) -> dict[str, nn.Module]:
        """Parametrizations of its parameters for training, by the names of the parameters.

        Args:
            context: Positions of the windows of the first training.
            published: Use the parametrizations of the published training runs.
        """
        del context, published
        return {}

    def wrap_operator(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Replace the function that mixes tokens by `wrap` of it; for mixers with `exchanges`."""
        raise NotImplementedError

    @classmethod
    def initial(cls, config: "ModelConfig") -> dict[str, Draw]:
        """The initial distribution of each of its parameters, by name.

        Projections N(0, 2 / 5D); output projections N(0, (2 / (depth * sqrt(D)))^2); biases 0.
        """
        return {
            "project_in.weight": normal(math.sqrt(2 / (5 * config.width))),
            "project_out.weight": normal(2 / (config.depth * math.sqrt(config.width))),
            "project_out.bias": constant(0),
        }

    @classmethod
    def buffers_of(cls, config: "ModelConfig") -> dict[str, Tensor]:
        """The buffers that are computed from the config, by name."""
        del config
        return {}

    @classmethod
    def state_bytes(cls, config: "ModelConfig", length: int, element: int) -> int:
        """Bytes of the past of one sequence of `length` tokens, with `element` bytes per number."""
        del config, length, element
        return 0

    @classmethod
    def flops(cls, config: "ModelConfig", length: int) -> int:
        """FLOPs between the projections per token, in a window of `length`; a multiply-add is 2."""
        del config, length
        return 0

    @classmethod
    def saved_bytes(cls, config: "ModelConfig", element: int) -> float:
        """Bytes per token saved for the backward pass, without the mixer's input.

        By default the outputs of the input projection (3D) and of the operator (D).
        """
        return 4 * element * config.width

    @classmethod
    def moved_bytes(cls, config: "ModelConfig", element: int, recomputed: int) -> float:
        """Bytes per token that a training step reads and writes between the projections.

        By default those of copying the operator's inputs and outputs: 4D numbers forward, 11D
        forward and backward.

        Args:
            config: Shape of the model.
            element: Bytes of a number.
            recomputed: The number of recomputed forward passes.
        """
        return (11 + 4 * recomputed) * config.width * element

    @classmethod
    def sent_numbers(cls, config: "ModelConfig", scheme: str, count: int) -> float:
        """Numbers per token that a rank sends in a pass, if `count` ranks share a sequence."""
        del config, scheme, count
        return 0

    @classmethod
    def check_exchange(cls, config: "ModelConfig", scheme: str, count: int) -> None:
        """Refuse an exchange that this shape does not support.

        Args:
            config: Shape of the model.
            scheme: A key of `exchanges`; empty for an operator without them.
            count: The number of ranks that share a sequence.

        Raises:
            ValueError: The message begins with a key of the recipe's [parallel].
        """
        del config
        if count > 1 and scheme not in cls.exchanges:
            raise ValueError(
                f"context = {count}: {cls.title} ({cls.letter}) cannot compute on a part of a "
                "sequence; use 1"
            )

    @classmethod
    def released_tensors(cls, config: "ModelConfig") -> Iterable[Entry]:
        """Its tensors in the released layout: ours relative to the mixer, theirs to the block."""
        del config
        return ()
