"""`evo2 eval continuation`: accuracy of greedy continuations of genomic windows; see docs/eval.md.

    window = context + truth     `context` bases as the prompt, then `bases` to predict

All contexts of a window end at the same base, so the bases to predict are the same.

C bases of a context, K = 4**order k-mers.
"""

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.text import Text

from evo2cli import __version__, console
from evo2cli.errors import UserError, counted
from evo2cli.eval.draws import draw_window
from evo2cli.eval.options import DEFAULT_WINDOWS, ContinuationOptions
from evo2cli.eval.plots import draw_continuation
from evo2cli.eval.report import (
    check_outputs,
    estimate_columns,
    format_estimate,
    format_length,
    write_table,
)
from evo2cli.files import locks_output
from evo2cli.genome.alphabet import ACGT, upper_dna
from evo2cli.genome.reference import Reference
from evo2cli.genome.source import STDIN, first_bytes
from evo2cli.genome.table import cell_text, open_table
from evo2cli.genome.vcf import is_bases
from evo2cli.journal import open_journal
from evo2cli.models import memory_explained, open_model, warn_beyond_context
from evo2cli.ranking import RESAMPLES, mean_estimate
from evo2cli.tables import Row
from stripedhyena2 import StripedHyena2
from stripedhyena2.errors import NonFiniteError
from stripedhyena2.fingerprint import fingerprint
from stripedhyena2.generation import Alphabet, Request, Rows, Sample
from stripedhyena2.progress import Progress, ignore_progress
from stripedhyena2.sampling import Sampler, Uniforms

ROWS = 16  # batch size; fixed, because it may change the last bits of the logits
ORDER = 8  # maximum order of the Markov model

_CODE = np.zeros(256, np.int64)
_CODE[list(ACGT)] = range(4)


@dataclass(frozen=True)
class Window:
    """The context and the bases to predict, upper-case A, C, G and T, and their group."""

    group: str
    bases: bytes


@dataclass(frozen=True)
class Accuracy:
    """The accuracy on one window, of the model and of the Markov model."""

    model: float
    markov: float


@locks_output
def evaluate_continuation(
    options: ContinuationOptions, open_model: Callable[..., StripedHyena2] = open_model
) -> dict[str, Any]:
    """Continue windows greedily and compare with the bases that follow in the sequence.

    Args:
        options: Windows, model and output.
        open_model: Loads the model, after the inputs have been checked.

    Returns:
        evaluation, model, fingerprint, sources, by, bases, seed, resamples, left_out (sequences
        that are too short or have other letters than A, C, G and T); rows: see `group_row`.

    Raises:
        UserError: The windows, the model or an output cannot be used.
        NonFiniteError: A logit is not a finite number.
    """
    check_outputs(options, *options.sources)
    windows, num_left_out = read_windows(options)
    if num_left_out:
        console.warn(
            f"{counted(num_left_out, 'sequence')} left out: shorter than "
            f"{options.window_length:,} bases, or with letters other than A, C, G and T "
            f"among the last {options.window_length:,}"
        )
    model = open_model(options)
    longest = f"--contexts {max(options.context_lengths):,}, with --bases {options.bases}"
    warn_beyond_context(model, options.window_length, longest)
    identity = fingerprint(model.config, model.state_dict())
    # By group (None: all windows) and context length.
    accuracies: dict[tuple[str | None, int], list[Accuracy]] = defaultdict(list)
    settings = ["evo2 eval continuation", __version__, identity, options.bases]
    total = len(windows) * sum(length + options.bases for length in options.context_lengths)
    with (
        memory_explained(f"--contexts {options.contexts} on {options.device}", "shorten them"),
        open_journal(options.output, settings) as recall,
        console.progress("continuation", total, "bases") as bar,
    ):
        for length in options.context_lengths:
            writer = Writer(model, length, options.bases)
            for first in range(0, len(windows), ROWS):
                batch = windows[first : first + ROWS]
                texts = [window.bases[-length - options.bases :] for window in batch]
                contexts = [text[:length] for text in texts]
                key = f"{length} {zlib.crc32(b' '.join(texts)):08x}"
                written = recall(key, partial(writer.write, contexts, bar.advance))
                bar.note({"context": f"{length:,}"})
                for window, text, answer in zip(batch, texts, written, strict=True):
                    markov = continue_by_counts(text[:length], options.bases)
                    truth = text[length:]
                    accuracy = Accuracy(
                        share_equal(answer.encode(), truth), share_equal(markov, truth)
                    )
                    for group in (None, window.group):
                        accuracies[group, length].append(accuracy)
    names: list[str | None] = [*dict.fromkeys(window.group for window in windows)]
    if len(names) > 1:  # a single group is the same as all windows
        names.insert(0, None)
    rows = [
        group_row("all" if name is None else name, length, accuracies[name, length], options.seed)
        for name in names
        for length in options.context_lengths
    ]
    result = {
        "evaluation": "continuation",
        "evo2cli": __version__,
        "model": options.model,
        "fingerprint": identity,
        "sources": [str(source) for source in options.sources],
        "by": options.by,
        "bases": options.bases,
        "seed": options.seed,
        "resamples": RESAMPLES,
        "left_out": num_left_out,
        "rows": rows,
    }
    write_table(options.output, result, rows)
    if options.plot is not None:
        draw_continuation(options.plot, result)
    return result


def read_windows(options: ContinuationOptions) -> tuple[list[Window], int]:
    """Read the windows, each with the longest context, and count the sequences left out.

    Raises:
        UserError: A file cannot be used, or there is no window.
    """
    windows: list[Window] = []
    num_left_out = 0
    for source in options.sources:
        if first_bytes(source).lstrip().startswith(b">"):
            windows += _draw_windows(source, options)
            continue
        if options.windows is not None:
            raise UserError(
                f"--windows {options.windows}: applies only to FASTA; all rows of the table "
                f"{source} are used"
            )
        for group, bases in _read_rows(source, options):
            window = upper_dna(bases)[-options.window_length :]
            if len(window) < options.window_length or window.translate(None, ACGT):
                num_left_out += 1
            else:
                windows.append(Window(group, window))
    if not windows:
        raise UserError(
            f"{options.sources[0]}: has no sequence that ends in {options.window_length:,} "
            "bases A, C, G and T; give shorter --contexts"
        )
    return windows, num_left_out


def _draw_windows(source: Path, options: ContinuationOptions) -> Iterator[Window]:
    if options.by:
        raise UserError(f"--by {options.by}: {source} is a FASTA, which has no columns")
    if source == STDIN:
        raise UserError("-: windows are drawn from a file, not from stdin")
    length = options.window_length
    with Reference.open(source) as genome:
        for index in range(options.windows or DEFAULT_WINDOWS):
            label = ("continuation", options.seed, length, index)
            yield Window(str(source), draw_window(genome, source, length, *label))


def _read_rows(source: Path, options: ContinuationOptions) -> Iterator[tuple[str, bytes]]:
    """The group and the sequence of each row of a table."""
    table = open_table(source)
    with closing(table.rows):
        columns = [options.column, *([options.by] if options.by else [])]
        index = [table.column(name, "name them by --column and --by") for name in columns]
        for number, row in table.rows:
            text, *groups = (cell_text(row[at]) for at in index)
            bases = text.encode(errors="surrogateescape")
            if not is_bases(bases):
                raise UserError(
                    f"{table.origin(number)}: {options.column} {text[:40]!r} is not a sequence of "
                    "bases"
                )
            yield (groups[0] if groups else str(source)), bases


class Writer:
    """Greedy decoding over A, C, G and T for contexts of one length.

    A continuation does not depend on the others in its batch.

    Args:
        model: In inference mode.
        length: Bases of a context.
        num_bases: Bases to generate.
    """

    def __init__(self, model: StripedHyena2, length: int, num_bases: int) -> None:
        self._model, self._length, self._num_bases = model, length, num_bases
        self._rows: Rows | None = None

    def write(self, contexts: Sequence[bytes], progress: Progress = ignore_progress) -> list[str]:
        """The continuation of each of up to `ROWS` contexts.

        Raises:
            NonFiniteError: A logit is NaN or infinite.
        """
        prompts = [torch.tensor(list(context)) for context in contexts]
        if self._rows is None:
            self._rows = Rows.within_memory(
                self._model, ROWS, self._length + self._num_bases, prompt_L=prompts[0]
            )
        samples: list[Sample] = []
        waiting = list(reversed(prompts))
        while waiting or self._rows.samples:
            if waiting and self._rows.has_free_row:
                request = Request(
                    waiting.pop(), self._num_bases, Uniforms(0), Alphabet(tuple(ACGT))
                )
                sample = self._rows.add(request, Sampler(temperature=0), len(samples))
                samples.append(sample)
                grown = [sample]
                progress(self._length)
            else:
                grown = self._rows.step()
            progress(len(grown))
            for sample in grown:
                if sample.problem:
                    raise NonFiniteError(f"a context of {self._length:,} bases: {sample.problem}")
        return [bytes(sample.ids).decode() for sample in samples]


def continue_by_counts(context: bytes, num_bases: int) -> bytes:
    """Continue a context by a Markov model estimated from the context alone.

    Each base is the one that most often follows the last `ORDER` bases in the context, backing off
    to fewer bases if these do not occur before a base. Ties go to the first in the alphabet. This
    baseline measures how far composition and repeats alone go.
    """
    codes_C = _CODE[np.frombuffer(context, np.uint8)]
    highest = min(ORDER, len(context))
    counts = [_count_followers(codes_C, order) for order in range(highest + 1)]
    last = codes_C.tolist()
    for _ in range(num_bases):
        for order in range(highest, -1, -1):
            row = 0
            for code in last[len(last) - order :]:
                row = 4 * row + code
            if counts[order][row].any():
                break
        last.append(int(counts[order][row].argmax()))
    return bytes(ACGT[code] for code in last[len(context) :])


def _count_followers(codes_C: NDArray[np.int64], order: int) -> NDArray[np.int64]:
    """How often each base follows each k-mer of `order` bases, [K, 4]."""
    rows = np.zeros(len(codes_C) - order, np.int64)
    for distance in range(order, 0, -1):
        rows = 4 * rows + codes_C[order - distance : len(codes_C) - distance]
    pairs = 4 * rows + codes_C[order:]
    return np.bincount(pairs, minlength=4 ** (order + 1)).reshape(-1, 4)


def share_equal(written: bytes, truth: bytes) -> float:
    """The fraction of positions with the same base."""
    return sum(one == other for one, other in zip(written, truth, strict=True)) / len(truth)


def group_row(name: str, length: int, accuracies: Sequence[Accuracy], seed: int) -> Row:
    """The results of one group with contexts of one length.

    Returns:
        group, context, windows; accuracy of the model; markov, that of the Markov model; gain, the
        paired difference; each with its 95 % bootstrap interval over windows.
    """
    columns = {
        "accuracy": [accuracy.model for accuracy in accuracies],
        "markov": [accuracy.markov for accuracy in accuracies],
        "gain": [accuracy.model - accuracy.markov for accuracy in accuracies],
    }
    row: Row = {"group": name, "context": length, "windows": len(accuracies)}
    for column, values in columns.items():
        estimate = mean_estimate(values, seed=seed, name=f"{name} {length}")
        row |= estimate_columns(column, estimate)
    return row


def continuation_page(result: dict[str, Any]) -> RenderableType:
    """Lay out the result of `evaluate_continuation`: a line for each group and context."""
    names = ("context", "windows", "accuracy", "95 %", "Markov", "95 %", "gain", "95 %")
    table = console.number_table(result["by"] or "", *names)
    for row in result["rows"]:
        cells = [
            text for name in ("accuracy", "markov", "gain") for text in format_estimate(row, name)
        ]
        table.add_row(
            Text(row["group"]), format_length(row["context"]), f"{row['windows']:,}", *cells
        )
    return Group(
        Text(
            f"{result['model']}: the next {counted(result['bases'], 'base')}, greedy", style="bold"
        ),
        Text("share of right bases, mean over windows\n"),
        table,
    )
