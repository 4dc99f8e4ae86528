"""`evo2 eval pairs`: likelihood of real against perturbed sequences; see docs/eval.md."""

import zlib
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from evo2cli import __version__, console
from evo2cli.errors import UserError
from evo2cli.eval.options import PairsOptions
from evo2cli.eval.report import check_outputs, estimate_columns, format_estimate, write_table
from evo2cli.files import locks_output
from evo2cli.genome.alphabet import upper_dna
from evo2cli.genome.table import cell_text, open_table
from evo2cli.genome.vcf import is_bases
from evo2cli.journal import open_journal
from evo2cli.models import open_model
from evo2cli.ranking import RESAMPLES, mean_estimate
from evo2cli.tables import Row, rounded
from stripedhyena2.dna import strand_of
from stripedhyena2.fingerprint import fingerprint
from stripedhyena2.scoring import mean_logprob, sequence_logprob

MIN_BASES = 2  # the first base has no prediction


@dataclass(frozen=True)
class Pair:
    """A real and a perturbed sequence, upper-case DNA, and their group or None."""

    real: bytes
    perturbed: bytes
    group: str | None


@locks_output
def evaluate_pairs(options: PairsOptions) -> dict[str, Any]:
    """Compare the log-likelihoods of both sequences of each pair.

    Returns:
        evaluation, source, model, fingerprint, strand, by, seed, resamples; rows for all pairs and
        for each group: see `group_row`.

    Raises:
        UserError: The table or the model cannot be used.
        NonFiniteError: A log-likelihood is not a finite number.
    """
    check_outputs(options, options.source)
    pairs = read_pairs(options)
    model = open_model(options)
    identity = fingerprint(model.config, model.state_dict())
    total = partial(sequence_logprob, model)
    differences: dict[str | None, list[tuple[float, float]]] = defaultdict(list)
    settings = ["evo2 eval pairs", __version__, identity, options.strand]
    with (
        open_journal(options.output, settings) as recall,
        console.progress("pairs", len(pairs), "pairs") as bar,
    ):
        for number, pair in enumerate(pairs, start=1):

            def logprobs(pair: Pair = pair, number: int = number) -> list[float]:
                return [
                    mean_logprob(
                        model,
                        [strand_of(bases, strand) for strand in options.strand.single],
                        f"pair {number}",
                        total,
                    )
                    for bases in (pair.real, pair.perturbed)
                ]

            key = f"{zlib.crc32(pair.real):08x} {zlib.crc32(pair.perturbed):08x}"
            real, perturbed = recall(key, logprobs)
            by_base = real / (len(pair.real) - 1) - perturbed / (len(pair.perturbed) - 1)
            for group in dict.fromkeys((None, pair.group)):  # None: all pairs
                differences[group].append((real - perturbed, by_base))
            bar.advance()
    rows = [
        group_row("all" if name is None else name, values, options.seed)
        for name, values in differences.items()
    ]
    result = {
        "evaluation": "pairs",
        "evo2cli": __version__,
        "source": str(options.source),
        "model": options.model,
        "fingerprint": identity,
        "strand": options.strand,
        "by": options.by,
        "seed": options.seed,
        "resamples": RESAMPLES,
        "rows": rows,
    }
    write_table(options.output, result, rows)
    return result


def read_pairs(options: PairsOptions) -> list[Pair]:
    """Read the table.

    Raises:
        UserError: It lacks a column, has no rows, or a cell is not a sequence of DNA.
    """
    path = options.source
    table = open_table(path)
    pairs = []
    with closing(table.rows):
        columns = [options.real, options.perturbed, *([options.by] if options.by else [])]
        index = [
            table.column(name, "name them by --real, --perturbed and --by") for name in columns
        ]
        for number, row in table.rows:
            cells = [cell_text(row[at]) for at in index]
            sequences = [text.encode(errors="surrogateescape") for text in cells[:2]]
            for name, text, sequence in zip(columns, cells, sequences, strict=False):
                if len(sequence) < MIN_BASES or not is_bases(sequence):
                    raise UserError(
                        f"{table.origin(number)}: {name} {text[:40]!r} is not a sequence of at "
                        f"least {MIN_BASES} bases"
                    )
            real, perturbed = map(upper_dna, sequences)
            pairs.append(Pair(real, perturbed, cells[2] if options.by else None))
    if not pairs:
        raise UserError(f"{path}: has no pairs")
    return pairs


def group_row(name: str, differences: Sequence[tuple[float, float]], seed: int) -> Row:
    """The results of one group.

    Args:
        name: Name of the group.
        differences: For each pair, the log-likelihood of the real minus that of the perturbed
            sequence in nats, and the same difference of the means per base.
        seed: Seed of the bootstrap.

    Returns:
        group, pairs; share, the share of pairs whose real sequence is likelier (ties count half),
        with its 95 % interval; share_per_base, the same by the means per base; difference, the mean
        difference in nats.
    """
    values = np.asarray(differences)
    wins = (np.sign(values) + 1) / 2
    share = mean_estimate(wins[:, 0], seed=seed, name=name)
    return {
        "group": name,
        "pairs": len(wins),
        **estimate_columns("share", share),
        "share_per_base": rounded(float(wins[:, 1].mean())),
        "difference": rounded(float(values[:, 0].mean())),
    }


def pairs_page(result: dict[str, Any]) -> RenderableType:
    """Lay out the result of `evaluate_pairs`."""
    names = ("pairs", "share", "95 %", "per base", "nats")
    table = console.number_table(result["by"] or "", *names)
    for row in result["rows"]:
        table.add_row(
            Text(row["group"]),
            f"{row['pairs']:,}",
            *format_estimate(row, "share"),
            f"{row['share_per_base']:.3f}",
            f"{row['difference']:.3f}",
        )
    return Group(
        Text(f"{result['model']}: real against perturbed sequences of {result['source']}", "bold"),
        Text("share of pairs whose real sequence is likelier, 0.5 by chance\n"),
        table,
    )
