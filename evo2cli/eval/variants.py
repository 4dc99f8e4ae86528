"""`evo2 eval variants`: classification of pathogenic and benign variants; see docs/eval.md.

An allele is ranked by -EVO2_DELTA, which is higher for less likely alleles.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from evo2cli import __version__, console
from evo2cli.errors import UserError
from evo2cli.eval.annotations import AnnotatedFile, missing_key, read_annotated
from evo2cli.eval.consequences import Consequence, consequences, find_key
from evo2cli.eval.labels import Allele, Labels
from evo2cli.eval.options import VariantsOptions
from evo2cli.eval.plots import draw_ranking
from evo2cli.eval.report import check_outputs, estimate_columns, format_estimate, write_table
from evo2cli.files import locks_output, temporary_folder
from evo2cli.genome.source import STDIN
from evo2cli.genome.variant_table import is_table
from evo2cli.genome.vcf import kind_of
from evo2cli.options import shared
from evo2cli.ranking import RESAMPLES, rank
from evo2cli.score.options import ScoreOptions
from evo2cli.score.run import score
from evo2cli.tables import Row

DELTA = "EVO2_DELTA"
MIN_CLASS = 5  # minimum number of positives, and of negatives, in a group with statistics


@locks_output
def evaluate_variants(options: VariantsOptions) -> dict[str, Any]:
    """Measure how well deltas separate two classes of variants; score them first if needed.

    Returns:
        evaluation, preset, source, model and command (as a scored VCF names them; None for a
        table), label, its positive and negative values, consequence (its key), by (keys of further
        groups), seed, resamples; how many alleles were left_out because of their label, and
        unscored by their status; and rows, one for each group: counts, AUROC and AUPRC with their
        intervals, None where the group is too small.

    Raises:
        UserError: The variants cannot be used, or no allele is positive, or none negative.
        UntrustedNumericsError: A log-likelihood is not a finite number.
    """
    check_outputs(options, options.source)
    suffix = ".tsv" if is_table(options.source) else ".vcf"  # a table keeps its columns in a table
    if options.scored is not None and not options.scored.name.endswith((suffix, f"{suffix}.gz")):
        raise UserError(f"--scored {options.scored}: needs the suffix {suffix} or {suffix}.gz")
    labels = options.labels
    file = read_annotated(options.source, shift=options.shift)
    left_out = _check_labels(options, file)
    if file.has(DELTA):
        console.say(f"{options.source}: already has {DELTA}; nothing is scored")
    elif options.source == STDIN:
        raise UserError(f"-: has no {DELTA}; score it first (evo2 score), or give a file")
    else:
        with temporary_folder() as folder:
            scored = options.scored or folder / f"scored{suffix}"
            _score(options, scored)
            file = read_annotated(scored)
    key = options.consequence or find_key(file.has, beside=labels.key)
    alleles, unscored = collect_alleles(file, labels, key, options.groups)
    if not alleles:
        raise UserError(f"{options.source}: no labelled allele has a score")
    rows = group_rows(alleles, options.seed, options.groups)
    result = {
        "evaluation": "variants",
        "evo2cli": __version__,
        "preset": options.preset,
        "source": str(options.source),
        "model": file.meta.get("evo2Model"),
        "command": file.meta.get("evo2Command"),
        "label": labels.key,
        "positive": list(labels.positive),
        "negative": list(labels.negative),
        "consequence": key,
        "by": list(options.groups),
        "score": f"-{DELTA}",
        "seed": options.seed,
        "resamples": RESAMPLES,
        "left_out": left_out,
        "unscored": unscored,
        "rows": rows,
    }
    write_table(options.output, result, rows)
    if options.plot is not None:
        draw_ranking(options.plot, result, alleles)
    return result


def _score(options: VariantsOptions, output: Path) -> None:
    """Score the variants as `evo2 score` does."""
    score(shared(options, ScoreOptions, inputs=(str(options.source),), output=output, json=False))


def _check_labels(options: VariantsOptions, file: AnnotatedFile) -> dict[str, int]:
    """Check the keys and labels; count alleles that are neither positive nor negative, by label.

    Raises:
        UserError: No record has the INFO keys, or no allele is positive, or none negative.
    """
    source, labels = options.source, options.labels
    if not file.has(labels.key):
        raise missing_key(source, file.place, labels.key, file.keys(), "--label")
    keys = [("--consequence", options.consequence), *(("--by", key) for key in options.groups)]
    for flag, key in keys:
        if key and not file.has(key):
            raise missing_key(source, file.place, key, file.keys(), flag)
    values = [
        value
        for record in file.records
        for value in record.values(labels.key, file.declared.get(labels.key))
    ]
    classes = Counter(map(labels.classify, values))
    for is_positive, name, terms in (
        (True, "positive", labels.positive),
        (False, "negative", labels.negative),
    ):
        if not classes[is_positive]:
            common = ", ".join(
                f"{value or '.'} ({count:,})" for value, count in Counter(values).most_common(8)
            )
            raise UserError(
                f"{source}: no allele is {name} ({', '.join(terms)}); the values of "
                f"{labels.key} are {common}; choose among them with --{name}"
            )
    return _count(value or "no label" for value in values if labels.classify(value) is None)


def collect_alleles(
    file: AnnotatedFile, labels: Labels, consequence: str | None, by: Sequence[str] = ()
) -> tuple[list[Allele], dict[str, int]]:
    """Collect the labelled and scored alleles; count labelled ones without a score, by status.

    Args:
        file: The scored variants.
        labels: Labels of positive and negative variants.
        consequence: INFO key, or column, of consequences.
        by: INFO keys, or columns, of further groups.
    """
    alleles, unscored = [], []
    for record in file.records:
        deltas, statuses, values = (
            record.values(key, file.declared.get(key)) for key in (DELTA, "EVO2_STATUS", labels.key)
        )
        others = [(key, record.values(key, file.declared.get(key))) for key in by]
        effects: Sequence[Consequence | None] = [None] * len(record.alternates)
        if consequence is not None:
            effects = consequences(record, consequence, file.declared.get(consequence))
        for index, alternate in enumerate(record.alternates):
            is_positive, delta = labels.classify(values[index]), deltas[index]
            if is_positive is None:
                continue
            if delta is None:
                unscored.append(statuses[index] or "no status")
                continue
            extra = [(key, value) for key, texts in others if (value := texts[index]) is not None]
            standard = _groups(record.reference, alternate, effects[index])
            groups = (*(group for group in standard if group[0] not in by), *extra)
            alleles.append(Allele(record.number(DELTA, delta), is_positive, groups))
    return alleles, _count(unscored)


def _groups(
    reference: str, alternate: str, effect: Consequence | None
) -> tuple[tuple[str, str], ...]:
    """Kind and name of the groups of an allele, besides the group of all alleles."""
    groups = [("class", str(kind_of(reference, alternate)))]
    if effect is not None:
        groups.append(("consequence", effect.name))
        if effect.coding is not None:
            groups.append(("region", "coding" if effect.coding else "noncoding"))
    return tuple(groups)


def group_rows(alleles: Sequence[Allele], seed: int, by: Sequence[str] = ()) -> list[Row]:
    """One row for all alleles, then one per group, the largest of a kind first.

    Kinds are consequence, class and region, then `by`; a kind with a single group is left out.
    """
    members: dict[tuple[str, str], list[Allele]] = defaultdict(list)
    for allele in alleles:
        for group in allele.groups:
            members[group].append(allele)
    groups = [
        group
        for kind in dict.fromkeys(("consequence", "class", "region", *by))
        for group in sorted(
            (g for g in members if g[0] == kind), key=lambda g: (-len(members[g]), g)
        )
        if sum(other == kind for other, _ in members) > 1
    ]
    return [
        _row(("all", "all"), alleles, seed),
        *(_row(group, members[group], seed) for group in groups),
    ]


def _row(group: tuple[str, str], alleles: Sequence[Allele], seed: int) -> Row:
    positive = [allele.positive for allele in alleles]
    num_positive = sum(positive)
    num_negative = len(positive) - num_positive
    row: Row = {
        "kind": group[0],
        "group": group[1],
        "num_positive": num_positive,
        "num_negative": num_negative,
    }
    ranking = None
    if min(num_positive, num_negative) >= MIN_CLASS:
        scores = [-allele.delta for allele in alleles]
        ranking = rank(scores, positive, seed=seed, name=":".join(group))
    row |= estimate_columns("auroc", ranking.auroc if ranking else None)
    return row | estimate_columns("auprc", ranking.auprc if ranking else None)


def variants_page(result: dict[str, Any]) -> RenderableType:
    """Lay out the result of `evaluate_variants`: a line for each group."""
    names = ("positive", "negative", "AUROC", "95 %", "AUPRC", "95 %")
    table = console.number_table("", *names)
    kind = "all"
    for row in result["rows"]:
        if row["kind"] != kind:
            kind = row["kind"]
            table.add_row(f"by {kind}")
        cells = [f"{row['num_positive']:,}", f"{row['num_negative']:,}"]
        for name in ("auroc", "auprc"):
            cells += format_estimate(row, name)
        table.add_row(row["group"] if kind == "all" else f"  {row['group']}", *cells)
    title = (
        f"{result['label']} {', '.join(result['positive'])} (positive) against "
        f"{', '.join(result['negative'])}, ranked by {result['score']}"
    )
    notes = ["95 %: bootstrap intervals; by chance AUROC is 0.5, AUPRC the share of positives"]
    if any(row["auroc"] is None for row in result["rows"]):
        notes.append(f"-: fewer than {MIN_CLASS} positives or negatives")
    for why, counts in (
        ("labelled otherwise", result["left_out"]),
        ("without a score", result["unscored"]),
    ):
        if counts:
            listed = ", ".join(f"{value} {count:,}" for value, count in counts.items())
            notes.append(f"left out, {why}: {listed}")
    return Group(
        Text(title, style="bold"),
        Text(f"{result['source']}\n"),
        table,
        Text("\n" + "\n".join(notes)),
    )


def _count(values: Iterable[str]) -> dict[str, int]:
    """How often each value occurs, the most frequent first."""
    return dict(sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0])))
