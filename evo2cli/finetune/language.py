"""Continued pretraining (`--task lm`), with replay, and loss on other data to show forgetting."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evo2cli import console
from evo2cli.data.jsonl import is_jsonl
from evo2cli.data.sources import open_source
from evo2cli.errors import UserError
from evo2cli.files import atomic_path, writing
from evo2cli.finetune.common import Run
from evo2cli.finetune.folder import read_facts, write_facts
from evo2cli.finetune.frozen import FACTS, require_trained
from evo2cli.finetune.options import FinetuneOptions
from evo2cli.finetune.tasks import Labels, Task
from evo2cli.genome.fasta import read_records
from evo2cli.genome.source import first_bytes
from evo2cli.tokenize.options import TokenizeOptions
from evo2cli.tokenize.run import tokenize_files
from evo2cli.train.run import make_trainer, open_sources
from evo2cli.training.language import NATS_PER_BIT
from evo2cli.training.loop import Trainer
from evo2cli.training.state import RunFolder

TOKENS = "tokens"  # subfolder of the run for the token set of a FASTA
MAX_LENGTH = 8_192  # default limit of the window, in positions


def is_language(options: FinetuneOptions) -> bool:
    """Whether the data are unlabelled documents, i.e. the task is lm.

    Raises:
        UserError: They cannot be read.
    """
    if options.task is not None or options.features is not None:
        return options.task is Task.LM
    path = options.data
    if path.is_dir() or path.suffix in (".bin", ".idx"):
        return True
    start = first_bytes(path).lstrip()
    if start.startswith(b">"):
        return True
    line = start.partition(b"\n")[0]
    return is_jsonl(path) and b'"text"' in line


def language_data(options: FinetuneOptions, context: int) -> tuple[dict[str, Any], int, int]:
    """Make the table [data] of a recipe for lm; a FASTA is tokenized into the folder of the run.

    Returns:
        The table, the number of training windows, and their length.

    Raises:
        UserError: The documents cannot be read, or are shorter than a window.
    """
    length = options.length or min(context, MAX_LENGTH)
    path = _tokens(options)
    documents = open_source(path, "train")
    if documents is None:
        raise UserError(f"{path}: has no training split")
    if options.tag is None and documents.num_tokens <= length:
        raise UserError(
            f"{options.data}: its {documents.num_tokens:,} tokens are fewer than a window of "
            f"{length:,} + 1; give more DNA, or a shorter window by --length"
        )
    sources: list[dict[str, Any]] = [{"path": path}]
    if options.replay is not None:
        sources[0]["weight"] = 1 - options.replay_share
        sources.append({"path": options.replay, "weight": options.replay_share})
    valid = [options.valid, *options.remember]
    table: dict[str, Any] = {
        "sources": sources,
        "valid": [path for path in valid if path is not None],
        # With one document per window, a tag is always followed by its own bases.
        "packing": "document" if options.tag else "stream",
    }
    console.say(
        f"task lm: next-base prediction on the {documents.num_tokens:,} tokens of {options.data}"
    )
    return table, max(1, documents.num_tokens // length), length


def _tokens(options: FinetuneOptions) -> Path:
    """The path of the documents in a format for training; a FASTA is tokenized."""
    path, output = options.data, options.output
    start = b"" if path.is_dir() else first_bytes(path).lstrip()
    if not (start or path.is_dir()):
        raise UserError(
            f"{path}: is empty; give a FASTA, JSON lines with a key text, or a folder of "
            "`evo2 tokenize`"
        )
    if not start.startswith(b">"):
        if options.tag is not None:
            raise UserError(f"--tag {options.tag}: needs a FASTA; write tags into {path} itself")
        return path
    tokens = output / TOKENS
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    source = path
    if options.tag is not None:
        source = output / "tagged.jsonl"
        with writing(source), atomic_path(source) as part, part.open("w", encoding="ascii") as file:
            for record in read_records(path):
                text = options.tag + record.sequence.decode("ascii", "replace")
                file.write(json.dumps({"text": text}) + "\n")
    # Keeps the token set if the run is resumed, and refuses one of other documents.
    tokenize_files(TokenizeOptions(files=(source,), output=tokens))
    return tokens


@dataclass
class LanguageRun(Run):
    """A run of continued pretraining on documents.

    Attributes:
        before: Validation metrics of the base; set by `trainer`.
    """

    before: dict[str, Any] = field(init=False)

    def trainer(self, folder: RunFolder) -> Trainer:
        """As `Run`; first validates the base on all held-out sets."""
        recipe, ranks = self.recipe, self.ranks
        self.description = self.describe(Labels(Task.LM, ()))
        sources = open_sources(recipe, ranks)
        trainer = make_trainer(recipe, self.start(), sources, folder)
        trainer.best = self.best(trainer.engine, "bits", higher_is_better=False)
        path = recipe.output / FACTS
        if ranks.any(not path.is_file()):
            metrics = trainer.validate()
            if ranks.is_first:
                if (bits := metrics.get("valid_bits")) is not None:
                    console.say(f"loss of the base on held-out documents: {bits:.4f} bits per base")
                    require_trained(recipe, bits * NATS_PER_BIT)
                write_facts(path, metrics)
            ranks.barrier()
        self.before = read_facts(path)
        return trainer

    def report(self, trainer: Trainer) -> dict[str, Any]:
        """As `Run`: bits per base on each held-out set, before and after."""
        best = trainer.best
        assert best is not None
        records = trainer.folder.records()
        after = next((r for r in records if r["step"] == best.step), {})
        return {
            "task": "lm",
            "base": {"model": self.recipe.init, "fingerprint": self.base_fingerprint},
            "results": {"base": _bits(self.before), "model": _bits(after)},
        }


def _bits(metrics: dict[str, Any]) -> dict[str, Any]:
    """Bits per base over all held-out sets, and on each of them."""
    by_set = {Path(name).name: bits for name, bits in metrics.get("valid_bits_of", {}).items()}
    bits = {"bits per base": metrics.get("valid_bits"), **by_set}
    return {name: [value] * 3 for name, value in bits.items() if value is not None}
