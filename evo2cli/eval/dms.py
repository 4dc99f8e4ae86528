"""`evo2 eval dms`: correlation of scores with a deep mutational scan; see docs/eval.md.

The score of a protein variant is EVO2_DELTA: the log-likelihood of the mutant coding sequence minus
that of the wild type, in nats.

V variants.
"""

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import product
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from evo2cli import __version__, console
from evo2cli.errors import UserError
from evo2cli.eval.options import CodonChoice, DMSOptions
from evo2cli.eval.report import check_outputs, estimate_columns, format_estimate, write_table
from evo2cli.eval.variants import DELTA, MIN_CLASS
from evo2cli.files import check_file, check_output, locks_output, open_output
from evo2cli.finetune.metrics import measure
from evo2cli.finetune.tasks import Labels, Task
from evo2cli.genome.coding import Change, CodingSequence, parse_mutant, read_coding_sequence
from evo2cli.genome.reference import Reference
from evo2cli.genome.table import cell_flag, cell_number, cell_text, open_table
from evo2cli.genome.vcf import Value
from evo2cli.genome.windows import Window
from evo2cli.journal import open_journal, recall_all
from evo2cli.models import memory_explained, open_model, warn_beyond_context
from evo2cli.options import Strand
from evo2cli.ranking import RESAMPLES, Estimate, rank
from evo2cli.score.alleles import DEFAULT_WINDOW
from evo2cli.score.prefixes import Pair, WindowReader
from evo2cli.tables import LARGEST, Row, cell, rounded, table_line
from stripedhyena2 import StripedHyena2
from stripedhyena2.fingerprint import fingerprint
from stripedhyena2.scoring import require_finite

MAX_CHOICES = 256  # combinations of codons per variant
Choices = Sequence[dict[int, bytes]]  # combinations of new codons, each by site
_NUMBERS = Labels(Task.REGRESS, ("score",))


@dataclass(frozen=True)
class Measured:
    """A row of the table.

    Attributes:
        mutant: The amino-acid changes as written in the table.
        changes: The parsed changes.
        score: Measured score; NaN if missing.
        is_fit: Binary label; None if missing.
        delta: EVO2_DELTA from the table; NaN if missing.
        cells: All cells of the row.
    """

    mutant: str
    changes: Sequence[Change]
    score: float
    is_fit: bool | None
    delta: float
    cells: Sequence[Value]


@locks_output
def evaluate_dms(
    options: DMSOptions, open_model: Callable[..., StripedHyena2] = open_model
) -> dict[str, Any]:
    """Score the variants, unless the table has EVO2_DELTA, and correlate with the measurements.

    Args:
        options: Table, coding sequence, model and output.
        open_model: Loads the model, after the inputs have been checked.

    Returns:
        evaluation, source; cds, codons, model, fingerprint and strand, None if the table had
        EVO2_DELTA; seed, resamples; left_out (variants without a measurement) and unscored (their
        codons are farther apart than half a window); rows: see `group_row`.

    Raises:
        UserError: The table, the coding sequence, the model or an output cannot be used.
        NonFiniteError: A log-likelihood is not a finite number.
    """
    inputs = [path for path in (options.source, options.cds, options.reference) if path]
    check_outputs(options, *inputs)
    if options.scored is not None:
        check_file(options.scored, "--scored", (".tsv",))
        check_output(options.scored, *inputs, option="--scored")
    names, variants = read_measured(options)
    identity = None
    if DELTA in names:
        console.say(f"{options.source}: already has {DELTA}; nothing is scored")
        if options.scored is not None:
            raise UserError(f"--scored {options.scored}: {options.source} already has {DELTA}")
        deltas = [variant.delta for variant in variants]
    else:
        with ExitStack() as stack:
            genome = None
            if options.reference is not None:
                genome = stack.enter_context(Reference.open(options.reference))
            if options.cds is None:
                raise UserError(
                    f"{options.source}: has no {DELTA}; give the coding sequence with --cds"
                )
            sequence = read_coding_sequence(options.cds, options.cds_name, genome)
            choices = codons_of(options, sequence, variants)
            model = open_model(options)
            identity = fingerprint(model.config, model.state_dict())
            scorer = MutantScorer(model, sequence, genome, options)
            deltas = score_all(options, identity, scorer, variants, choices)
    if options.scored is not None:
        write_scored(options.scored, names, variants, deltas)
    rows = group_rows(variants, deltas, options.seed)
    result = {
        "evaluation": "dms",
        "evo2cli": __version__,
        "source": str(options.source),
        "cds": None if identity is None else str(options.cds),
        "codons": None if identity is None else options.codons,
        "model": None if identity is None else options.model,
        "fingerprint": identity,
        "strand": None if identity is None else options.strand,
        "seed": options.seed,
        "resamples": RESAMPLES,
        "left_out": sum(math.isnan(variant.score) for variant in variants),
        "unscored": sum(map(math.isnan, deltas)),
        "rows": rows,
    }
    write_table(options.output, result, rows)
    return result


def read_measured(options: DMSOptions) -> tuple[list[str], list[Measured]]:
    """Read the table: the names of its columns, and its rows.

    Raises:
        UserError: The table lacks a column or has no rows, or a cell cannot be read.
    """
    path, table = options.source, open_table(options.source)
    variants = []
    with closing(table.rows):
        mutant_at = table.column(options.mutant, "name it by --mutant")
        score_at = table.column(options.measured, "name it by --measured")
        label_at = delta_at = None
        if options.label is not None or options.usual_label in table.types:
            label_at = table.column(options.label or options.usual_label, "name it by --label")
        if DELTA in table.types:
            delta_at = table.column(DELTA)
        for number, row in table.rows:
            where = table.origin(number)
            mutant = cell_text(row[mutant_at])
            try:
                changes = parse_mutant(mutant, options.shift)
            except ValueError as error:
                raise UserError(f"{where}: {options.mutant} {error}") from None
            is_fit = None
            if label_at is not None and cell_text(row[label_at]):
                is_fit = cell_flag(where, table.names[label_at], row[label_at])
            score = cell_number(where, options.measured, row[score_at])
            delta = math.nan if delta_at is None else cell_number(where, DELTA, row[delta_at])
            for name, value in ((options.measured, score), (DELTA, delta)):
                if abs(value) > LARGEST:
                    raise UserError(
                        f"{where}: {name} {value} is not a finite number of at most {LARGEST:g}"
                    )
            variants.append(Measured(mutant, changes, score, is_fit, delta, row))
    if not variants:
        raise UserError(f"{path}: has no variants")
    return table.names, variants


def codons_of(
    options: DMSOptions, sequence: CodingSequence, variants: Sequence[Measured]
) -> list[list[dict[int, bytes]]]:
    """For each variant all combinations of new codons, by their sites.

    Raises:
        UserError: A variant does not fit the sequence, or has more than `MAX_CHOICES` combinations.
    """
    is_nearest = options.codons is CodonChoice.NEAREST
    found = []
    for variant in variants:
        where = f"{options.source}: {options.mutant} {variant.mutant}"
        try:
            codons = [sequence.new_codons(c, nearest=is_nearest) for c in variant.changes]
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        count = math.prod(map(len, codons))
        if count > MAX_CHOICES:
            raise UserError(
                f"{where}: has {count:,} combinations of codons, more than {MAX_CHOICES}; use "
                "--codons nearest"
            )
        sites = [change.site for change in variant.changes]
        found.append([dict(zip(sites, chosen, strict=True)) for chosen in product(*codons)])
    return found


class MutantScorer:
    """Scores mutants: delta = log P(mutant sequence) - log P(wild-type sequence), in nats.

    Args:
        model: In inference mode.
        sequence: The wild-type coding sequence.
        genome: The genome that contains it; None to score the coding sequence alone.
        options: Strand and window.

    Attributes:
        sequence: The coding sequence.
        window: Bases of a window of the genome.
    """

    def __init__(
        self,
        model: StripedHyena2,
        sequence: CodingSequence,
        genome: Reference | None,
        options: DMSOptions,
    ) -> None:
        self.sequence = sequence
        self._model, self._genome = model, genome
        self.window = options.window or min(DEFAULT_WINDOW, model.config.context)
        self._strands = options.strand.single
        self._reader = WindowReader(model, self.window, is_anchored=False)
        length = self.window if genome else len(sequence.bases)
        warn_beyond_context(model, length, f"a window of {length:,} bases")

    def deltas(self, variants: Sequence[tuple[Choices, str]]) -> Iterator[float | None]:
        """Compute the delta of each variant, the mean over codon combinations and strands.

        On a GPU, windows of several variants are batched.

        Args:
            variants: Combinations of new codons, each by site; and the name of the variant for
                error messages.

        Yields:
            The delta; None if the codons are farther apart than half a window of the genome.

        Raises:
            NonFiniteError: A log-likelihood is NaN or infinite.
        """
        queued = ((name, self._queue(choices)) for choices, name in variants)
        for name, pairs in self._reader.read_all(queued):
            yield None if pairs is None else self._mean(pairs, name)

    def _queue(self, choices: Choices) -> list[tuple[Pair, Window]] | None:
        """Queue the windows of a variant; each pair comes with its mutant window."""
        pairs = []
        for codons in choices:
            windows = self.sequence.windows(codons, self._genome, self.window)
            if windows is None:
                return None
            for strand in self._strands:
                stranded = windows
                if strand is Strand.REVERSE:
                    stranded = windows[0].reverse_complement(), windows[1].reverse_complement()
                pairs.append((self._reader.windows(*stranded), stranded[1]))
        return pairs

    def _mean(self, pairs: Sequence[tuple[Pair, Window]], name: str) -> float:
        """The mean delta of pairs of windows that have been scored."""
        deltas = []
        for pair, window in pairs:
            reference, alternate = pair.logprobs
            require_finite(alternate - reference, self._model, window.sequence, name)
            deltas.append(alternate - reference)
        return fmean(deltas)


def score_all(
    options: DMSOptions,
    identity: str,
    scorer: MutantScorer,
    variants: Sequence[Measured],
    choices: Sequence[list[dict[int, bytes]]],
) -> list[float]:
    """The delta of each variant in nats; NaN if it cannot be scored.

    Variants are scored in the order of their sites, so that those of a site share their prefix.
    """
    settings = [
        *("evo2 eval dms", __version__, identity, options.codons, options.strand),
        *(scorer.window, options.shift),
        zlib.crc32(scorer.sequence.bases),
        [scorer.sequence.contig, *scorer.sequence.positions[:1], str(options.reference)],
    ]
    deltas = [math.nan] * len(variants)
    order = sorted(range(len(variants)), key=lambda index: [*choices[index][0]])
    kept = options.scored if options.output is None else options.output
    with (
        memory_explained(f"{options.source} on {options.device}", "use a genome and --window"),
        open_journal(kept, settings) as recall,
        console.progress("dms", len(variants), "variants") as bar,
    ):
        jobs = [(choices[index], variants[index].mutant) for index in order]
        results = recall_all(recall, jobs, scorer.deltas, key=itemgetter(1))
        for index, delta in zip(order, results, strict=True):
            deltas[index] = math.nan if delta is None else rounded(delta)
            bar.advance()
    return deltas


def write_scored(
    path: Path, names: Sequence[str], variants: Sequence[Measured], deltas: Sequence[float]
) -> None:
    """Write the rows of the table, with EVO2_DELTA as the last column.

    Raises:
        UserError: The file cannot be written.
    """
    with open_output(path) as write:
        write(table_line([*names, DELTA]))
        for variant, delta in zip(variants, deltas, strict=True):
            texts = [cell_text(value) for value in variant.cells]
            write(table_line([*texts, cell(None if math.isnan(delta) else delta)]))


def group_rows(variants: Sequence[Measured], deltas: Sequence[float], seed: int) -> list[Row]:
    """One row for all variants and, if these differ, one for each number of changes.

    Raises:
        UserError: No variant has both a measurement and a delta.
    """
    groups: dict[str, list[tuple[Measured, float]]] = {"all": []}
    pairs = sorted(zip(variants, deltas, strict=True), key=lambda pair: len(pair[0].changes))
    for variant, delta in pairs:
        if math.isnan(delta) or math.isnan(variant.score):
            continue
        count = len(variant.changes)
        for group in ("all", f"{count} change{'s' * (count > 1)}"):
            groups.setdefault(group, []).append((variant, delta))
    if not groups["all"]:
        raise UserError("no variant has both a measurement and a delta")
    if len(groups) == 2:
        groups = {"all": groups["all"]}
    return [group_row(name, members, seed) for name, members in groups.items()]


def group_row(name: str, pairs: Sequence[tuple[Measured, float]], seed: int) -> Row:
    """The results of one group.

    Args:
        name: Name of the group.
        pairs: Measured variants and their deltas.
        seed: Seed of the bootstrap.

    Returns:
        group, variants; spearman, the rank correlation of deltas and measurements; positive and
        negative, the numbers of labels; auroc of the deltas. spearman and auroc have 95 %
        intervals, and are None with fewer than `MIN_CLASS` variants, or positives or negatives.
    """
    spearman: Estimate | None = None
    if len(pairs) >= MIN_CLASS:
        truth, predicted = (
            np.array(values, np.float64)[:, None]
            for values in zip(*((variant.score, delta) for variant, delta in pairs), strict=True)
        )
        spearman = measure(_NUMBERS, truth, predicted, seed=seed)["spearman"]
    labelled = [(delta, variant.is_fit) for variant, delta in pairs if variant.is_fit is not None]
    num_positive = sum(is_fit for _, is_fit in labelled)
    num_negative = len(labelled) - num_positive
    auroc: Estimate | None = None
    if min(num_positive, num_negative) >= MIN_CLASS:
        auroc = rank(*zip(*labelled, strict=True), seed=seed, name=name).auroc
    return {
        "group": name,
        "variants": len(pairs),
        **estimate_columns("spearman", spearman),
        "positive": num_positive,
        "negative": num_negative,
        **estimate_columns("auroc", auroc),
    }


def dms_page(result: dict[str, Any]) -> RenderableType:
    """Lay out the result of `evaluate_dms`."""
    table = console.number_table("", "variants", "Spearman", "95 %", "AUROC", "95 %")
    for row in result["rows"]:
        estimates = [text for name in ("spearman", "auroc") for text in format_estimate(row, name)]
        table.add_row(row["group"], f"{row['variants']:,}", *estimates)
    title = f"{result['source']}: measured against {DELTA}"
    if result["model"] is not None:
        title += f" of {result['model']}, {result['codons']} codon"
        title += "s" * (result["codons"] == "all")
    notes = ["95 %: bootstrap intervals over variants; by chance Spearman is 0 and AUROC 0.5"]
    if any(row[name] is None for row in result["rows"] for name in ("spearman", "auroc")):
        notes.append(f"-: fewer than {MIN_CLASS} variants, or positives or negatives")
    for count, why in (
        (result["left_out"], "without a measurement"),
        (result["unscored"], "without a score"),
    ):
        if count:
            notes.append(f"left out, {why}: {count:,}")
    return Group(Text(title, style="bold"), Text(), table, Text("\n" + "\n".join(notes)))
