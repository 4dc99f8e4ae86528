"""`evo2 report`: read scored variants and write the report."""

from collections.abc import Iterator
from typing import Any

from evo2cli import __version__, console
from evo2cli.console import ProgressBar
from evo2cli.errors import counted
from evo2cli.eval.annotations import Annotated, AnnotatedHeader, open_annotated
from evo2cli.files import locks_output, open_output
from evo2cli.genome.genes import read_genes
from evo2cli.genome.source import STDIN
from evo2cli.genome.vcf import Status
from evo2cli.report.collect import (
    GENE_COLUMNS,
    MAX_POINTS,
    MAX_ROWS,
    Collected,
    collect,
    heat_maps,
    strips,
)
from evo2cli.report.options import ReportOptions
from evo2cli.report.page import report_page


@locks_output
def report(options: ReportOptions) -> None:
    """Write the report.

    Raises:
        UserError: The variants or the genes cannot be read, the variants are not scored, or the
            report cannot be written.
    """
    genes = None if options.gff is None else read_genes(options.gff)
    with (
        open_annotated(options.source) as (header, records),
        console.progress("read", None, "records") as bar,
    ):
        collected = collect(options, header, _counted(records, bar), genes)
    if genes is not None and not collected.num_genes:
        console.warn(
            f"--gff {options.gff}: no scored allele is in a gene; is it the annotation of "
            "another genome?"
        )
    regions = heat_maps(collected.saturation, genes)
    title = "stdin" if options.source == STDIN else console.printable(options.source.name)
    data = {
        "title": title,
        "facts": _facts(header, collected),
        "statuses": [
            [status, count, _meaning(status)] for status, count in collected.statuses.most_common()
        ],
        "groupings": [
            {"name": name, "groups": strips(groups)}
            for name, groups in collected.groupings.items()
            if groups
        ],
        "regions": regions,
        "table": {"columns": collected.columns, "rows": collected.rows},
        "genes": None if genes is None else {"columns": GENE_COLUMNS, "rows": collected.gene_rows},
        "rules": _rules(collected, max((region["step"] for region in regions), default=1)),
    }
    with open_output(options.output) as write:
        write(report_page(title, data).encode())
    console.say(f"{options.output}: {counted(collected.num_alleles, 'allele')}")


def _counted(records: Iterator[Annotated], bar: ProgressBar) -> Iterator[Annotated]:
    for record in records:
        yield record
        bar.advance()


def _meaning(status: str) -> str:
    meanings = {str(member): member.meaning for member in Status}
    return "; ".join(filter(None, (meanings.get(term, "") for term in status.split("&"))))


def _facts(header: AnnotatedHeader, collected: Collected) -> list[list[Any]]:
    """Number and range of the scores, and their provenance."""
    deltas = collected.deltas
    return [
        ["Alleles", collected.num_alleles],
        ["with a score", len(deltas)],
        ["Lowest EVO2_DELTA, nats", min(deltas, default=None)],
        ["Highest", max(deltas, default=None)],
        ["Model", header.meta.get("evo2Model")],
        ["Command", header.meta.get("evo2Command")],
        ["Rounding noise", header.meta.get("evo2Noise")],
        ["Written by", f"evo2 {__version__}"],
    ]


def _rules(collected: Collected, step: int) -> dict[str, str]:
    """Notes on what each view leaves out; "" if nothing.

    Args:
        collected: The data of the report.
        step: Positions per column of the heat map.
    """
    groups = [group for by_group in collected.groupings.values() for group in by_group.values()]
    rules = dict.fromkeys(("table", "points", "genes", "regions"), "")
    if collected.num_alleles > MAX_ROWS:
        rules["table"] = (
            f"The {MAX_ROWS:,} alleles with the lowest EVO2_DELTA, of {collected.num_alleles:,} "
            f"({len(collected.deltas):,} with a score)."
        )
    if max(map(len, groups), default=0) > MAX_POINTS:
        rules["points"] = (
            "Boxes and numbers are of all alleles; a group shows at most "
            f"{MAX_POINTS:,} dots, evenly spaced by rank."
        )
    if collected.num_genes > MAX_ROWS:
        rules["genes"] = (
            f"The {MAX_ROWS:,} genes with the lowest EVO2_DELTA, of {collected.num_genes:,} with a "
            "scored allele."
        )
    if step > 1:
        rules["regions"] = f"Each column is the mean of {step:,} neighbouring positions."
    return rules
