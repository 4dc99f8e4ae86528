"""Convert FASTA or JSON lines to a token set, in one process or by several workers."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from evo2cli import __version__, console
from evo2cli.data.splits import SPLITS, SplitRule
from evo2cli.data.token_writer import MANIFEST, TokenWriter
from evo2cli.data.tokens import TokenSet
from evo2cli.errors import UserError, counted
from evo2cli.files import locked, writing
from evo2cli.genome.source import STDIN, is_file
from evo2cli.tokenize.options import TokenizeOptions
from evo2cli.tokenize.pieces import Piece, cut_into_pieces
from evo2cli.tokenize.reader import PieceReader, Tally
from evo2cli.tokenize.tasks import Hashes, hash_files, read_part, run_numbered
from evo2cli.workers import Advance, Task, WorkerError, run_tasks
from stripedhyena2.progress import ignore_progress

_DEFAULT_VALID_FRACTION = 0.05


def tokenize_files(options: TokenizeOptions, *, quiet: bool = False) -> dict[str, Any]:
    """Write the sequences of FASTA files, or the texts of .jsonl files, as a token set.

    An existing token set of the same inputs (by name and hash) with the same options is left as it
    is. FASTA can also come from stdin (`-`) and pipes.

    Args:
        options: Options of the command.
        quiet: Print nothing about an existing token set.

    Returns:
        The manifest.

    Raises:
        UserError: An input is broken or not DNA, an option is out of range, or the output exists.
    """
    output, inputs = options.output, [*options.files, *options.valid]
    valid_fraction = options.valid_fraction
    if valid_fraction is None:
        valid_fraction = 0.0 if options.valid else _DEFAULT_VALID_FRACTION
    rule = SplitRule(valid_fraction, options.test_fraction)
    facts = {
        "made_by": f"evo2cli {__version__}",
        "options": {**asdict(rule), "reverse_complement": options.reverse_complement},
    }
    with writing(output):
        _check_free(output)
        _check_inputs(inputs, options.workers)
        if (output / MANIFEST).is_file():
            manifest = _existing(options, facts, quiet=quiet)
            if not quiet:
                console.say(f"{output}: already exists, from the same files with the same options")
            return manifest
        size = _size(inputs)
        output.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        with (
            locked(output),
            TokenWriter(output) as writer,
            console.progress("tokenize", size or None, "bytes") as bar,
        ):
            run = _Run(options, rule, writer)
            run.work(bar.advance)
            if not run.tally.letters:
                names = ", ".join(map(str, inputs))
                raise UserError(f"{names}: no record has a base; give files with sequences")
            sources = _describe_sources(options, run.hashes)
            manifest = writer.finish({**facts, "sources": sources, "letters": run.tally.letters})
    _report_oddities(run.tally)
    _report(manifest, output, time.perf_counter() - started)
    return manifest


class _Run:
    """The tasks of a run: hash the files, and read the pieces.

    Results are consumed in the order of the inputs, so that the output, and the error of a failing
    run, do not depend on the number of workers.

    Attributes:
        tally: Counts over all documents.
        hashes: Size and hash of each file.
    """

    def __init__(self, options: TokenizeOptions, rule: SplitRule, writer: TokenWriter) -> None:
        self.tally, self.hashes = Tally(), Hashes()
        self._options, self._rule, self._writer = options, rule, writer
        self._held_out = writer.part("held-out")  # file with `tally.held_out`, for the workers
        self._pieces: dict[int, Piece] = {}
        self._results: dict[int, Tally | Hashes | UserError] = {}  # not consumed yet
        self._num_tasks = self._num_consumed = 0

    def work(self, advance: Advance) -> None:
        """Run all tasks.

        Raises:
            UserError: An input is broken or not DNA, or a worker died.
        """
        workers = self._options.workers
        with (
            _explained_death(workers),
            closing(run_tasks(self._tasks(), workers, advance)) as results,
        ):
            for result in results:
                self._results[result.number] = result.value
                self._consume_results()
        self._consume_results()
        self._held_out.unlink(missing_ok=True)

    def _tasks(self) -> Iterator[Task | None]:
        options = self._options
        for valid, paths in ((True, options.valid), (False, options.files)):
            reader = PieceReader(self._rule, options.reverse_complement, valid)
            try:
                for piece in cut_into_pieces(paths):
                    if files := [path for path in piece.first_files if is_file(path)]:
                        yield self._numbered(partial(hash_files, files, False))
                    yield self._numbered(self._read_task(reader, piece))
                    if any(isinstance(value, UserError) for value in self._results.values()):
                        return
            except UserError as error:
                self._results[self._num_tasks] = error
                return
            while self._num_consumed < self._num_tasks:
                yield None  # the hashes to hold out are known once all pieces have been read
            if options.workers > 1 and self.tally.held_out:
                self._held_out.write_text("\n".join(self.tally.held_out), encoding="ascii")

    def _numbered(self, task: Task) -> Task:
        self._num_tasks += 1
        return partial(run_numbered, self._num_tasks - 1, task)

    def _read_task(self, reader: PieceReader, piece: Piece) -> Task:
        number, options = self._num_tasks, self._options
        self._pieces[number] = piece
        if options.workers == 1:
            return partial(reader.read, piece, self._writer, self.tally.held_out)
        part = self._writer.part(str(number))
        return partial(
            read_part, reader, piece, part, self._held_out, options.output, options.workers
        )

    def _consume_results(self) -> None:
        """Consume results in order, up to the first task that has not finished.

        Raises:
            UserError: One of these tasks failed.
        """
        while self._num_consumed in self._results:
            number = self._num_consumed
            value = self._results.pop(number)
            self._num_consumed += 1
            if isinstance(value, UserError):
                raise value
            if isinstance(value, dict):
                self.hashes |= value
                continue
            self.tally.add(value, same_file=bool(self._pieces.pop(number).span.start))
            if self._options.workers > 1:
                self._writer.join(self._writer.part(str(number)))


@contextmanager
def _explained_death(workers: int) -> Iterator[None]:
    try:
        yield
    except WorkerError as error:
        if not error.died:
            raise
        message = (
            f"--workers {workers}: a worker failed: {error}; nothing was written; run the command "
            "again, with fewer workers if memory ran out"
        )
        raise WorkerError(error.task, message, error.exit_code) from None


def _check_free(output: Path) -> None:
    """Refuse an existing output that is neither an empty folder nor a token set.

    Raises:
        UserError: It is something else.
    """
    if output.is_dir() and (not any(output.iterdir()) or (output / MANIFEST).is_file()):
        return
    if output.exists():
        raise UserError(f"{output}: exists and is not a token set; choose another --output")


def _check_inputs(inputs: Sequence[Path], workers: int) -> None:
    """Refuse inputs that cannot be read, or that only one process can read.

    Raises:
        UserError: There is one.
    """
    for path in inputs:
        if path != STDIN and (path.is_dir() or not path.exists()):
            reason = "it is a folder" if path.is_dir() else "no such file"
            raise UserError(f"{path}: cannot be read ({reason})")
        if workers > 1 and not is_file(path):
            raise UserError(f"--workers {workers}: one process must read {path}; give a file")


def _size(paths: Sequence[Path]) -> int:
    """Total size of the files in bytes; pipes count 0."""
    return sum(path.stat().st_size for path in paths if is_file(path))


def _existing(options: TokenizeOptions, facts: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """The manifest of an existing token set, if it is of the same inputs and options.

    Raises:
        UserError: `output` is a token set of other inputs or options.
    """
    output = options.output
    manifest = TokenSet.open(output).manifest
    files = {path for path in (*options.files, *options.valid) if is_file(path)}
    tasks = (partial(hash_files, [path], True) for path in files)
    hashes = Hashes()
    with ExitStack() as stack:
        stack.enter_context(_explained_death(options.workers))
        advance: Advance = ignore_progress
        if not quiet:
            bar = console.progress("hash", _size([*files]), "bytes")
            advance = stack.enter_context(bar).advance
        for hashed in run_tasks(tasks, options.workers, advance):
            hashes |= hashed
    expected = {**facts, "sources": _describe_sources(options, hashes)}
    is_known = all(source["sha256"] for source in expected["sources"])
    if is_known and all(manifest.get(key) == expected[key] for key in ("options", "sources")):
        return manifest
    raise UserError(
        f"{output}: has tokens of other files or options; remove it or choose another folder"
    )


def _describe_sources(options: TokenizeOptions, hashes: Hashes) -> list[dict[str, Any]]:
    """Name, role, size and hash of every input; size and hash of a pipe are None."""
    described = []
    for role, paths in (("train", options.files), ("valid", options.valid)):
        for path in paths:
            size, sha256 = hashes.get(path, (None, None))
            described.append({"name": path.name, "role": role, "bytes": size, "sha256": sha256})
    return described


def _report_oddities(tally: Tally) -> None:
    if tally.empty:
        console.say(f"{counted(tally.empty, 'empty record')} skipped")
    if tally.rna:
        console.say(f"{counted(tally.rna, 'RNA record')}: U written as T")
    if tally.repeated_names:
        repeating = counted(tally.repeated_names, "record repeats", "records repeat")
        console.warn(f"{repeating} a name of the same file")
    if tally.in_valid:
        console.warn(
            f"{counted(tally.in_valid, 'training sequence')} left out of train: in the validation "
            "files as well, as given or as reverse complement"
        )


def _report(manifest: dict[str, Any], output: Path, seconds: float) -> None:
    splits = manifest["splits"]
    bases = sum(split["bases"] for split in splits.values())
    parts = ", ".join(
        f"{name} {counted(facts['documents'], 'document')} {counted(facts['bases'], 'base')}"
        for name, facts in splits.items()
    )
    console.say(f"{output}: {parts}; {bases / seconds:,.0f} bases per second")
    top = Counter(manifest["letters"]).most_common(6)
    console.say("letters: " + ", ".join(f"{letter} {count:,}" for letter, count in top))
    options = manifest["options"]
    ways_out = {
        "train": "lower the fractions of the other splits",
        "valid": "raise --valid-fraction, or give files with --valid",
        "test": "raise --test-fraction",
    }
    shares = {"valid": options["valid_fraction"], "test": options["test_fraction"]}
    shares["train"] = 1 - sum(shares.values())
    for name in SPLITS:
        if shares[name] and name not in splits:
            console.warn(
                f"the {name} split is empty: there are too few sequences, which are never divided; "
                f"{ways_out[name]}"
            )
