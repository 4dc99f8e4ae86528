"""The initial model and the supervised objective of fine-tuning, for the training loop.

N examples, S sequences per example, L positions, F features, C outputs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from evo2cli.data.sampler import PooledSampler
from evo2cli.errors import UntrustedNumericsError, UserError
from evo2cli.finetune.folder import Description, read_inputs, write_tuned
from evo2cli.finetune.heads import SUMS, Pool, TaskModel, task_loss
from evo2cli.finetune.tasks import NO_LABEL, Task
from evo2cli.models import DTYPES
from evo2cli.options import DType
from evo2cli.training.engine import Engine
from evo2cli.training.objective import WAY_OUT, Batch, Objective
from evo2cli.training.recipe import Recipe
from evo2cli.training.start import Start
from stripedhyena2 import StripedHyena2, load
from stripedhyena2.adapters import add_adapters
from stripedhyena2.adapters.lora import target_names
from stripedhyena2.assembly import Adopt
from stripedhyena2.float8.frozen import freeze_float8
from stripedhyena2.layers import num_blocks


@dataclass(frozen=True)
class TunedStart(Start):
    """A base model with the adapters and the head that fine-tuning adds.

    Attributes:
        description: Description of the fine-tuned model.
        device: Device of this rank, for frozen weights.
        features: Features of the frozen base for training examples [N, F], to scale the input of
            the head; None for lm.
        from_features: Whether only the head is trained, on cached features.
        is_random: Whether frozen weights are random, too (to compile kernels).
    """

    description: Description = None  # type: ignore[assignment] # a field after those with defaults
    device: str = "cpu"
    features: Tensor | None = None
    from_features: bool = False
    is_random: bool = False

    def build(self, recipe: Recipe, adopt: Adopt) -> nn.Module:
        """As `Start`: the model with adapters, a head, or both."""
        description = self.description
        trunk = None
        if not self.from_features:
            trunk = (
                self._full(recipe, adopt) if description.method == "full" else self._frozen(recipe)
            )
            if description.reading is None:
                return trunk
        model = description.new_model(trunk)
        model.head.reset(recipe.seed)
        if self.features is not None:
            frozen = description.method == "head"
            model.head.scale_features(self.features, model.reading.num_parts, frozen=frozen)
        for part in (model.head, model.pooling):
            if part is not None:
                adopt(part)
        return model

    def _depth(self) -> int:
        """Number of blocks up to the layer that the head reads."""
        reading = self.description.reading
        return self.config.depth if reading is None else num_blocks(self.config, [reading.layer])

    def _full(self, recipe: Recipe, adopt: Adopt) -> StripedHyena2:
        trunk = super().build(recipe, adopt)
        assert isinstance(trunk, StripedHyena2)
        reading = self.description.reading
        if reading is not None:  # freeze what is above the layer that the head reads
            for block in trunk.blocks[self._depth() :]:
                block.requires_grad_(False)
            trunk.norm.requires_grad_(reading.layer == "norm")
        return trunk

    def _frozen(self, recipe: Recipe) -> StripedHyena2:
        base = recipe.tuning.base
        dtype = DTYPES[DType.FP32 if base == "fp32" else DType.BF16]
        if self.is_random:
            trunk = StripedHyena2.from_seed(self.config, recipe.seed).to(self.device, dtype).eval()
        else:
            trunk = load(recipe.base, device=self.device, dtype=dtype)
        trunk.requires_grad_(False)
        if base == "fp8":
            freeze_float8(trunk, target_names(self.config, "all"))
        adapters = self.description.adapters
        if adapters is not None:
            names = target_names(self.config, adapters.targets, self._depth())
            add_adapters(trunk, adapters, names, seed=recipe.seed)
        return trunk

    def of_block(self, kind: str) -> Self:
        """As `Start`; with adapters on every projection, so that all kernels run backward.

        With a frozen base there are two blocks, because the input of the first needs no gradient.
        """
        description = self.description
        depth = 1 if description.method == "full" else 2
        reading, adapters = description.reading, description.adapters
        description = replace(
            description,
            reading=None if reading is None else replace(reading, layer=f"blocks.{depth - 1}"),
            adapters=None if adapters is None else replace(adapters, targets="all"),
        )
        return replace(
            super().of_block(depth * kind),
            description=description,
            features=None,
            is_random=True,
        )

    def inputs(self, recipe: Recipe, device: torch.device) -> tuple[Tensor, ...]:
        """As `Start`; with a head, also the sequence lengths."""
        (ids_NL,) = super().inputs(recipe, device)
        reading = self.description.reading
        if reading is None:
            return (ids_NL,)
        ids_NSL = ids_NL[:, None].expand(-1, reading.num_sequences, -1)
        return ids_NSL, torch.full(ids_NSL.shape[:2], ids_NL.shape[1], device=device)

    def write(self, weights: dict[str, Tensor], folder: Path, provenance: dict[str, Any]) -> None:
        """As `Start`; with method full, parameters that were frozen are taken from the base."""
        description = self.description
        if description.method == "full":
            base = self.weights
            if base is None:
                base = StripedHyena2.from_seed(self.config, 0).state_dict()
            prefix = "" if description.reading is None else "trunk."
            weights = {**{f"{prefix}{name}": tensor for name, tensor in base.items()}, **weights}
        write_tuned(description, self.config, weights, folder, provenance)


@dataclass(frozen=True)
class ExampleSet:
    """Labelled examples in the form of the objective.

    Attributes:
        letters: The sequence of each example, or both of a pair.
        labels: As in `Examples`.
        features: Cached features of each example, [F] or for tokens [L, F]; None to compute them.
    """

    letters: list[tuple[bytes, ...]]
    labels: Any
    features: Sequence[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.letters)


class LabelObjective(Objective):
    """Supervised prediction of labels.

    Args:
        recipe: The recipe.
        engine: The model in training.
        description: Description of the fine-tuned model.
        train: The training examples.
        valid: The validation examples.
        class_weights: Weight of each class in the loss, [C]; None if all are 1.
        measure: Computes metrics from the outputs for the validation examples.
    """

    def __init__(
        self,
        recipe: Recipe,
        engine: Engine,
        description: Description,
        train: ExampleSet,
        valid: ExampleSet,
        class_weights: NDArray[np.float64] | None,
        measure: Callable[[list[Tensor]], dict[str, float]],
    ) -> None:
        self._recipe, self._engine, self._ranks = recipe, engine, engine.ranks
        self._description, self._train, self._valid = description, train, valid
        self._task = description.labels.task
        self._measure = measure
        self._sampler = PooledSampler([len(train)], recipe.seed)
        self._class_weights = None
        if class_weights is not None:
            self._class_weights = torch.from_numpy(class_weights).float()
        self._share_positions()

    def _share_positions(self) -> None:
        """Make pooling sum over the ranks of a context-parallel group."""
        ranks, reading = self._ranks, self._description.reading
        assert reading is not None
        self._length: int | None = None
        if ranks.context_parallel == 1 or self._train.features is not None:
            return
        self._length = self._recipe.batch.length
        model = self._engine.model
        pool = "tokens" if reading.by_token else Pool.read(reading.pool).kind
        if pool not in (*SUMS, "tokens") or (reading.by_token and reading.strand == "both"):
            raise UserError(
                f"parallel.context = {ranks.context_parallel}: the pool {reading.pool} on strand "
                f"{reading.strand} needs all positions; use mean, last or center:W, or strand fwd"
            )
        if isinstance(model, TaskModel) and model.pooling is not None:
            model.pooling.group, model.pooling.first = ranks.neighbours, self._engine.positions[0]

    def batch(self, step: int) -> Batch:
        """As `Objective`."""
        shard = self._ranks.shard(self._recipe.batch.sequences)
        samples = step * self._recipe.batch.sequences + np.arange(shard.start, shard.stop)
        rows = self._sampler.locate(samples).window
        return self._read(self._train, rows.tolist())

    def _read(self, examples: ExampleSet, rows: list[int]) -> Batch:
        """Collate rows into a batch on the device."""
        reading, device = self._description.reading, self._ranks.device
        assert reading is not None
        inputs: tuple[Tensor, ...]
        if examples.features is not None:
            # Features of tokens are padded at the end.
            features = pad_sequence([examples.features[row] for row in rows], batch_first=True)
            inputs, length = (features.to(device),), features.shape[1]
        else:
            ids_NSL, lengths_NS = read_inputs(
                [examples.letters[row] for row in rows], reading, self._length
            )
            length = ids_NSL.shape[2]
            positions = slice(*self._engine.positions) if self._length else slice(None)
            inputs = (ids_NSL[:, :, positions].to(device), lengths_NS.to(device))
        targets, weights = self._targets(examples, rows, length)
        return Batch(inputs, targets.to(device), weights.to(device))

    def _targets(self, examples: ExampleSet, rows: list[int], length: int) -> tuple[Tensor, Tensor]:
        """Targets and loss weights of rows."""
        task, weights, labels = self._task, self._class_weights, examples.labels
        if task is Task.TOKENS:
            targets = torch.full((len(rows), length), NO_LABEL)
            for target, row in zip(targets, rows, strict=True):
                target[: len(labels[row])] = torch.from_numpy(labels[row])
            if self._length:
                targets = targets[:, slice(*self._engine.positions)]
            ones = (targets >= 0).float()
            return targets, ones if weights is None else ones * weights[targets.clamp_min(0)]
        targets = torch.from_numpy(labels[rows])
        num_copies = self._ranks.context_parallel  # ranks that all predict the same label
        if task is Task.CLASSIFY:
            target_weights = torch.ones(len(rows)) if weights is None else weights[targets]
            return targets, target_weights / num_copies
        if task is Task.REGRESS:
            mean, deviation = (torch.tensor(row) for row in self._description.scale or ((0,), (1,)))
            targets = (targets - mean) / deviation
        target_weights = torch.ones_like(targets)
        if task is Task.MULTILABEL and weights is not None:
            target_weights = torch.where(targets > 0, weights, target_weights)
        return targets.float(), target_weights / num_copies

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """As `Objective`; see `task_loss`."""
        return task_loss(self._task, outputs, batch.targets, batch.weights)

    def validate(self) -> dict[str, Any]:
        """The loss and the metrics on the validation examples."""
        if not len(self._valid):
            return {}
        loss, outputs = self.outputs(self._valid)
        if not math.isfinite(loss):
            raise UntrustedNumericsError(f"validation: the loss is not finite; {WAY_OUT}")
        metrics = self._measure(outputs)
        return {"valid_loss": loss, **{f"valid_{name}": value for name, value in metrics.items()}}

    @torch.no_grad()
    def outputs(self, examples: ExampleSet) -> tuple[float, list[Tensor]]:
        """Mean loss of examples, and their outputs on the CPU: [C] each, or [L, C] for tokens.

        All ranks call it together, and get the same results.
        """
        ranks, micro = self._ranks, self._recipe.micro(self._ranks.world)
        length = self._length or max((len(g[0]) for g in examples.letters), default=0)
        shape = [len(examples), *([length] if self._task is Task.TOKENS else [])]
        gathered = torch.zeros(*shape, self._description.num_outputs, device=ranks.device)
        sums = torch.zeros(2, dtype=torch.float64, device=ranks.device)
        positions = slice(*self._engine.positions) if self._length else slice(None)
        # Each rank fills in its rows, and its positions of tokens; the sum over ranks is the whole.
        # The ranks of a context-parallel group have equal pooled outputs: only the first counts.
        is_owner = ranks.rank % ranks.context_parallel == 0
        all_rows = list(range(len(examples)))
        shard = all_rows[ranks.data_parallel_rank :: ranks.data_parallel_size]
        for start in range(0, -(-len(examples) // ranks.data_parallel_size), micro):
            rows = shard[start : start + micro]
            # A rank that has run out of examples still runs the model: collectives need all ranks.
            batch = self._read(examples, rows or all_rows[:1])
            outputs = self._engine.forward(*batch.inputs)
            if not rows:
                continue
            sums[0] += self.loss(outputs, batch)
            sums[1] += batch.weights.sum()
            if self._length and self._task is Task.TOKENS:
                gathered[rows, positions] = outputs
            elif is_owner and self._task is Task.TOKENS:
                gathered[rows, : outputs.shape[1]] = outputs
            elif is_owner:
                gathered[rows] = outputs
        loss, weight = ranks.sum(sums).tolist()
        all_outputs = ranks.sum(gathered).cpu()
        if self._task is not Task.TOKENS:
            return loss / max(weight, 1e-6), list(all_outputs)
        pairs = zip(all_outputs, examples.letters, strict=True)
        return loss / max(weight, 1e-6), [output[: len(group[0])] for output, group in pairs]


def class_weights(
    labels: Any, task: Task, num_classes: int, kind: str
) -> NDArray[np.float64] | None:
    """Class weights of the loss: "balanced" gives every class the same total weight.

    For multilabel tasks it is the weight of a positive label: negatives over positives.
    """
    if kind == "none" or task is Task.REGRESS:
        return None
    if task is Task.MULTILABEL:
        positives = labels.sum(axis=0)
        weights: NDArray[np.float64] = (len(labels) - positives) / np.maximum(positives, 1)
        return weights
    flat = np.concatenate(labels) if isinstance(labels, list) else labels
    counts = np.bincount(flat[flat >= 0], minlength=num_classes)
    balanced: NDArray[np.float64] = counts.sum() / (num_classes * np.maximum(counts, 1))
    return balanced
