"""What an operator is: the base class of all mixers, and the letters that stand for them.

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

if TYPE_CHECKING:  # a config looks its letters up here
    from stripedhyena2.config import ModelConfig

MIXERS: dict[str, type["Mixer"]] = {}  # every operator by its letter, entered by its class


def folded_name(name: str) -> str:
    """The name of a parameter in the folded form, whatever form it trains in."""
    path, marker, rest = name.partition(".parametrizations.")
    return f"{path}.{rest.partition('.')[0]}" if marker else name


class Mixer(nn.Module):
    """What mixes the tokens of a block: a projection to 3D channels, an operator, and one back.

    A subclass with a letter is an operator that `ModelConfig.stripes` can spell:

        class HyenaSE(Hyena, letter="S"): ...

    It defines `forward` and `step`, and `new_slots` if it remembers anything; `new_pool` and
    `read_rows` make it fast where many sequences are read side by side. It also carries every
    fact about itself that training, planning, checkpoints and printing need; the defaults here
    suit an operator without a state and without parameters between the projections. Names of
    tensors are relative to the mixer. An element is a number in the dtype of the activations.

    Attributes:
        letter: In `ModelConfig.stripes`: one upper-case letter.
        title: Its name in messages.
        colour: Colour of its letter on a terminal, by rich's name.
        fp32_tensors: Tensors that stay in fp32 or better whatever the dtype of the model, in their
            training form too: `to`, `bfloat16` and the like do not narrow them.
        decaying: Parameters that weight decay applies to.
        published_free: Parameters that weight decay spared in the published training runs.
        released_indices: Key of the released yml that lists its blocks; None if released models
            cannot have it.
        float8_record: Name, within a block of a released file, of the FP8 scales that its input
            projection was trained with; None if that ran in bf16.
        is_quadratic: Whether its FLOPs grow with the length and determine its time; the time of
            others is that of the bytes they move.
        scheme: The field of `parallelize.Schemes` that names its exchange.
        exchanges: Its operator on a sequence that several ranks share, by the name of the scheme.
        first_position: Position of the first token of sequences without a past; not 0 on ranks that
            hold a later part of a sequence.
        keeps_fp32: Whether parameters among `fp32_tensors` stay wide when the module is cast. A
            training engine that keeps fp32 masters of all parameters sets it to False.
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
        if letter is None:  # a base of several operators, or a parametrized one
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
        if operator is not None:  # between the two: seeds draw parameters in this order
            self.operator = operator
        self.project_out = nn.Linear(config.width, config.width)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Mixer":
        """What `to`, `bfloat16`, `cuda` and the like call: torch has no public hook for these."""
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
        """Mix along L; returns the shape it was given, and the past of what follows.

        Args:
            x_BLD: New tokens.
            past: The past that it returned for the tokens before; None at the start.
        """
        raise NotImplementedError

    def step(self, z_B1C: Tensor, slots: Any) -> Tensor:
        """Mix the projections of one token of each sequence into [B, 1, D].

        Args:
            z_B1C: What `project_in` gives.
            slots: From `new_slots`; updated in place.
        """
        raise NotImplementedError

    def new_past(
        self, batch_size: int, num_tokens: int, *, on_host: bool = False, float8: bool = False
    ) -> Past | None:
        """A past with memory for `num_tokens` tokens, if its size grows with them; else None.

        Args:
            batch_size: Number of sequences.
            num_tokens: Tokens of each.
            on_host: Use pinned memory of the host.
            float8: Store keys and values in FP8.
        """
        del batch_size, num_tokens, on_host, float8
        return None

    def require_room(self, past: Any, num_tokens: int) -> None:
        """Refuse new tokens that a past has no memory for, before any block has read them.

        Raises:
            InputError: Names the numbers of tokens.
        """

    def new_pool(self) -> Any:
        """Memory for the pasts of many prefixes, before the first."""
        return Pool()

    def read_rows(self, x_BLD: Tensor, pool: Any, launch: Launch) -> Tensor:
        """Mix sequences side by side, each after a prefix of its own, along L.

        Operators that do not define it read one sequence after the other.

        Args:
            x_BLD: New tokens.
            pool: From `new_pool`; new states are stored where the launch wants them.
            launch: The prefixes, on the device of the tokens.

        Returns:
            The shape it was given.
        """
        targets = [] if launch.new_slots_N is None else launch.new_slots_N.tolist()
        rows = []
        for row, source in enumerate(launch.prefix_slots_B.tolist()):
            y_1LD, past = self(x_BLD[row : row + 1], pool.pasts.get(source))
            rows.append(y_1LD)
            if row < len(targets):
                pool.pasts[targets[row]] = past
        return torch.cat(rows)

    def new_slots(
        self, batch_size: int, capacity: int, lengths_B: Tensor, *, float8: bool = False
    ) -> Slots:
        """Memory for sequences that grow by a token a step, before their first token.

        Args:
            batch_size: Number of sequences.
            capacity: Tokens of the longest.
            lengths_B: Tokens seen by each, int64; their owner increments them after each step.
            float8: Store keys and values in FP8.
        """
        del batch_size, capacity, lengths_B, float8
        return Slots()

    def training_forms(self, context: int, *, published: bool) -> dict[str, nn.Module]:
        """Parametrizations that some of its parameters train in, by the names of the parameters.

        Args:
            context: Positions of the windows of the first training.
            published: Use the forms of the published training runs.
        """
        del context, published
        return {}

    def wrap_operator(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Replace the function that mixes tokens by `wrap` of it; for mixers with `exchanges`."""
        raise NotImplementedError

    @classmethod
    def initial(cls, config: "ModelConfig") -> dict[str, Draw]:
        """The distribution that each of its parameters starts from, by name.

        Projections N(0, 2 / 5D); output projections N(0, (2 / (depth * sqrt(D)))^2); biases 0.
        """
        return {
            "project_in.weight": normal(math.sqrt(2 / (5 * config.width))),
            "project_out.weight": normal(2 / (config.depth * math.sqrt(config.width))),
            "project_out.bias": constant(0),
        }

    @classmethod
    def buffers_of(cls, config: "ModelConfig") -> dict[str, Tensor]:
        """The buffers that are computed from the shape, by name."""
        del config
        return {}

    @classmethod
    def state_bytes(cls, config: "ModelConfig", length: int, element: int) -> int:
        """Bytes of the past of one sequence of `length` tokens, with `element` bytes per number."""
        del config, length, element
        return 0

    @classmethod
    def flops(cls, config: "ModelConfig", length: int) -> int:
        """FLOPs between the projections, a token of a window of `length`; a multiply-add is two."""
        del config, length
        return 0

    @classmethod
    def saved_bytes(cls, config: "ModelConfig", element: int) -> float:
        """Bytes per token of the tensors that the backward pass needs, without the mixer's input.

        By default the outputs of the input projection (3D) and of the operator (D).
        """
        return 4 * element * config.width

    @classmethod
    def moved_bytes(cls, config: "ModelConfig", element: int, recomputed: int) -> float:
        """Bytes per token that are read and written between the projections in a training step.

        By default those of copying the operator's inputs and outputs: 4D numbers forward, 11D
        forward and backward.

        Args:
            config: Shape of the model.
            element: Bytes of a number.
            recomputed: Forward passes beside the first.
        """
        return (11 + 4 * recomputed) * config.width * element

    @classmethod
    def sent_numbers(cls, config: "ModelConfig", scheme: str, count: int) -> float:
        """Numbers a token that a pass sends when `count` ranks share a sequence."""
        del config, scheme, count
        return 0

    @classmethod
    def check_exchange(cls, config: "ModelConfig", scheme: str, count: int) -> None:
        """Refuse an exchange that is impossible for this shape.

        Args:
            config: Shape of the model.
            scheme: A key of `exchanges`; empty for an operator without them.
            count: Ranks that share a sequence.

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
