"""The steps of `evo2 finetune`; `evo2 train` runs the same from the recipe that it writes."""

from pathlib import Path
from typing import Any

from evo2cli.errors import UserError
from evo2cli.files import writing
from evo2cli.finetune.data import CUT_WINDOW, DataRecipe, DataSet, read_data
from evo2cli.finetune.labelled import LabelledRun
from evo2cli.finetune.language import LanguageRun, is_language, language_data
from evo2cli.finetune.options import FinetuneOptions
from evo2cli.finetune.recipes import (
    NAME,
    data_values,
    recipe_text,
    recipe_values,
    with_settings,
    write_recipe,
)
from evo2cli.finetune.tasks import Task
from evo2cli.train.engines import check_ranks
from evo2cli.training.gpu_memory import training_device
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from evo2cli.training.recipe_file import (
    check_values,
    find_initial_weights,
    make_recipe,
    set_values,
)
from stripedhyena2.checkpoint import read_checkpoint


def finetune(options: FinetuneOptions) -> dict[str, Any]:
    """Fine-tune a model, or resume an earlier run with the same options.

    Returns:
        The result of `tune`.

    Raises:
        UserError: Data, model, options or output folder do not allow the run.
        UntrustedNumericsError: A loss or a gradient is not finite.
    """
    recipe, data = prepare(options)
    return tune(recipe, options.device, data, writes_recipe=True)


def write_recipe_only(options: FinetuneOptions) -> Path:
    """Write the recipe of a run without training.

    Returns:
        Path of the recipe.

    Raises:
        UserError: As `finetune`; or the folder already contains a run.
    """
    recipe, _ = prepare(options)
    if (options.output / "run.json").is_file():
        raise UserError(f"{options.output}: already contains a run; choose another --output")
    with writing(options.output):
        options.output.mkdir(parents=True, exist_ok=True)
    write_recipe(recipe)
    return recipe.file


def prepare(options: FinetuneOptions) -> tuple[Recipe, DataSet | None]:
    """Read the data, and make the recipe of the run.

    Returns:
        The recipe, and its examples; None for lm.
    """
    path = options.output / NAME
    context = read_checkpoint(options.model).config.context
    values, data = data_values(options), None
    # Settings may change how examples are read and split, and the keys derived from options.
    set_values(values, options.settings)
    options = with_settings(options, values, path)
    if is_language(options):
        if given := options.valid_contigs or options.test_contigs:
            raise UserError(
                f"{given}: --valid-contigs and --test-contigs are for labelled sequences; for "
                "--task lm, give held-out documents with --valid"
            )
        values["data"], num_train, length = language_data(options, context)
        task = Task.LM
    else:
        is_cut = options.features is not None or options.reference is not None
        default = min(context, CUT_WINDOW) if is_cut else context
        data = read_data(check_values(DataRecipe, values, path), options.length or default)
        task, num_train, length = data.labels.task, len(data.split.train), data.longest
    values = recipe_values(options, task, num_train, length, values)
    recipe = make_recipe(values, path, options.settings)
    recipe_text(recipe)  # fails before anything is written
    return recipe, data


def tune(
    recipe: Recipe,
    device: str,
    data: DataSet | None = None,
    *,
    writes_recipe: bool = False,
) -> dict[str, Any]:
    """Fine-tune from a recipe, or resume an earlier run of it.

    Args:
        recipe: A recipe with [finetune].
        device: As `--device`.
        data: Its examples, if they have been read already.
        writes_recipe: Whether to write the recipe file.

    Returns:
        output, rank, finished; for a finished run also the content of report.json: task, method,
        base (its name, loss and the layer that is read), steps, best (step, metric and value),
        seconds, memory_gib, and results: metrics with intervals of the baselines, of a probe on the
        frozen base, and of the model.

    Raises:
        UserError: The recipe, its data or the device do not allow the run.
        UntrustedNumericsError: A loss or a gradient is not finite.
    """
    with Ranks.joined(training_device(device)) as ranks:
        check_ranks(recipe, ranks)
        ranks = ranks.sharing(recipe.parallel.context)
        recipe = recipe.model_copy(update={"init": find_initial_weights(recipe)})
        stored = read_checkpoint(recipe.base)
        if recipe.tuning.task == "lm":
            return LanguageRun(recipe, ranks, stored, writes_recipe).run()
        if data is None:
            data = read_data(DataRecipe.of(recipe), quiet=not ranks.is_first)
        return LabelledRun(recipe, ranks, stored, writes_recipe, data).run()
