"""`evo2 predict`."""

from evo2cli.options import takes
from evo2cli.predict.options import PredictOptions


@takes(PredictOptions)
def predict(options: PredictOptions) -> None:
    """Predict labels by a model that evo2 finetune trained.

    Sequences get a row each: the predicted class and the calibrated probability of every class, or
    numbers in their units. A task of tokens gets a row for each base, or a bedGraph or bigWig.
    Variants keep their lines and get INFO fields: the prediction for the window with REF, with ALT,
    and the difference.
    """
    from evo2cli.predict.run import predict as run

    run(options)
