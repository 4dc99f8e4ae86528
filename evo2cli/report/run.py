"""`evo2 report`: reads scored variants, and writes the file."""

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
        UserError: The variants or the genes cannot be read, nothing is scored, or the file cannot
            be written.
    """
    genes = None if options.gff is None else read_genes(options.gff)
    with (
        open_annotated(options.source) as (header, records),
        console.progress("read", None, "records") as bar,
    ):
        found = collect(options, header, _counted(records, bar), genes)
    if genes is not None and not found.num_genes:
        console.warn(
            f"--gff {options.gff}: no scored allele is in a gene; is it the annotation of "
            "another genome?"
        )
    regions = heat_maps(found.saturation, genes)
    title = "stdin" if options.source == STDIN else console.printable(options.source.name)
    data = {
        "title": title,
        "facts": _facts(header, found),
        "statuses": [
            [status, count, _meaning(status)] for status, count in found.statuses.most_common()
        ],
        "groupings": [
            {"name": name, "groups": strips(groups)}
            for name, groups in found.groupings.items()
            if groups
        ],
        "regions": regions,
        "table": {"columns": found.columns, "rows": found.rows},
        "genes": None if genes is None else {"columns": GENE_COLUMNS, "rows": found.gene_rows},
        "rules": _rules(found, max((region["step"] for region in regions), default=1)),
    }
    with open_output(options.output) as write:
        write(report_page(title, data).encode())
    console.say(f"{options.output}: {counted(found.num_alleles, 'allele')}")


def _counted(records: Iterator[Annotated], bar: ProgressBar) -> Iterator[Annotated]:
    for record in records:
        yield record
        bar.advance()


def _meaning(status: str) -> str:
    meanings = {str(each): each.meaning for each in Status}
    return "; ".join(filter(None, (meanings.get(word, "") for word in status.split("&"))))


def _facts(header: AnnotatedHeader, found: Collected) -> list[list[Any]]:
    """What made the scores, and how many there are."""
    deltas = found.deltas
    return [
        ["Alleles", found.num_alleles],
        ["with a score", len(deltas)],
        ["Lowest EVO2_DELTA, nats", min(deltas, default=None)],
        ["Highest", max(deltas, default=None)],
        ["Model", header.meta.get("evo2Model")],
        ["Command", header.meta.get("evo2Command")],
        ["Rounding noise", header.meta.get("evo2Noise")],
        ["Written by", f"evo2 {__version__}"],
    ]


def _rules(found: Collected, step: int) -> dict[str, str]:
    """What is left out of each view, in words; "" if nothing is.

    Args:
        found: What was collected.
        step: Positions of a column of the heat map.
    """
    groups = [group for by_group in found.groupings.values() for group in by_group.values()]
    rules = dict.fromkeys(("table", "points", "genes", "regions"), "")
    if found.num_alleles > MAX_ROWS:
        rules["table"] = (
            f"The {MAX_ROWS:,} alleles with the lowest EVO2_DELTA, of {found.num_alleles:,} "
            f"({len(found.deltas):,} with a score)."
        )
    if max(map(len, groups), default=0) > MAX_POINTS:
        rules["points"] = (
            "Boxes and numbers are of all alleles; of a group of more than "
            f"{MAX_POINTS:,}, as many dots are drawn, evenly by rank."
        )
    if found.num_genes > MAX_ROWS:
        rules["genes"] = (
            f"The {MAX_ROWS:,} genes with the lowest EVO2_DELTA, of {found.num_genes:,} with a "
            "scored allele."
        )
    if step > 1:
        rules["regions"] = f"Each column is the mean of {step:,} neighbouring positions."
    return rules
