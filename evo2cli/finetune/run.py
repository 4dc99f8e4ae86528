"""`evo2 finetune`, step by step; `evo2 train` runs the same from the recipe that it wrote."""

from pathlib import Path
from typing import Any

from evo2cli.errors import UserError
from evo2cli.files import writing
from evo2cli.finetune.data import CUT_WINDOW, Data, Source, comma_list, read_data
from evo2cli.finetune.labelled import LabelledRun
from evo2cli.finetune.language import LanguageRun, is_language, language_data
from evo2cli.finetune.options import FinetuneOptions
from evo2cli.finetune.recipes import NAME, choose_method, recipe_values, write_recipe
from evo2cli.finetune.tasks import Task
from evo2cli.train.run import check_ranks
from evo2cli.training.gpu_memory import training_device
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from evo2cli.training.recipe_file import find_initial_weights, make_recipe
from stripedhyena2.checkpoint import read_checkpoint


def finetune(options: FinetuneOptions) -> dict[str, Any]:
    """Fine-tune a model, resuming an earlier run with the same options.

    Returns:
        The report of `tune`.

    Raises:
        UserError: Data, model, options or output folder do not allow the run.
        UntrustedNumericsError: A loss or a gradient is not finite.
    """
    recipe, path, values, data = prepare(options)
    return tune(recipe, path, options.device, data, values)


def write_only(options: FinetuneOptions) -> Path:
    """Write the recipe of a run, and do not train.

    Returns:
        The recipe.

    Raises:
        UserError: As `finetune`; or the folder has a run already.
    """
    _, path, values, _ = prepare(options)
    if (options.output / "run.json").is_file():
        raise UserError(f"{options.output}: already contains a run; choose another --output")
    with writing(options.output):
        options.output.mkdir(parents=True, exist_ok=True)
    write_recipe(values, path)
    return path


def prepare(
    options: FinetuneOptions,
) -> tuple[Recipe, Path, dict[str, Any], Data | None]:
    """Look at the data, and make the recipe of the run.

    Returns:
        The recipe, its file, its tables, and the examples; None for lm.
    """
    context = read_checkpoint(options.model).config.context
    data = None
    if is_language(options):
        task = Task.LM
        if given := options.valid_contigs or options.test_contigs:
            raise UserError(
                f"{given}: --valid-contigs and --test-contigs are for labelled sequences; for "
                "--task lm, give held-out documents with --valid"
            )
        table, num_train, length = language_data(options, context)
    else:
        table = {"sources": [{"path": str(options.data)}]}
        if options.valid is not None:
            table["valid"] = [str(options.valid)]
        is_cut = options.features is not None or options.reference is not None
        usual = min(context, CUT_WINDOW) if is_cut else context
        data = read_data(_source(options), options.length or usual)
        task, num_train, length = data.labels.task, len(data.split.train), data.longest
    method = choose_method(options, task, num_train)
    values = recipe_values(options, task, method, num_train, length, table)
    path = options.output / NAME
    return make_recipe(values, path, options.settings), path, values, data


def _source(options: FinetuneOptions) -> Source:
    return Source(
        train=options.data,
        valid=options.valid,
        test=options.test,
        task=options.task,
        labels=comma_list(options.label_cols),
        group=options.group_col,
        reference=options.reference,
        split=options.split,
        valid_contigs=comma_list(options.valid_contigs),
        test_contigs=comma_list(options.test_contigs),
        cut=options.cut,
        seed=options.seed,
        features=options.features,
        feature_types=comma_list(options.feature_type),
        regions=options.regions,
        region_type=options.region_type,
    )


def tune(
    recipe: Recipe,
    path: Path,
    device: str,
    data: Data | None = None,
    values: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Fine-tune by a recipe, resuming an earlier run of it.

    Args:
        recipe: A recipe with [finetune].
        path: Its file, for messages.
        device: As `--device`.
        data: Its examples, if they were read already.
        values: Its tables, if its file is to be written.

    Returns:
        output, rank, finished; if it is finished also what report.json has: task, method, base (its
        name, loss and the layer that is read), steps, best (the step, and the metric that chose
        it), seconds, memory_gib, and results, a row each for simple baselines, a probe on the
        frozen base and the model, with metrics and their intervals.

    Raises:
        UserError: The recipe, its data or the device do not allow the run.
        UntrustedNumericsError: A loss or a gradient is not finite.
    """
    tuning = recipe.finetune
    assert tuning is not None
    with Ranks.joined(training_device(device)) as ranks:
        check_ranks(recipe, path, ranks)
        ranks = ranks.sharing(recipe.parallel.context)
        stored = read_checkpoint(find_initial_weights(recipe, path))
        if tuning.task == "lm":
            return LanguageRun(recipe, path, ranks, stored, values).run()
        if data is None:
            source = Source.of_recipe(recipe)
            data = read_data(source, recipe.batch.length, quiet=not ranks.is_first)
        return LabelledRun(recipe, path, ranks, stored, values, data).run()
