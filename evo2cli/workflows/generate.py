"""DNA out of a model."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from evo2cli import console
from evo2cli.errors import UntrustedNumericsError, UserError
from evo2cli.genome.alphabet import ACGT
from evo2cli.genome.fasta import Record, read_records, require_nucleotides
from evo2cli.genome.windows import upper_dna
from evo2cli.workflows.results import json_line, open_output
from stripedhyena2 import Sampler, StripedHyena2
from stripedhyena2 import generate as generate_tokens
from stripedhyena2.diagnosis import first_nonfinite_layer

ALPHABETS = {"dna": tuple(ACGT), "any": None}
LINE = 60  # bases a FASTA line


@dataclass(frozen=True)
class Generated:
    """One generated sequence.

    Attributes:
        name: Of its prompt.
        prompt: What it goes on from, upper case.
        sequence: The generated part.
        mean_logprob: Nats a token, under the model's untempered distribution.
    """

    name: str
    prompt: str
    sequence: str
    mean_logprob: float


def generate_sequences(
    open_model: Callable[[], StripedHyena2],
    *,
    prompts: Sequence[str],
    prompts_fasta: Path | None,
    tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    alphabet: str,
) -> Iterator[Generated]:
    """Go on from each prompt by itself, so that no sequence depends on another.

    Args:
        open_model: Called once the input is known to be good.
        prompts: Bases, given by themselves.
        prompts_fasta: Or in a FASTA file.
        tokens: To generate after each prompt.
        temperature: See `stripedhyena2.Sampler`.
        top_k: The same.
        top_p: The same.
        seed: Every prompt starts from it.
        alphabet: A key of `ALPHABETS`.

    Raises:
        UserError: A prompt or a setting will not do.
        UntrustedNumericsError: The model's logits are not finite.
    """
    if alphabet not in ALPHABETS:
        raise UserError(f"--alphabet {alphabet}: not one of {', '.join(ALPHABETS)}")
    try:
        sampler = Sampler(temperature, top_k, top_p, ALPHABETS[alphabet])
    except ValueError as error:
        raise UserError(str(error)) from None
    named = _read_prompts(prompts, prompts_fasta)
    model = open_model()
    device = next(model.parameters()).device
    with console.progress("generate", len(named) * tokens, "bases") as bar:
        for name, prompt in named:
            ids = torch.tensor([list(prompt)], device=device)
            drawn, total = bytearray(), 0.0
            try:
                for token, logprob in generate_tokens(model, ids, tokens, sampler, seed):
                    drawn.append(min(int(token), 255))
                    total += float(logprob)
                    bar.advance()
            except FloatingPointError as error:
                layer = first_nonfinite_layer(model, ids) or "decoding"
                raise UntrustedNumericsError(f"{name}: {error}; first seen in {layer}") from None
            yield Generated(name, prompt.decode(), drawn.decode("latin-1"), total / tokens)


def _read_prompts(prompts: Sequence[str], fasta: Path | None) -> list[tuple[str, bytes]]:
    """Name and bases of every prompt.

    Raises:
        UserError: There is none, or one is empty or no DNA.
    """
    records = [Record(f"prompt{n}", "", text.strip().encode()) for n, text in enumerate(prompts, 1)]
    if fasta is not None:
        records += read_records(fasta)
    if not records:
        raise UserError("no prompt: give --prompt ACGT or --prompts FASTA")
    for record in records:
        if not record.sequence:
            raise UserError(f"{record.name}: the prompt is empty; give at least one base")
        require_nucleotides(fasta or "--prompt", record)
    return [(record.name, upper_dna(record.sequence)) for record in records]


def write_results(results: Iterable[Generated], output: Path | None, *, as_json: bool) -> None:
    """Write FASTA, or JSON lines, to stdout or whole to a file.

    Raises:
        UserError: The file cannot be written.
    """
    with open_output(output) as write:
        for result in results:
            write(json_line(asdict(result)) if as_json else _fasta(result).encode())


def _fasta(result: Generated) -> str:
    rows = [result.sequence[at : at + LINE] for at in range(0, len(result.sequence), LINE)]
    header = f">{result.name} prompt={len(result.prompt)} mean_logprob={result.mean_logprob:.4f}"
    return "\n".join([header, *rows]) + "\n"
