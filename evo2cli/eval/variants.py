"""`evo2 eval brca1` and `evo2 eval clinvar`: do deltas tell harmful variants from harmless ones?

docs/eval.md defines it. The score of an allele is -EVO2_DELTA: the less likely, the higher.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evo2cli import __version__, console
from evo2cli.errors import UserError
from evo2cli.eval.annotations import Annotated, AnnotatedFile, read_annotated
from evo2cli.eval.consequences import Consequence, consequences, find_key
from evo2cli.eval.plots import draw_ranking
from evo2cli.eval.ranking import RESAMPLES, Allele, rank
from evo2cli.eval.report import check_output, write_table
from evo2cli.figures import check_plot
from evo2cli.genome.source import STDIN
from evo2cli.score.options import ScoreOptions
from evo2cli.score.run import score
from evo2cli.tables import Row, rounded

DELTA = "EVO2_DELTA"
FEWEST = 5  # positives, and negatives, that statistics of a group need
ALL = ("all", "all")  # kind and name of the group that holds everything
_UNLABELLED = "no label"
_BORDERS = re.compile(r"[/|,&]")  # between the terms of a label


@dataclass(frozen=True)
class Labels:
    """Which INFO key says what a variant is, and which of its values mean what.

    Attributes:
        key: Of INFO.
        positive: Values that are to score high.
        negative: Values that are to score low.
    """

    key: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]

    def meaning(self, value: str | None) -> bool | None:
        """Whether a value is positive; None where it is neither, or both."""
        terms = {_plain(term) for term in _BORDERS.split(value or "")}
        is_positive, is_negative = (
            not terms.isdisjoint(map(_plain, values)) for values in (self.positive, self.negative)
        )
        return None if is_positive == is_negative else is_positive


# Findlay et al. 2018 (doi:10.1038/s41586-018-0461-z) call a variant functional (FUNC), intermediate
# (INT) or loss of function (LOF); the Evo 2 paper sets LOF against the two others together.
LABELS = {
    "brca1": Labels("CLASS", ("LOF",), ("FUNC", "INT")),
    "clinvar": Labels("CLNSIG", ("Pathogenic", "Likely_pathogenic"), ("Benign", "Likely_benign")),
}


@dataclass(frozen=True, kw_only=True)
class VariantsOptions:
    """The command line of `evo2 eval brca1` and of `evo2 eval clinvar`.

    Attributes:
        evaluation: A key of `LABELS`.
        scoring: How the VCF is scored where it was not before; its output, a VCF, may be kept.
        labels: What is told from what.
        consequence: INFO key of consequences; None for the first one known.
        seed: Of the resamples.
        output: TSV or JSON to write.
        plot: Figure to draw.

    Raises:
        UserError: A value will not do.
    """

    evaluation: str
    scoring: ScoreOptions
    labels: Labels
    consequence: str | None = None
    seed: int = 0
    output: Path | None = None
    plot: Path | None = None

    def __post_init__(self) -> None:
        both = {_plain(value) for value in self.labels.positive}.intersection(
            map(_plain, self.labels.negative)
        )
        if both:
            raise UserError(f"--positive and --negative both hold {', '.join(sorted(both))}")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must not be negative")
        kept = self.scoring.output
        if kept is not None and not kept.name.endswith((".vcf", ".vcf.gz")):
            raise UserError(f"--scored {kept}: needs the suffix .vcf or .vcf.gz")
        check_output(self.output)
        check_plot(self.plot)

    @classmethod
    def parse(
        cls,
        *,
        evaluation: str,
        label: str | None,
        positive: str | None,
        negative: str | None,
        **others: Any,
    ) -> "VariantsOptions":
        """The same from the words of the command line; None for what the evaluation itself says.

        Raises:
            UserError: A value will not do.
        """
        usual = LABELS[evaluation]
        labels = Labels(
            label or usual.key,
            tuple(positive.split(",")) if positive else usual.positive,
            tuple(negative.split(",")) if negative else usual.negative,
        )
        return cls(evaluation=evaluation, labels=labels, **others)


def evaluate_variants(options: VariantsOptions) -> dict[str, Any]:
    """Measure how well deltas tell labels apart, scoring the VCF first where it was not.

    Returns:
        evaluation, source, model and command (as the scored VCF names them, or None), label, its
        positive and negative values, consequence (the INFO key), seed, resamples; how many alleles
        were left_out by their label, and unscored by their status; and rows, one a group: counts,
        AUROC and AUPRC with their intervals, None where the group is too small.

    Raises:
        UserError: The VCF will not do, or has no positive or no negative allele.
        UntrustedNumericsError: A log-likelihood is no finite number.
    """
    file = read_annotated(options.scoring.source)
    left_out = _check_labels(options, file)
    file = _with_scores(options.scoring, file)
    key = options.consequence or find_key(file, beside=options.labels.key)
    alleles, unscored = collect_alleles(file, options.labels, key)
    if not alleles:
        raise UserError(f"{options.scoring.source}: no labelled allele has a score")
    rows = group_rows(alleles, options.seed)
    result = {
        "evaluation": options.evaluation,
        "evo2cli": __version__,
        "source": str(options.scoring.source),
        "model": file.meta.get("evo2Model"),
        "command": file.meta.get("evo2Command"),
        "label": options.labels.key,
        "positive": list(options.labels.positive),
        "negative": list(options.labels.negative),
        "consequence": key,
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


def _check_labels(options: VariantsOptions, file: AnnotatedFile) -> dict[str, int]:
    """How many alleles have a label that is neither positive nor negative, by label.

    Raises:
        UserError: There is no such key, or it leaves nothing to tell apart.
    """
    source, labels = options.scoring.source, options.labels
    if not file.has(labels.key):
        held = ", ".join(file.keys()[:12]) or "nothing"
        raise UserError(
            f"{source}: no record has {labels.key} in INFO, which holds {held}; --label"
        )
    if options.consequence and not file.has(options.consequence):
        raise UserError(f"{source}: no record has {options.consequence} in INFO; --consequence")
    values = [
        value
        for record in file.records
        for value in record.values(labels.key, file.declared.get(labels.key))
    ]
    meanings = Counter(map(labels.meaning, values))
    for is_positive, option in ((True, "positive"), (False, "negative")):
        if not meanings[is_positive]:
            common = ", ".join(
                f"{value or '.'} {n:,}" for value, n in Counter(values).most_common(8)
            )
            wanted = ", ".join(getattr(labels, option))
            raise UserError(
                f"{source}: no allele is {option} ({wanted}): {labels.key} is {common}; "
                f"say which of them are by --{option}"
            )
    return _counted(value or _UNLABELLED for value in values if labels.meaning(value) is None)


def _with_scores(options: ScoreOptions, file: AnnotatedFile) -> AnnotatedFile:
    """The file with deltas: as it is, or scored now."""
    if file.has(DELTA):
        console.say(f"{options.source}: has {DELTA}, which is taken; nothing is scored")
        return file
    if options.source == STDIN:
        raise UserError(f"-: has no {DELTA}; score it first (evo2 score), or give a file")
    with TemporaryDirectory() as folder:
        path = options.output or Path(folder, "scored.vcf")
        score(replace(options, output=path))
        return read_annotated(path)


def collect_alleles(
    file: AnnotatedFile, labels: Labels, consequence: str | None
) -> tuple[list[Allele], dict[str, int]]:
    """The alleles with a label and a score, and how many with a label have none, by status."""
    alleles, unscored = [], []
    for record in file.records:
        count = len(record.alternates)
        deltas, statuses, values = (
            record.values(key, file.declared.get(key)) for key in (DELTA, "EVO2_STATUS", labels.key)
        )
        effects: Sequence[Consequence | None] = [None] * count
        if consequence is not None:
            effects = consequences(record, consequence, file.declared.get(consequence))
        for index, alternate in enumerate(record.alternates):
            is_positive = labels.meaning(values[index])
            if is_positive is None:
                continue
            delta = deltas[index]
            if delta is None:
                unscored.append(statuses[index] or "no status")
                continue
            groups = _groups(record.reference, alternate, effects[index])
            alleles.append(Allele(_score(record, delta), is_positive, groups))
    return alleles, _counted(unscored)


def _score(record: Annotated, delta: str) -> float:
    """The number that a delta is.

    Raises:
        UserError: It is none, or not finite.
    """
    try:
        score = float(delta)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise UserError(
            f"{record.contig}:{record.start + 1}: {DELTA}={delta} is no finite number; score the "
            "variants again (evo2 score)"
        )
    return score


def _groups(
    reference: str, alternate: str, effect: Consequence | None
) -> tuple[tuple[str, str], ...]:
    """The groups of an allele beside "all"."""
    growth = len(alternate) - len(reference)
    kind = "insertion" if growth > 0 else "deletion" if growth < 0 else "SNV"
    groups = [("class", "MNV" if kind == "SNV" and len(reference) > 1 else kind)]
    if effect is not None:
        groups.append(("consequence", effect.name))
        if effect.coding is not None:
            groups.append(("region", "coding" if effect.coding else "noncoding"))
    return tuple(groups)


def group_rows(alleles: Sequence[Allele], seed: int) -> list[Row]:
    """A row for all alleles, then one for each group, the largest of a kind first.

    A kind whose alleles are all of one group has no row.
    """
    members: dict[tuple[str, str], list[Allele]] = defaultdict(list)
    for allele in alleles:
        for group in allele.groups:
            members[group].append(allele)
    groups = [
        group
        for kind in ("consequence", "class", "region")
        for group in sorted(
            (g for g in members if g[0] == kind), key=lambda g: (-len(members[g]), g)
        )
        if sum(other == kind for other, _ in members) > 1
    ]
    return [
        _row(ALL, alleles, seed),
        *(_row(group, members[group], seed) for group in groups),
    ]


def _row(group: tuple[str, str], alleles: Sequence[Allele], seed: int) -> Row:
    positive = [allele.positive for allele in alleles]
    num_positive = sum(positive)
    row: Row = {
        "kind": group[0],
        "group": group[1],
        "num_positive": num_positive,
        "num_negative": len(positive) - num_positive,
    }
    names = [f"{name}{part}" for name in ("auroc", "auprc") for part in ("", "_low", "_high")]
    if min(num_positive, len(positive) - num_positive) < FEWEST:
        return row | dict.fromkeys(names)
    found = rank([-allele.delta for allele in alleles], positive, seed=seed, name=":".join(group))
    values = [*asdict(found.auroc).values(), *asdict(found.auprc).values()]
    return row | {name: rounded(value) for name, value in zip(names, values, strict=True)}


def variants_page(result: dict[str, Any]) -> RenderableType:
    """Lay out what `evaluate_variants` returns: a line for each group."""
    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    for name in ("positive", "negative", "AUROC", "95 %", "AUPRC", "95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    kind = "all"
    for row in result["rows"]:
        if row["kind"] != kind:
            kind = row["kind"]
            table.add_row(f"by {kind}")
        cells = [f"{row['num_positive']:,}", f"{row['num_negative']:,}"]
        label = row["group"] if kind == "all" else f"  {row['group']}"
        table.add_row(label, *cells, *_shown(row, "auroc"), *_shown(row, "auprc"))
    title = (
        f"{result['label']} {', '.join(result['positive'])} (positive) against "
        f"{', '.join(result['negative'])}, ranked by {result['score']}"
    )
    notes = [
        "95 %: bootstrap intervals; by chance AUROC is 0.5, AUPRC the share of positives",
        *_notes(result),
    ]
    return Group(
        Text(title, style="bold"),
        Text(f"{result['source']}\n"),
        table,
        Text("\n" + "\n".join(notes)),
    )


def _notes(result: dict[str, Any]) -> list[str]:
    """What is not in the table."""
    notes = []
    if any(row["auroc"] is None for row in result["rows"]):
        notes.append(f"-: fewer than {FEWEST} positives or negatives")
    for name, counts in (("label", result["left_out"]), ("score", result["unscored"])):
        if counts:
            listed = ", ".join(f"{value} {count:,}" for value, count in counts.items())
            meaning = "labelled otherwise" if name == "label" else "without a score"
            notes.append(f"left out, {meaning}: {listed}")
    return notes


def _shown(row: Row, name: str) -> tuple[str, str]:
    """A statistic and its interval."""
    if row[name] is None:
        return "-", ""
    value, low, high = (float(row[f"{name}{part}"] or 0) for part in ("", "_low", "_high"))
    return f"{value:.3f}", f"{low:.3f}-{high:.3f}"


def _plain(value: str) -> str:
    return value.strip("_ ").lower()


def _counted(values: Iterable[str]) -> dict[str, int]:
    """How often each value is there, the most frequent first."""
    return dict(sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0])))
