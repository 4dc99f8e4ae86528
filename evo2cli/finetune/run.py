"""`evo2 finetune`, step by step; `evo2 train` runs the same from the recipe that it wrote."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evo2cli import __version__, console
from evo2cli.errors import UserError
from evo2cli.files import atomic_path, writing
from evo2cli.finetune.data import Data, read_data
from evo2cli.finetune.features import letters_of
from evo2cli.finetune.folder import FACTS, Description, read_facts
from evo2cli.finetune.frozen import FrozenBase
from evo2cli.finetune.metrics import measure, primary_metric
from evo2cli.finetune.options import FinetuneOptions
from evo2cli.finetune.predictions import Predictions, fit_temperature, predictions
from evo2cli.finetune.recipes import choose_method, write_recipe
from evo2cli.finetune.tasks import Task
from evo2cli.finetune.training import FromLabels, Rows, TunedStart, class_weights
from evo2cli.models import memory_explained
from evo2cli.train.run import (
    check_ranks,
    devices_line,
    first_rank_first,
    joined,
    make_engine,
    num_parameters,
)
from evo2cli.training.best import Best
from evo2cli.training.engine import Engine
from evo2cli.training.loop import Trainer
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Finetune, Recipe
from evo2cli.training.recipe_file import find_initial_weights
from evo2cli.training.state import RunFolder
from stripedhyena2.checkpoint import Checkpoint, read_checkpoint
from stripedhyena2.fingerprint import fingerprint

REPORT = "report.json"


def finetune(options: FinetuneOptions) -> dict[str, Any]:
    """Fine-tune a model on labelled sequences, resuming an earlier run with the same options.

    Returns:
        The report of `tune`.

    Raises:
        UserError: Data, model, options or output folder do not allow the run.
        UntrustedNumericsError: A loss or a gradient is not finite.
    """
    recipe, path, data = prepare(options)
    return tune(recipe, path, options.device, data)


def prepare(options: FinetuneOptions) -> tuple[Recipe, Path, Data]:
    """Read the data, and write the recipe of the run."""
    table: dict[str, Any] = {"sources": [{"path": str(options.data)}]}
    if options.valid is not None:
        table["valid"] = [str(options.valid)]
    draft = _draft(options, table)
    data = read_data(draft, options.length)
    context = read_checkpoint(options.model).config.context
    longest = min(data.longest, context)
    if options.length is None and longest < data.longest:
        data = read_data(draft, longest)
    method = choose_method(options, data.labels.task, len(data.split.train))
    recipe, path = write_recipe(
        options, data.labels.task, method, len(data.split.train), longest, table
    )
    return recipe, path, data


def _draft(options: FinetuneOptions, table: Mapping[str, Any]) -> Recipe:
    """A recipe that is complete enough to read the data by."""
    tuning = {
        "task": options.task and str(options.task),
        "labels": options.label_cols.split(",") if options.label_cols else [],
        "group": options.group_col,
        "test": options.test,
        "split": options.split and str(options.split),
        "features": options.features,
        "feature_type": options.feature_type,
        "cut": str(options.cut),
    }
    return Recipe.model_validate(
        {
            "init": options.model,
            "output": options.output,
            "seed": options.seed,
            "data": table,
            "batch": {"length": 1, "sequences": 1},
            "optimizer": {
                "steps": 1,
                "warmup_steps": 0,
                "learning_rate": 1e-4,
                "min_learning_rate": 0,
            },
            "finetune": tuning,
        }
    )


def tune(recipe: Recipe, path: Path, device: str, data: Data | None = None) -> dict[str, Any]:
    """Fine-tune by a recipe, resuming an earlier run of it.

    Args:
        recipe: A recipe with [finetune].
        path: Its file, for messages.
        device: As `--device`.
        data: Its examples, if they were read already.

    Returns:
        output, rank, finished; if it is finished also what report.json has: task, classes, sizes of
        the parts, base (its loss and the layer), steps, best (the step and the metric that chose
        it), temperature, seconds, memory_gib, and results, where each row has metrics on the test
        examples (without any, on those of validation): of baselines, of a probe on the frozen base,
        and of the model.

    Raises:
        UserError: The recipe, its data or the device do not allow the run.
        UntrustedNumericsError: A loss or a gradient is not finite.
    """
    tuning = recipe.finetune
    assert tuning is not None
    with joined(device) as ranks:
        check_ranks(recipe, path, ranks)
        ranks = ranks.sharing(recipe.parallel.context)
        if data is None:
            data = read_data(recipe, recipe.batch.length, quiet=not ranks.is_first)
        source = find_initial_weights(recipe, path)
        stored = read_checkpoint(source)
        return _Run(recipe, path, tuning, ranks, data, stored).run()


@dataclass
class _Run:
    """A run on examples with labels."""

    recipe: Recipe
    path: Path
    tuning: Finetune
    ranks: Ranks
    data: Data
    stored: Checkpoint

    def run(self) -> dict[str, Any]:
        recipe, ranks = self.recipe, self.ranks
        marks = fingerprint(self.stored.config, self.stored.tensors)
        identity = {
            "shape": asdict(self.stored.config),
            "base": marks,
            "examples": self.data.digest,
        }
        folder = RunFolder(recipe, identity, ranks)
        of_run = {"output": str(recipe.output), "rank": ranks.rank}
        if (folder.final / FACTS).is_file():
            if ranks.is_first:
                console.say(f"{recipe.output}: already finished; remove it to train again")
            return {**of_run, "finished": True, **_read_report(recipe.output)}
        self.base = FrozenBase(recipe, self.data, self.stored.config, marks, ranks.device)
        first_rank_first(ranks, lambda: (self.base.facts, self.base.features))
        self.description = self._describe(marks)
        self.base.release()
        started = time.perf_counter()
        trainer = self._trainer(folder)
        way_out = "lower batch.micro_sequences, or set memory.activation_checkpointing = 1"
        with memory_explained(f"{self.path}: {trainer.micro} examples on {ranks.device}", way_out):
            outcome = trainer.run()
        if not outcome.finished:
            if ranks.is_first:
                console.say(f"{recipe.output}: stopped; run the same command again to resume")
            return {**of_run, "finished": False}
        assert trainer.best is not None
        self._restore_best(trainer)
        report = self._report(trainer, outcome.step, time.perf_counter() - started)
        if ranks.is_first:
            self._finish(trainer.engine, report)
        ranks.wait()
        return {**of_run, "finished": True, **report}

    def _describe(self, marks: str) -> Description:
        tuning, base = self.tuning, self.base
        scale = None
        if self.data.labels.task is Task.REGRESS:
            values = np.asarray(self.data.train.labels, np.float64)
            deviation = np.maximum(values.std(axis=0), 1e-12)
            scale = (tuple(values.mean(axis=0).tolist()), tuple(deviation.tolist()))
        assert self.recipe.init is not None
        return Description(
            labels=self.data.labels,
            method=tuning.method,
            base=self.recipe.init,
            base_fingerprint=marks,
            length=self.recipe.batch.length,
            cut=tuning.cut,
            reading=base.how,
            head=tuning.head,
            num_features=base.features["train"].shape[1],
            scale=scale,
            adapters=tuning.adapters.lora if tuning.method == "lora" else None,
        )

    def _trainer(self, folder: RunFolder) -> Trainer:
        recipe, base, data = self.recipe, self.base, self.data
        self.start = TunedStart(
            self.stored.config,
            None if self.tuning.scratch else self.stored.tensors,
            description=self.description,
            device=self.ranks.device,
            statistics=base.features["train"],
            from_features=base.is_cached,
        )
        engine = make_engine(recipe, self.path, self.start, self.ranks)
        rows = {
            part: Rows(
                letters_of(examples),
                examples.labels,
                base.features.get(part) if base.is_cached else None,
            )
            for part, examples in (("train", data.train), ("valid", data.valid))
        }
        weights = class_weights(
            rows["train"].labels, data.labels.task, len(data.labels.classes), self.tuning.weights
        )
        objective = FromLabels(
            recipe, engine, self.description, rows["train"], rows["valid"], weights, self._measure
        )
        if self.ranks.is_first:
            console.say(
                f"{self.tuning.method}: {num_parameters(engine):,} parameters are trained on "
                f"{len(rows['train']):,} examples, {base.how.layer} is read, on "
                f"{devices_line(engine)}"
            )
        metric = self.tuning.metric or primary_metric(data.labels.task)
        best = Best(
            metric=f"valid_{metric}",
            larger=metric not in ("loss", "mse"),
            patience=self.tuning.patience,
            keep=lambda step: self._keep(engine, step),
        )
        return Trainer(recipe, engine, objective, folder, best)

    def _keep(self, engine: Engine, step: int) -> None:
        """Write the weights of the best step so far."""
        with engine.averaged():
            weights = engine.weights()
        if self.ranks.is_first:
            self._write(weights, self.recipe.output / "best", {"step": step})
        self.ranks.wait()

    def _write(self, weights: dict[str, Tensor], folder: Path, facts: dict[str, Any]) -> None:
        partial = folder.with_name(f".{folder.name}.part")
        with writing(folder):
            shutil.rmtree(partial, ignore_errors=True)
            self.start.write(weights, partial, facts)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)

    def _measure(self, outputs: Sequence[Tensor]) -> dict[str, float]:
        """The metrics of outputs for the validation examples."""
        truth = self.data.valid.labels
        found = measure(
            self.data.labels, truth, predictions(self.description, outputs), bootstrap=0
        )
        return {name: entry["value"] for name, entry in found.items() if "value" in entry}
