"""`--background`: the percentile of EVO2_DELTA among random variants of the same kind.

The file has a line with the deltas of each kind, for all runs with the same model, genome, windows
and strand. Variants of a kind that is not in the file are scored when they are first needed, and
added.
"""

import json
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from evo2cli import console
from evo2cli.errors import UserError, counted
from evo2cli.files import atomic_path, writing
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import VariantRecord
from evo2cli.score.alleles import VariantScorer
from evo2cli.score.output import PERCENTILE
from evo2cli.score.strata import random_variants, stratum
from evo2cli.tables import Row, rounded
from stripedhyena2.fingerprint import fingerprint

NULLS = 200  # random variants of each kind
MIN_NULLS = 20  # with a score; with fewer, a kind has no percentiles

ScoreAll = Callable[[Sequence[VariantRecord]], Iterable[list[Row]]]


class Background:
    """Deltas of random variants by kind, cached in a file.

    Args:
        path: The file; it is created if it is missing.
        settings: Everything that the deltas depend on.
        genome: Genome from which random variants are drawn.
        score_all: Scores records: yields the rows of each.

    Raises:
        UserError: The file cannot be read or written, or was made with other settings.
    """

    def __init__(
        self, path: Path, settings: Sequence[str], genome: Reference, score_all: ScoreAll
    ) -> None:
        self._path, self._genome, self._score_all = path, genome, score_all
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
                f"--background {path}: was made with another model, genome, window or strand, or "
                "is not a background file; name another file"
            )
        if torn or not text:
            with writing(path), atomic_path(path, wait=True) as part:  # shards share the file
                part.write_text(f"{whole or first}\n")
        for number, line in enumerate(lines, start=2):
            try:
                entry = json.loads(line)
                self._deltas[entry["kind"]] = [float(delta) for delta in entry["deltas"]]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise UserError(
                    f"--background {path}: line {number} is not valid; delete the file, or name "
                    "another one"
                ) from None

    def percentile(self, record: VariantRecord, alternate: bytes, delta: float) -> float | None:
        """Percentage of random variants of the same kind with a lower delta; ties count half.

        None if the allele has no kind, or the kind has too few random variants.
        """
        kind = stratum(self._genome, record, alternate)
        if kind is None:
            return None
        for _ in self._add(kind):
            pass
        deltas = self._deltas[kind]
        if len(deltas) < MIN_NULLS:
            return None
        below = (bisect_left(deltas, delta) + bisect_right(deltas, delta)) / 2
        return rounded(100 * below / len(deltas))

    def prepare(self, record: VariantRecord) -> Iterator[None]:
        """Score the random variants that the percentiles of a record need, one per step."""
        for alternate in record.alternates:
            kind = stratum(self._genome, record, alternate)
            if kind is not None:
                yield from self._add(kind)

    def _add(self, kind: str) -> Iterator[None]:
        """Score random variants of a kind and add them to the file, unless they are known."""
        if kind in self._deltas:
            return
        records = list(islice(random_variants(self._genome, kind), NULLS))
        deltas: list[float] = []
        for rows in self._score_all(records):
            values = [row["EVO2_DELTA"] for row in rows]
            deltas += [value for value in values if isinstance(value, float)]
            yield
            if kind in self._deltas:  # another caller has added it meanwhile
                return
        self._deltas[kind] = sorted(deltas)
        console.say(f"background: {counted(len(deltas), 'random variant')} like {kind} scored")
        with writing(self._path), self._path.open("a") as file:
            file.write(json.dumps({"kind": kind, "deltas": self._deltas[kind]}) + "\n")

    def add_percentiles(self, record: VariantRecord, rows: Sequence[Row]) -> Sequence[Row]:
        """The rows of the alleles of a record, with `PERCENTILE` for those that have a delta."""
        ranked = []
        for alternate, row in zip(record.alternates, rows, strict=True):
            delta, percentile = row["EVO2_DELTA"], None
            if isinstance(delta, float):
                percentile = self.percentile(record, alternate, delta)
            ranked.append({**row, PERCENTILE: percentile})
        return ranked


def open_background(path: Path, scorer: VariantScorer) -> Background:
    """Open or create the background file for the deltas of a scorer.

    Raises:
        UserError: As `Background`.
    """
    model, genome, options = scorer.model, scorer.genome, scorer.options
    contigs = repr([(name, genome.length(name)) for name in genome.names]).encode()
    settings = [
        f"model {fingerprint(model.config, model.state_dict())}",
        f"genome {zlib.crc32(contigs):08x}",
        f"{options.windows} windows of {scorer.window}, strand {options.variant_strand}, "
        f"indels {options.indel_mode}{', next base' * options.is_next_base}"
        f"{'' if options.after is None else f', {options.after} bases after'}",
    ]
    return Background(path, settings, genome, scorer.score_all)
