"""Fine-tuning on labelled examples: frozen base, training, evaluation and report."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evo2cli import console
from evo2cli.finetune.baselines import (
    KMER,
    chance_baseline,
    kmer_baseline,
    position_baseline,
)
from evo2cli.finetune.common import Run
from evo2cli.finetune.data import DataSet
from evo2cli.finetune.folder import Description, open_head, open_tuned
from evo2cli.finetune.frozen import FrozenBase, trial_base
from evo2cli.finetune.heads import Reading
from evo2cli.finetune.metrics import measure, primary_metric
from evo2cli.finetune.predictions import fit_temperature, predictions
from evo2cli.finetune.tasks import Task
from evo2cli.finetune.training import ExampleSet, LabelObjective, TunedStart, class_weights
from evo2cli.options import DType, ModelOptions
from evo2cli.ranking import Estimate
from evo2cli.train.engines import devices_line, make_engine, num_parameters
from evo2cli.train.kernels import compile_kernels, take_step
from evo2cli.train.run import first_rank_first
from evo2cli.training.loop import Trainer
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from evo2cli.training.start import Start
from evo2cli.training.state import RunFolder


@dataclass
class LabelledRun(Run):
    """A fine-tuning run on labelled examples.

    Attributes:
        data: The examples.
    """

    data: DataSet

    def identity(self) -> dict[str, Any]:
        """As `Run`."""
        return {**super().identity(), "examples": self.data.digest}

    @cached_property
    def base(self) -> FrozenBase:
        """The frozen base before training."""
        config, device = self.stored.config, self.ranks.device
        return FrozenBase(self.recipe, self.data, config, self.base_fingerprint, device)

    def missing_bytes(self) -> int:
        """As `Run`: the size of the feature cache that is missing."""
        return self.base.missing_bytes

    def trainer(self, folder: RunFolder) -> Trainer:
        """As `Run`."""
        recipe, data, ranks, base = self.recipe, self.data, self.ranks, self.base
        tuning = recipe.tuning
        reading = replace(base.form, layer=f"blocks.{self.stored.config.depth - 1}")
        trial = TunedStart(
            self.stored.config,
            description=self._describe(reading, self.stored.config.width * reading.num_parts),
            device=str(ranks.device),
            from_features=base.is_cached,
        )
        compile_kernels(trial_block, recipe, trial, ranks)
        first_rank_first(ranks, lambda: (base.facts, base.features))
        base.release()
        self.description = self._describe(base.reading, base.features["train"].shape[1])
        features = base.features["train"]
        start = replace(self.start(), features=features, from_features=base.is_cached)
        engine = make_engine(recipe, start, ranks)
        train, valid = (
            ExampleSet(
                examples.letters,
                examples.labels,
                base.features_by_example(part) if base.is_cached and len(examples) else None,
            )
            for part, examples in (("train", data.train), ("valid", data.valid))
        )
        labels = data.labels
        weights = class_weights(train.labels, labels.task, len(labels.classes), tuning.weights)
        objective = LabelObjective(
            recipe, engine, self.description, train, valid, weights, self._measure
        )
        if ranks.is_first:
            console.say(
                f"{tuning.method}: training {num_parameters(engine):,} parameters on "
                f"{len(train):,} examples; the head reads {base.reading.layer}; on "
                f"{devices_line(engine)}"
            )
            chance = self._chance()
            console.say(f"chance level, predicting without the sequence: {chance}")
        metric = tuning.metric or primary_metric(labels.task)
        return Trainer(
            recipe,
            engine,
            objective,
            folder,
            self.best(engine, metric, higher_is_better=metric != "loss"),
        )

    def _chance(self) -> str:
        """Validation metrics of the chance baseline."""
        data = self.data
        guess = chance_baseline(data.examples, data.labels, data.split.train, data.split.valid)
        metrics = measure(data.labels, data.valid.labels, guess, bootstrap=0)
        shown = [f"{name} {e.value:.3f}" for name, e in metrics.items() if " " not in name]
        return ", ".join(shown) or "no metric is defined"

    def _describe(self, reading: Reading, num_features: int) -> Description:
        scale = None
        if self.data.labels.task is Task.REGRESS:
            values = np.asarray(self.data.train.labels, np.float64)
            deviation = np.maximum(values.std(axis=0), 1e-12)
            scale = (tuple(values.mean(axis=0).tolist()), tuple(deviation.tolist()))
        return replace(
            self.describe(self.data.labels),
            cut=self.recipe.tuning.cut,
            reading=reading,
            head=self.recipe.tuning.head,
            num_features=num_features,
            scale=scale,
        )

    def _measure(self, outputs: Sequence[Tensor]) -> dict[str, float]:
        """Metrics of outputs on the validation set."""
        predicted = predictions(self.description, outputs)
        metrics = measure(self.data.labels, self.data.valid.labels, predicted, bootstrap=0)
        return {name: estimate.value for name, estimate in metrics.items() if " " not in name}

    def report(self, trainer: Trainer) -> dict[str, Any]:
        """As `Run`: metrics on the test set, or on the validation set if there is no test set."""
        del trainer
        if not self.ranks.is_first:
            return {}
        data = self.data
        part = "test" if len(data.split.test) else "valid"
        outputs = self._best_outputs({"valid", part})
        if data.labels.task is not Task.REGRESS:
            temperature = self._temperature(outputs["valid"])
            self.description = replace(self.description, temperature=temperature)
        truth = getattr(data, part).labels
        predicted = predictions(self.description, outputs[part])
        results = {
            **self._baselines(part),
            "model": measure(data.labels, truth, predicted, seed=self.recipe.seed),
        }
        return {
            "task": str(data.labels.task),
            "classes": list(data.labels.classes),
            "examples": data.sizes,
            "split": data.split.explanation,
            "leaks": data.leaks.report,
            "base": {
                "model": self.recipe.init,
                "fingerprint": self.base_fingerprint,
                **self.base.facts,
            },
            "temperature": self.description.temperature,
            "part": part,
            "results": {
                row: {name: [e.value, e.low, e.high] for name, e in metrics.items()}
                for row, metrics in results.items()
            },
        }

    def _best_outputs(self, parts: set[str]) -> dict[str, list[Tensor]]:
        """Outputs of the best weights, loaded from disk, on the examples of some splits."""
        outputs: dict[str, list[Tensor]] = {}
        if self.base.is_cached:
            head = open_head(self.best_folder, self.description)
            for part in parts:
                outputs[part] = [head(features) for features in self.base.features_by_example(part)]
            return outputs
        exact = self.recipe.precision.compute == "fp32" and self.recipe.tuning.base == "fp32"
        dtype = DType.FP32 if exact else DType.AUTO
        options = ModelOptions(device=str(self.ranks.device), dtype=dtype)
        tuned = open_tuned(self.best_folder, options)
        for part in sorted(parts):
            letters = getattr(self.data, part).letters
            outputs[part] = []
            with console.progress(f"predict {part}", len(letters), "examples") as bar:
                for output in tuned.outputs(letters):
                    outputs[part].append(output)
                    bar.advance(1)
        return outputs

    def _temperature(self, outputs: Sequence[Tensor]) -> float:
        labels: Any = self.data.valid.labels
        task = self.data.labels.task
        if task is Task.TOKENS:
            targets = torch.from_numpy(np.concatenate(labels))
            return fit_temperature(task, torch.cat(list(outputs)), targets)
        return fit_temperature(task, torch.stack(list(outputs)), torch.from_numpy(labels))

    def _baselines(self, part: str) -> dict[str, dict[str, Estimate]]:
        """Metrics of the baselines on the same examples."""
        data, labels, seed = self.data, self.data.labels, self.recipe.seed
        rows = getattr(data.split, part)
        arguments = data.examples, labels, data.split.train, rows
        truth = getattr(data, part).labels
        baselines = {
            "chance": chance_baseline(*arguments),
            f"{KMER}-mers, linear": kmer_baseline(*arguments, seed=seed),
            "positions, linear": position_baseline(*arguments, seed=seed),
        }
        metrics = {
            name: measure(labels, truth, predicted, seed=seed)
            for name, predicted in baselines.items()
            if predicted is not None
        }
        truth, predicted = self.base.probe_predictions(part)
        if labels.task is Task.TOKENS:  # on a sample of the bases, as one sequence
            truth, predicted = [truth], [predicted]
        metrics["frozen probe"] = measure(labels, truth, predicted, seed=seed)
        return metrics


def trial_block(recipe: Recipe, start: Start, ranks: Ranks) -> None:
    """Trial run for `compile_kernels`: use the frozen base, and take a step unless it is cached."""
    assert isinstance(start, TunedStart)
    assert start.description.reading is not None
    trial_base(recipe, start.config, start.description.reading, ranks.device)
    if not start.from_features:
        take_step(recipe, start, ranks)
