"""`evo2 train`."""

from evo2cli import console
from evo2cli.commands.finetune import write_report
from evo2cli.commands.plan import write_plan
from evo2cli.options import takes
from evo2cli.train.options import TrainOptions


@takes(TrainOptions)
def train(options: TrainOptions) -> None:
    """Train a model from a recipe. To resume a stopped run, run the same command again."""
    if options.dry_run:
        write_plan(options)
        return
    from evo2cli.finetune.run import tune
    from evo2cli.train.run import summary_line, train_recipe
    from evo2cli.training.recipe_file import read_run

    recipe = read_run(options)
    if recipe.finetune is not None:
        write_report(tune(recipe, options.device), json=options.json)
        return
    summary = train_recipe(options)
    if summary.pop("rank") > 0:
        return
    if options.json:
        console.write_json(summary)
    else:
        console.say(summary_line(summary))
