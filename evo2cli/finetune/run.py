"""`evo2 finetune`, step by step; `evo2 train` runs the same from the recipe that it wrote."""

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
    """Fine-tune a model, resuming an earlier run with the same options.

    Returns:
        The report of `tune`.

    Raises:
        UserError: Data, model, options or output folder do not allow the run.
        UntrustedNumericsError: A loss or a gradient is not finite.
    """
    recipe, data = prepare(options)
    return tune(recipe, options.device, data, writes_recipe=True)


def write_only(options: FinetuneOptions) -> Path:
    """Write the recipe of a run, and do not train.

    Returns:
        The recipe.

    Raises:
        UserError: As `finetune`; or the folder has a run already.
    """
    recipe, _ = prepare(options)
    if (options.output / "run.json").is_file():
        raise UserError(f"{options.output}: already contains a run; choose another --output")
    with writing(options.output):
        options.output.mkdir(parents=True, exist_ok=True)
    write_recipe(recipe)
    return recipe.file


def prepare(options: FinetuneOptions) -> tuple[Recipe, DataSet | None]:
    """Look at the data, and make the recipe of the run.

    Returns:
        The recipe, and the examples that it describes; None for lm.
    """
    path = options.output / NAME
    context = read_checkpoint(options.model).config.context
    values, data = data_values(options), None
    # The settings may change how examples are read, or divided, or what follows from options.
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
        usual = min(context, CUT_WINDOW) if is_cut else context
        data = read_data(check_values(DataRecipe, values, path), options.length or usual)
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
    """Fine-tune by a recipe, resuming an earlier run of it.

    Args:
        recipe: A recipe with [finetune].
        device: As `--device`.
        data: Its examples, if they were read already.
        writes_recipe: Whether its file is to be written.

    Returns:
        output, rank, finished; if it is finished also what report.json has: task, method, base (its
        name, loss and the layer that is read), steps, best (the step, and the metric that chose
        it), seconds, memory_gib, and results, a row each for simple baselines, a probe on the
        frozen base and the model, with metrics and their intervals.

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
