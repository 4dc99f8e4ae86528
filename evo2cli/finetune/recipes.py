"""Make the recipe of a fine-tuning run from the options of `evo2 finetune` and its data."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from evo2cli.errors import UserError
from evo2cli.files import atomic_path, writing
from evo2cli.finetune.data import comma_list
from evo2cli.finetune.options import Base, FinetuneOptions, Method
from evo2cli.finetune.tasks import Task
from evo2cli.training.gpu_memory import training_device
from evo2cli.training.recipe import Count, Rate, Recipe, Table, Windows
from evo2cli.training.recipe_file import check_values

NAME = "recipe.toml"  # in the folder of the run
FEW_EXAMPLES = 1_000  # with fewer training examples, the default method is head
RATES = {Method.LORA: 5e-4, Method.FULL: 1.5e-5, Method.HEAD: 3e-3}  # default learning rates
LM_RATE = 1e-4  # of adapters for lm
HEAD_RATE = 1e-3  # of the head with method full


class _Batch(Table, extra="ignore"):
    length: Count | None = None
    sequences: Windows | None = None


class _Optimizer(Table, extra="ignore"):
    steps: Count | None = None
    learning_rate: Rate | None = None


class _Finetune(Table, extra="ignore"):
    method: Method | None = None


class _Given(Table, extra="ignore"):
    """Recipe keys that options set as well, and from which other keys are derived."""

    batch: _Batch = _Batch()
    optimizer: _Optimizer = _Optimizer()
    finetune: _Finetune = _Finetune()


def with_settings(options: FinetuneOptions, values: dict[str, Any], path: Path) -> FinetuneOptions:
    """Copy values from `--set` into the options, so that the keys derived from them follow.

    Args:
        options: Options of the command.
        values: Tables with the settings applied.
        path: The recipe, for messages.

    Raises:
        UserError: A setting is not valid, or another option contradicts it.
    """
    given = check_values(_Given, values, path)
    changes: dict[str, Any] = {
        "length": given.batch.length,
        "batch": given.batch.sequences,
        "steps": given.optimizer.steps,
        "lr": given.optimizer.learning_rate,
        "method": given.finetune.method,
    }
    return replace(options, **{name: value for name, value in changes.items() if value is not None})


def choose_method(options: FinetuneOptions, task: Task, num_train: int) -> Method:
    """The method of the options, or the default for this number of examples."""
    if options.method is not None:
        if options.method is Method.HEAD and task is Task.LM:
            raise UserError("--method head: lm has no head to train; use lora or full")
        return options.method
    return Method.LORA if task is Task.LM or num_train >= FEW_EXAMPLES else Method.HEAD


def data_values(options: FinetuneOptions) -> dict[str, Any]:
    """The tables of a `DataRecipe`; for lm, `language_data` makes [data]."""
    return {
        "seed": options.seed,
        "data": {
            "sources": [{"path": options.data}],
            "valid": [] if options.valid is None else [options.valid],
        },
        "finetune": {
            **_same(options, "task", "reference", "test", "split", "features", "feature_type"),
            **_same(options, "regions", "region_type", "cut"),
            "labels": comma_list(options.label_cols),
            "group": options.group_col,
            "valid_contigs": comma_list(options.valid_contigs),
            "test_contigs": comma_list(options.test_contigs),
        },
    }


def recipe_values(
    options: FinetuneOptions, task: Task, num_train: int, length: int, known: dict[str, Any]
) -> dict[str, Any]:
    """The tables of the recipe of a run.

    Args:
        options: Options of the command.
        task: The task.
        num_train: Number of training examples, or windows.
        length: Length of the longest window in bases.
        known: Tables that do not depend on the data, from `data_values`.
    """
    method = choose_method(options, task, num_train)
    on_gpu = training_device(options.device).type == "cuda"
    is_head = method is Method.HEAD
    batch = min(options.batch or (256 if is_head else 32), max(1, num_train))
    epochs = (50 if is_head else 3) if options.epochs is None else options.epochs
    min_steps = 300 if is_head and options.epochs is None else 1  # such steps take a second
    steps = options.steps or max(min_steps, math.ceil(epochs * num_train / batch))
    every = max(1, steps // options.validations)
    rate = options.lr or (LM_RATE if task is Task.LM and method is Method.LORA else RATES[method])
    head_rate = options.head_lr or (HEAD_RATE if method is Method.FULL else None)
    base = options.base
    if base is Base.AUTO:
        base = Base.BF16 if on_gpu else Base.FP32
    adapters = {}
    if method is Method.LORA:
        shape = _same(options, "rank", "alpha", "dropout", "targets", "rslora", "dora")
        adapters = {"adapters": shape}
    return {
        **known,
        "init": options.model,
        "output": options.output,
        "batch": {
            "length": length,
            "sequences": batch,
            "micro_sequences": options.micro_batch,
        },
        "optimizer": {
            "steps": steps,
            "warmup_steps": int(options.warmup * steps),
            "learning_rate": rate,
            "min_learning_rate": rate / 10,
            "weight_decay": options.weight_decay,
        },
        "validation": {"every": every},
        "checkpoint": {"every": every, "keep": 1},
        "precision": {"compute": "bf16" if on_gpu else "fp32"},
        "finetune": {
            **known["finetune"],
            **_same(options, "layer", "pool", "strand", "head", "weights"),
            **_same(options, "metric", "patience", "scratch"),
            **adapters,
            "task": task,
            "method": method,
            "head_learning_rate": head_rate if task is not Task.LM else None,
            "base": base,
        },
    }


def _same(options: FinetuneOptions, *names: str) -> dict[str, Any]:
    """Copy options whose recipe keys have the same names."""
    return {name: getattr(options, name) for name in names}


def recipe_text(recipe: Recipe) -> bytes:
    """A recipe as the content of a TOML file.

    Raises:
        UserError: A file name is not UTF-8, which TOML requires.
    """
    opening = "# Written by `evo2 finetune`; run it again with `evo2 train` or `evo2 launch`.\n"
    values = recipe.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    try:
        return (opening + tomli_w.dumps(values)).encode()
    except UnicodeEncodeError as error:
        line = error.object.count("\n", 0, error.start)
        entry = error.object.splitlines()[line].strip(" {},")
        raise UserError(
            f"{entry}: a name that is not UTF-8 cannot be in a recipe; rename the file, or link to "
            "it"
        ) from None


def write_recipe(recipe: Recipe) -> None:
    """Write the file of a recipe, atomically.

    Raises:
        UserError: It cannot be written.
    """
    with writing(recipe.file), atomic_path(recipe.file) as part:
        part.write_bytes(recipe_text(recipe))
