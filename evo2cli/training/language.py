"""The pretraining objective: next-base prediction on windows of documents.

B windows, T = L + 1 bytes per window, L predictions, V vocabulary.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from evo2cli.data.loader import WindowLoader, Windows
from evo2cli.errors import UntrustedNumericsError
from evo2cli.training.engine import Engine
from evo2cli.training.loss import read_windows, target_weights, weighted_loss
from evo2cli.training.objective import WAY_OUT, Batch, Objective
from evo2cli.training.plan.flops import flops_per_token
from evo2cli.training.recipe import Recipe

NATS_PER_BIT = math.log(2)


class NextBase(Objective):
    """Next-base prediction, i.e. causal language modelling.

    Args:
        recipe: The recipe.
        engine: The model in training.
        loader: Loads the training windows.
        valid: The validation windows of each held-out set; may be empty.

    Attributes:
        valid: The validation windows.
    """

    def __init__(
        self, recipe: Recipe, engine: Engine, loader: WindowLoader, valid: Mapping[str, Windows]
    ) -> None:
        self._recipe, self._engine, self._ranks = recipe, engine, engine.ranks
        self._loader, self.valid = loader, valid
        data = recipe.data
        self._weight_of_byte = target_weights(
            lowercase=data.lowercase_weight, end_of_document=data.end_of_document_weight
        )
        self.flops_per_token = flops_per_token(engine.trunk.config, recipe.batch.length).training

    def batch(self, step: int) -> Batch:
        """As `Objective`."""
        rows = self._ranks.shard(self._recipe.batch.sequences)
        return self._read(self._loader.windows(step, rows), self._weight_of_byte)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """As `Objective`: cross-entropies in nats."""
        return weighted_loss(outputs, batch.targets, batch.weights)

    def describe(self, loss: float | None) -> dict[str, Any]:
        """As `Objective`: loss in nats, and bits per base."""
        return {"loss": loss, "bits": None if loss is None else loss / NATS_PER_BIT}

    def validate(self) -> dict[str, Any]:
        """Bits per base on the validation windows; A, C, G and T have weight 1 in either case.

        Returns:
            valid_bits over all held-out sets, and valid_bits_of each set if there are several;
            empty if there are none.

        Raises:
            UntrustedNumericsError: The loss is not finite.
        """
        totals = self._ranks.sum(self._sums())
        if not totals[:, 1].any():
            return {}
        overall, *by_set = torch.cat([totals.sum(dim=0, keepdim=True), totals]).unbind()
        bits = [
            (nats / weight).item() / NATS_PER_BIT if weight else None
            for nats, weight in (overall, *by_set)
        ]
        if not all(value is None or math.isfinite(value) for value in bits):
            raise UntrustedNumericsError(f"validation: the loss is not finite; {WAY_OUT}")
        metrics: dict[str, Any] = {"valid_bits": bits[0]}
        if len(by_set) > 1:
            metrics["valid_bits_of"] = dict(zip(self.valid, bits[1:], strict=True))
        return metrics

    def _sums(self) -> Tensor:
        """Nats and weight, summed over this rank's shard of each held-out set, [sets, 2]."""
        weight_of_byte = target_weights(lowercase=1, end_of_document=0)
        micro = self._recipe.micro(self._ranks.world)
        sums = torch.zeros(len(self.valid), 2, dtype=torch.float64, device=self._ranks.device)
        for row, windows in zip(sums, self.valid.values(), strict=True):
            shard = windows.shard(self._ranks.data_parallel_rank, self._ranks.data_parallel_size)
            for start in range(0, -(-len(windows) // self._ranks.data_parallel_size), micro):
                rows = shard[start : start + micro]
                # A rank that has run out of windows still runs the model, because under ZeRO 3 the
                # other ranks need its shard of the weights.
                batch = self._read(rows or windows[:1], weight_of_byte)
                weights = batch.weights if len(rows) else torch.zeros_like(batch.weights)
                logits = self._engine.forward(*batch.inputs)
                row[0] += weighted_loss(logits, batch.targets, weights)
                row[1] += weights.sum()
        return sums

    def _read(self, windows: Windows, weight_of_byte: Tensor) -> Batch:
        """A batch on the device, cut to the positions that this rank computes."""

        def to_device(array: Any) -> Tensor:
            tensor = torch.from_numpy(array)
            if self._ranks.device.type == "cuda":
                tensor = tensor.pin_memory()
            return tensor.to(self._ranks.device, non_blocking=True)

        ids_BT, targets_BT, weights_BT = read_windows(
            to_device(windows.tokens),
            to_device(windows.reverse),
            to_device(windows.masked),
            weight_of_byte,
        )
        positions = slice(*self._engine.positions)
        return Batch((ids_BT[:, positions],), targets_BT[:, positions], weights_BT[:, positions])
