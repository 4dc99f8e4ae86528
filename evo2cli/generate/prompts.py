"""The prompts of `evo2 generate`: bases from the command line or a FASTA file, and lineage tags."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evo2cli import console
from evo2cli.data.tags import read_tag
from evo2cli.errors import UserError
from evo2cli.genome.alphabet import upper_dna
from evo2cli.genome.fasta import Record, read_records, require_nucleotides


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        name: Name of its FASTA record, or `prompt1`, `prompt2`, ...
        tag: Lineage tag, enclosed in '|', or empty.
        bases: Bases after the tag, in upper case with T for U.
    """

    name: str
    tag: str
    bases: bytes

    @property
    def text(self) -> bytes:
        """The input of the model: tag and bases."""
        return self.tag.encode() + self.bases


def read_prompts(
    texts: Sequence[str], fasta: Path | None = None, tag: str | None = None
) -> list[Prompt]:
    """Read all prompts: first those given as text, then those of a file.

    Args:
        texts: Bases.
        fasta: File of further prompts.
        tag: Lineage tag to prepend to every prompt; without prompts it is the only one.

    Raises:
        UserError: There is no prompt, a prompt is empty or not DNA, or the tag is not a lineage.
    """
    records = [Record(f"prompt{n}", "", text.strip().encode()) for n, text in enumerate(texts, 1)]
    for record in records:
        require_nucleotides("--prompt", record)
    if fasta is not None:
        for record in read_records(fasta):
            require_nucleotides(fasta, record)
            records.append(record)
    full_tag = "" if tag is None else read_tag(tag).decode()
    if not records:
        if full_tag:
            return [Prompt("prompt1", full_tag, b"")]
        raise UserError("no prompt: give --prompt ACGT, --prompts FASTA or a --tag")
    for record in records:
        if not record.sequence and not full_tag:
            raise UserError(f"{record.name}: the prompt is empty; give at least one base")
    prompts = [
        Prompt(record.name or f"record{n}", full_tag, upper_dna(record.sequence))
        for n, record in enumerate(records, 1)
    ]
    name, count = Counter(prompt.name for prompt in prompts).most_common(1)[0]
    if count > 1:
        console.warn(f"{count:,} prompts are named {name}; their sequences will share that name")
    return prompts
