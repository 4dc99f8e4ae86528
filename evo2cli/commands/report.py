"""`evo2 report`."""

from evo2cli.options import takes
from evo2cli.report.options import ReportOptions


@takes(ReportOptions)
def report(options: ReportOptions) -> None:
    """Turn scored variants into one HTML file that any browser opens offline.

    It has a summary, deltas by kind, consequence and class, a table of the variants, genes (with
    --gff), and a heat map if the variants come from `evo2 saturate`. Summaries cover all variants;
    long tables show those with the lowest EVO2_DELTA.
    """
    from evo2cli.report.run import report

    report(options)
