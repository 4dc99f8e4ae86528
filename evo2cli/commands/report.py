"""`evo2 report`."""

from evo2cli.options import takes
from evo2cli.report.options import ReportOptions


@takes(ReportOptions)
def report(options: ReportOptions) -> None:
    """Turn scored variants into one HTML file, to be opened in a browser without any network.

    It holds a summary, deltas by kind, consequence and class, a table of the variants, genes with
    --gff, and a heat map if the input is an output of `evo2 saturate`. Of many variants it holds
    those with the lowest EVO2_DELTA, and numbers about all.
    """
    from evo2cli.report.run import report

    report(options)
