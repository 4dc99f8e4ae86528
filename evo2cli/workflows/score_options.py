"""What `evo2 score` was asked for, checked and with its words turned into meanings."""

from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path

from evo2cli.errors import TooManySkippedError, UserError


class Strand(StrEnum):
    """Which strand is read; BOTH takes the mean of the two."""

    FORWARD = "fwd"
    REVERSE = "rc"
    BOTH = "both"


class Layout(StrEnum):
    """How results are written; the suffix of the output says which."""

    VCF = ".vcf"
    TSV = ".tsv"
    JSONL = ".jsonl"


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """The command line of `evo2 score`.

    Attributes:
        source: FASTA or VCF, or `-` for stdin.
        model: A folder, file or name, as `open_model` takes it.
        config: Shape of a released model file.
        reference: FASTA of the genome a VCF speaks of; else its `##reference` is taken.
        output: Where results go, the suffix telling the layout; None for stdout.
        window: Bases of genome to score an allele by; None for min(8192, the model's context).
        strand: fwd, rc or both.
        on_ref_mismatch: What a REF that the genome denies leads to: skip or error.
        max_skipped: Fraction of skipped records above which the run ends with exit code 3.
        device: As `open_model` takes it.
        dtype: As `open_model` takes it.
        json: JSON lines rather than the default layout.
        context_parallel: Processes that share each sequence of a FASTA, one a GPU.

    Raises:
        UserError: A value is out of range.
    """

    source: Path
    model: str = "nano"
    config: Path | None = None
    reference: Path | None = None
    output: Path | None = None
    window: int | None = None
    strand: str = "fwd"
    on_ref_mismatch: str = "skip"
    max_skipped: float = 1.0
    device: str = "auto"
    dtype: str = "auto"
    json: bool = False
    context_parallel: int = 1

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 2:
            raise UserError(f"--window {self.window}: at least 2 bases are needed for a prediction")
        if self.strand not in list(Strand):
            raise UserError(f"--strand {self.strand}: not one of {', '.join(Strand)}")
        if self.on_ref_mismatch not in ("skip", "error"):
            raise UserError(f"--on-ref-mismatch {self.on_ref_mismatch}: not one of skip, error")
        if not 0 <= self.max_skipped <= 1:
            raise UserError(f"--max-skipped {self.max_skipped}: a fraction lies in 0 to 1")
        if self.output and not self.output.parent.is_dir():
            raise UserError(f"--output {self.output}: the folder {self.output.parent} is missing")
        if self.output and self.output.absolute() == self.source.absolute():
            raise UserError(f"--output {self.output}: would overwrite the input; name another file")

    def arguments(self) -> list[str]:
        """As words of a command line, for other processes."""
        words = [str(self.source)]
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name == "source" or value == option.default:
                continue
            flag = f"--{option.name.replace('_', '-')}"
            words += [flag] if value is True else [flag, str(value)]
        return words

    @property
    def strands(self) -> tuple[Strand, ...]:
        """The strands to read."""
        strand = Strand(self.strand)
        return (Strand.FORWARD, Strand.REVERSE) if strand is Strand.BOTH else (strand,)

    def layout(self, default: Layout) -> Layout:
        """The layout of the output, `default` (VCF only for VCF input) where nothing says else.

        Raises:
            UserError: The suffix is none we write for this input, or contradicts `--json`.
        """
        if self.output is None:
            return Layout.JSONL if self.json else default
        allowed = [Layout.JSONL] if self.json else [default, Layout.TSV, Layout.JSONL]
        suffix = Path(self.output.name.removesuffix(".gz")).suffix
        if suffix not in allowed:
            wanted = " or ".join(dict.fromkeys(allowed))
            raise UserError(f"--output {self.output}: needs the suffix {wanted}, .gz may follow")
        return Layout(suffix)

    def check_skipped(self, skipped: int, total: int) -> None:
        """Compare the skipped share with `max_skipped`, once the output is complete.

        Raises:
            TooManySkippedError: It is above.
        """
        if skipped > self.max_skipped * total:
            raise TooManySkippedError(
                f"{skipped:,} of {total:,} have no score, above --max-skipped {self.max_skipped}"
            )
