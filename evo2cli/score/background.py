"""`evo2 score --background`: where a delta stands among those of random variants of its kind.

The file keeps the deltas of each kind that was met, a line each, for all runs with the same model,
genome and windows; a kind that is not there yet is scored first and added.
"""

import json
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.files import open_output, writing
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import VariantRecord
from evo2cli.score.options import ScoreOptions
from evo2cli.score.output import PERCENTILE
from evo2cli.score.strata import random_variants, stratum
from evo2cli.tables import Row, rounded
from stripedhyena2 import StripedHyena2
from stripedhyena2.fingerprint import fingerprint

NULLS = 200  # random variants of a kind
FEWEST = 20  # with a delta; a kind that has fewer tells no percentile

Score = Callable[[VariantRecord], list[Row]]


class Scorer(Protocol):
    """What scores the alleles of a record by windows of so many bases."""

    window: int

    def score(self, record: VariantRecord) -> list[Row]:
        """A row for each allele."""


class Background:
    """Deltas of random variants by kind, kept in a file.

    Args:
        path: The file; it is begun where it is not there.
        settings: All that decides deltas.
        genome: Where random variants are drawn.
        score: Gives their deltas.

    Raises:
        UserError: The file cannot be read or written, or is of other settings.
    """

    def __init__(
        self, path: Path, settings: Sequence[str], genome: Reference, score: Score
    ) -> None:
        self._path, self._genome, self._score = path, genome, score
        self._deltas: dict[str, list[float]] = {}
        first = json.dumps({"background": list(settings), "nulls": NULLS})
        try:
            text = path.read_text() if path.exists() else ""
        except (OSError, UnicodeError) as error:
            raise UserError(f"--background {path}: cannot be read ({error})") from None
        whole, _, torn = text.rpartition("\n")
        header, *lines = whole.splitlines() or [first]
        if header != first or (not whole and not first.startswith(torn)):
            raise UserError(
                f"--background {path}: is of another model, genome, window or strand, or no such "
                "file at all; name another file"
            )
        if torn or not text:
            with open_output(path) as write:
                write(f"{whole or first}\n".encode())
        for number, line in enumerate(lines, start=2):
            try:
                entry = json.loads(line)
                self._deltas[entry["kind"]] = [float(delta) for delta in entry["deltas"]]
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"--background {path}: line {number} is none of its own; delete the file, "
                    "or name another"
                ) from None

    def percentile(self, record: VariantRecord, alternate: bytes, delta: float) -> float | None:
        """Percentage of random variants of the allele's kind with a lower delta, ties half."""
        kind = stratum(self._genome, record, alternate)
        if kind is None:
            return None
        if kind not in self._deltas:
            self._add(kind)
        deltas = self._deltas[kind]
        if len(deltas) < FEWEST:
            return None
        below = (bisect_left(deltas, delta) + bisect_right(deltas, delta)) / 2
        return rounded(100 * below / len(deltas))

    def _add(self, kind: str) -> None:
        """Score random variants of a kind, and keep them."""
        found = []
        for record in islice(random_variants(self._genome, kind), NULLS):
            for row in self._score(record):
                if isinstance(row["EVO2_DELTA"], float):
                    found.append(row["EVO2_DELTA"])
        self._deltas[kind] = sorted(found)
        console.say(f"background: {len(found):,} random variants like {kind} scored")
        with writing(self._path), self._path.open("a") as file:
            file.write(json.dumps({"kind": kind, "deltas": self._deltas[kind]}) + "\n")


def open_background(
    options: ScoreOptions, model: StripedHyena2, genome: Reference, scorer: Scorer
) -> Background | None:
    """The background that was asked for, or None.

    Raises:
        UserError: Its file will not do.
    """
    if options.background is None:
        return None
    contigs = repr([(name, genome.length(name)) for name in genome.names]).encode()
    settings = [
        f"model {fingerprint(model.config, model.state_dict())}",
        f"genome {zlib.crc32(contigs):08x}",
        f"{options.windows} windows of {scorer.window}, strand {options.variant_strand}, "
        f"indels {options.indel_mode}",
    ]
    return Background(options.background, settings, genome, scorer.score)


def with_percentiles(
    background: Background | None, record: VariantRecord, rows: Sequence[Row]
) -> Sequence[Row]:
    """The rows of a record's alleles, with their percentiles where there is a background."""
    if background is None:
        return rows
    ranked = []
    for alternate, row in zip(record.alternates, rows, strict=True):
        delta = row["EVO2_DELTA"]
        known = isinstance(delta, float)
        share = background.percentile(record, alternate, float(delta or 0)) if known else None
        ranked.append({**row, PERCENTILE: share})
    return ranked
