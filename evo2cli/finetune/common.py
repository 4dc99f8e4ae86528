"""The base class of fine-tuning runs, on labels or next bases: run folder, best weights, report."""

import shutil
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from evo2cli import __version__, console
from evo2cli.files import writing
from evo2cli.finetune.folder import FACTS, Description, read_facts, write_facts
from evo2cli.finetune.recipes import write_recipe
from evo2cli.finetune.tasks import Labels
from evo2cli.finetune.training import TunedStart
from evo2cli.train.engines import num_parameters
from evo2cli.train.run import run_trainer
from evo2cli.training.best import Best
from evo2cli.training.engine import Engine
from evo2cli.training.loop import Trainer
from evo2cli.training.plan.estimate import check_shape
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from evo2cli.training.recipe_file import naming
from evo2cli.training.space import BEST
from evo2cli.training.state import RunFolder, open_run, stopped
from stripedhyena2.checkpoint import Checkpoint
from stripedhyena2.fingerprint import fingerprint

REPORT = "report.json"


@dataclass
class Run(ABC):
    """A fine-tuning run; every rank has one.

    Attributes:
        recipe: The recipe.
        ranks: The ranks.
        stored: Checkpoint of the base.
        writes_recipe: Whether to write the recipe file.
        description: Description of the fine-tuned model; set by `trainer`.
    """

    recipe: Recipe
    ranks: Ranks
    stored: Checkpoint
    writes_recipe: bool
    description: Description = field(init=False)

    @cached_property
    def base_fingerprint(self) -> str:
        """The fingerprint of the base."""
        return fingerprint(self.stored.config, self.stored.tensors)

    def identity(self) -> dict[str, Any]:
        """What must not change when the run is resumed, in addition to its recipe."""
        return {"shape": asdict(self.stored.config), "base": self.base_fingerprint}

    def missing_bytes(self) -> int:
        """Bytes that the run has yet to write in addition to checkpoints and models.

        Raises:
            UserError: The recipe names a layer or pool that does not exist.
        """
        return 0

    @abstractmethod
    def trainer(self, folder: RunFolder) -> Trainer:
        """Create the trainer; sets `description`."""

    def describe(self, labels: Labels) -> Description:
        """The description of the fine-tuned model, without a head."""
        recipe = self.recipe
        return Description(
            labels=labels,
            method=recipe.tuning.method,
            base=recipe.base,
            base_fingerprint=self.base_fingerprint,
            length=recipe.batch.length,
            adapters=recipe.tuning.adapters.lora if recipe.tuning.method == "lora" else None,
        )

    def start(self) -> TunedStart:
        """The initial model: the base with the adapters and head of `description`."""
        return TunedStart(
            self.stored.config,
            None if self.recipe.tuning.scratch else self.stored.tensors,
            description=self.description,
            device=str(self.ranks.device),
        )

    @abstractmethod
    def report(self, trainer: Trainer) -> dict[str, Any]:
        """The results of the run, on rank 0; all ranks call it together."""

    def run(self) -> dict[str, Any]:
        """Train, or resume; returns what `run.tune` describes."""
        recipe, ranks = self.recipe, self.ranks
        with naming(recipe.file):
            check_shape(recipe, self.stored.config)
        missing, identity = self.missing_bytes(), self.identity()
        with open_run(recipe, self.stored.config, identity, ranks, others=missing) as folder:
            return self._run_in(folder)

    def _run_in(self, folder: RunFolder) -> dict[str, Any]:
        recipe, ranks = self.recipe, self.ranks
        run_facts = {"output": str(recipe.output), "rank": ranks.rank}
        if (folder.final / FACTS).is_file():
            if ranks.is_first:
                console.say(f"{recipe.output}: already finished; remove it to train again")
            return {**run_facts, "finished": True, **read_facts(recipe.output / REPORT)}
        if self.writes_recipe and ranks.is_first:
            write_recipe(recipe)
        trainer = self.trainer(folder)
        outcome = run_trainer(trainer)
        if not outcome.finished:
            if ranks.is_first:
                console.say(f"{recipe.output}: {stopped(resumable=recipe.checkpoint.optimizer)}")
            return {**run_facts, "finished": False}
        best = trainer.best
        assert best is not None
        if best.value is None:  # without validation, keep the last weights
            best.step = outcome.step
            self.save_best(trainer.engine, outcome.step)
        report = self.report(trainer)
        if ranks.is_first:
            records = folder.records()
            memory = [record["memory_gib"] for record in records if "memory_gib" in record]
            report |= {
                "method": recipe.tuning.method,
                "parameters": num_parameters(trainer.engine),
                "steps": outcome.step,
                "best": {"step": best.step, "metric": best.metric, "value": best.value},
                "seconds": round(sum(record["seconds"] for record in records), 1),
                "memory_gib": max(memory, default=None),
            }
            self._finish(report)
        ranks.barrier()
        return {**run_facts, "finished": True, **report}

    def best(self, engine: Engine, metric: str, *, higher_is_better: bool) -> Best:
        """Track the best weights by a validation metric."""
        return Best(
            metric=f"valid_{metric}",
            higher_is_better=higher_is_better,
            patience=self.recipe.tuning.patience,
            save=lambda step: self.save_best(engine, step),
        )

    def save_best(self, engine: Engine, step: int) -> None:
        """Write the weights of a step as the best so far; all ranks call it together."""
        weights = engine.weights()
        if self.ranks.is_first:
            folder = self.best_folder
            partial = folder.with_name(".best.part")
            with writing(folder):
                shutil.rmtree(partial, ignore_errors=True)
                engine.start.write(weights, partial, {"step": step})
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
        self.ranks.barrier()

    @property
    def best_folder(self) -> Path:
        """The folder of the best weights so far."""
        return self.recipe.output / BEST

    def _finish(self, report: dict[str, Any]) -> None:
        """Turn the best weights into the final model, with its description and results."""
        output = self.recipe.output
        facts = {
            **self.description.facts,
            "trained_by": f"evo2cli {__version__}",
            "step": read_facts(self.best_folder / FACTS).get("step"),
            "settings": self.recipe.model_dump(mode="json", exclude={"output"}),
            "results": report["results"],
        }
        write_facts(self.best_folder / FACTS, facts)
        write_facts(output / REPORT, report)
        with writing(output / "final"):
            self.best_folder.rename(output / "final")
