"""`evo2 score --features`: columns for other programs, such as embeddings of alleles.

D channels of a layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from evo2cli.genome.windows import Window, WindowPair
from evo2cli.options import Strand
from evo2cli.score.options import Feature, FeatureOptions
from evo2cli.tables import Row
from stripedhyena2 import StripedHyena2
from stripedhyena2.layers import layer_widths, resolve_layers
from stripedhyena2.pooling import pool_positions


@dataclass(frozen=True)
class Features:
    """Computes features of alleles.

    Attributes:
        model: The model.
        wanted: The features to compute.
        widths: The layer of the embedding, and its number of channels.
        center: Number of positions around the variant to pool; None for the whole window.
    """

    model: StripedHyena2
    wanted: Sequence[Feature]
    widths: Mapping[str, int]
    center: int | None

    @property
    def names(self) -> list[str]:
        """Names of the columns, in order."""
        names: list[str] = [feature for feature in self.wanted if feature is not Feature.EMBEDDING]
        if Feature.EMBEDDING in self.wanted:
            [width] = self.widths.values()
            names += [f"{Feature.EMBEDDING}_{channel}" for channel in range(width)]
        return names

    def compute(self, row: Row, pairs: Mapping[Strand, WindowPair], sign: int, name: str) -> Row:
        """The features of an allele.

        Args:
            row: Its other values.
            pairs: Its windows for each strand.
            sign: -1 if REF and ALT of the windows are swapped, else 1.
            name: Name of the allele in messages.

        Raises:
            NonFiniteError: A vector is NaN or infinite.
        """
        delta = row["EVO2_DELTA"]
        assert isinstance(delta, float)
        values: list[float] = []
        if Feature.EMBEDDING in self.wanted:
            changes = [
                self._pooled(pair.alternate, strand, name)
                - self._pooled(pair.reference, strand, name)
                for strand, pair in pairs.items()
            ]
            values = (sign * sum(changes[1:], changes[0]) / len(changes)).float().tolist()
        scalars = {Feature.LLR: delta, Feature.ABSLLR: abs(delta)}
        numbers = [scalars[feature] for feature in self.wanted if feature in scalars]
        return dict(zip(self.names, [*numbers, *values], strict=True))

    def _pooled(self, window: Window, strand: Strand, name: str) -> Tensor:
        """The mean [D] of the vectors of a window, or of its center, in fp64."""
        bases, span = window.sequence, (0, len(window.sequence))
        if self.center is not None:
            first = len(window.before) + (len(window.allele) - self.center) // 2
            span = (max(first, 0), min(first + self.center, len(bases)))
        vectors = pool_positions(
            self.model, bases, self.widths, [[span]], "mean", [strand], name=name
        )
        [vectors_RD] = vectors.values()
        return vectors_RD[0]


def make_features(options: FeatureOptions, model: StripedHyena2) -> Features | None:
    """Create the `Features` of the options; None without `--features`.

    Raises:
        InputError: The model does not have the layer.
    """
    if not options.wanted_features:
        return None
    layers = resolve_layers(model, options.layer)[:1]
    return Features(model, options.wanted_features, layer_widths(model, layers), options.center)
