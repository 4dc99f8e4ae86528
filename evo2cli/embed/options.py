"""What `evo2 embed` was asked for, checked and with its words turned into meanings."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from evo2cli.errors import UserError
from evo2cli.figures import check_plot
from evo2cli.files import check_file, check_output
from evo2cli.genome.parquet import import_pyarrow
from evo2cli.genome.source import STDIN
from evo2cli.options import Strand

SUFFIXES = (".safetensors", ".npz", ".parquet")


class Pooling(StrEnum):
    """What becomes of the outputs at the positions of a sequence, or of a feature.

    MEAN, MAX: channel by channel. LAST: the output at the position that is read last. NONE: all are
    kept.
    """

    MEAN = "mean"
    LAST = "last"
    MAX = "max"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """The command line of `evo2 embed`.

    Attributes:
        source: FASTA; or, with `reference`, regions in BED or GFF.
        model: A folder, file or name, as `open_model` takes it.
        config: Shape of a released model file.
        reference: FASTA of the genome that regions lie in.
        output: Where vectors go, the suffix telling the layout; None only for a probe.
        layers: As `resolve_layers` takes them.
        pooling: mean, last, max or none.
        features: BED or GFF; pool over each of these in place of the whole sequence.
        feature_type: Of a GFF, only lines of this type.
        strand: fwd, rc or both: the mean of the two.
        probe: Labels of names; a model is fitted to them from each layer.
        folds: Of its cross-validation.
        seed: Of its folds.
        plot: Figure of it to draw.
        device: As `open_model` takes it.
        dtype: As `open_model` takes it.

    Raises:
        UserError: A value is out of range, or two contradict each other.
    """

    source: Path
    model: str = "nano"
    config: Path | None = None
    reference: Path | None = None
    output: Path | None = None
    layers: str | None = None
    pooling: str = "mean"
    features: Path | None = None
    feature_type: str | None = None
    strand: str = "fwd"
    probe: Path | None = None
    folds: int = 5
    seed: int = 0
    plot: Path | None = None
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.source == STDIN:
            raise UserError("evo2 embed reads its input twice; give a file in place of stdin")
        if self.pooling not in list(Pooling):
            raise UserError(f"--pooling {self.pooling}: not one of {', '.join(Pooling)}")
        if self.strand not in list(Strand):
            raise UserError(f"--strand {self.strand}: not one of {', '.join(Strand)}")
        if self.pooling == Pooling.NONE and self.features is not None:
            raise UserError("--pooling none keeps every position; --features are pooled over")
        self._check_output()
        self._check_probe()

    def _check_output(self) -> None:
        if self.output is None:
            if self.probe is None:
                raise UserError(f"give an --output to write: x{', x'.join(SUFFIXES)}")
            return
        check_file(self.output, "--output", SUFFIXES)
        if self.output.suffix == ".parquet":
            import_pyarrow(self.output)
        check_output(self.output, self.source, self.reference, self.features, self.probe)

    def _check_probe(self) -> None:
        if self.plot is not None and self.probe is None:
            raise UserError(f"--plot {self.plot}: is drawn of a --probe")
        check_plot(self.plot)
        if self.probe is not None and self.pooling == Pooling.NONE:
            raise UserError("--probe needs one vector for each name; --pooling none gives many")
        if self.folds < 2:
            raise UserError(f"--folds {self.folds}: at least 2, one to fit on and one to test on")

    @property
    def strands(self) -> tuple[Strand, ...]:
        """The strands to read."""
        strand = Strand(self.strand)
        return (Strand.FORWARD, Strand.REVERSE) if strand is Strand.BOTH else (strand,)
