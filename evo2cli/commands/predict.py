"""`evo2 predict`."""

from evo2cli.options import takes
from evo2cli.predict.options import PredictOptions


@takes(PredictOptions)
def predict(options: PredictOptions) -> None:
    """Predict labels with a model from evo2 finetune.

    Each sequence gets one row: the predicted class and the calibrated probability of every class,
    or the predicted numbers. A model that labels bases writes one row per base, or a bedGraph or
    bigWig. INFO fields are added to the records of a VCF: the predictions for the window with REF
    and for that with ALT, and their difference.
    """
    from evo2cli.predict.run import predict as run

    run(options)
