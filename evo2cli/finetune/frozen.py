"""The frozen base before training: its loss, best layer, features, and a linear probe on them.

Results are cached in the folder of the run, for the other ranks and for a resumed run.
"""

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.files import writing
from evo2cli.finetune.baselines import fit_and_predict
from evo2cli.finetune.data import DataSet
from evo2cli.finetune.examples import Examples
from evo2cli.finetune.features import (
    FILES,
    MAX_TOKENS,
    FeatureCache,
    all_token_rows,
    base_loss,
    best_layer,
    read_features,
    sample_token_rows,
)
from evo2cli.finetune.folder import read_facts, write_facts
from evo2cli.finetune.heads import Pool, Reading
from evo2cli.finetune.tasks import Task
from evo2cli.models import DTYPES
from evo2cli.options import DType
from evo2cli.training.recipe import Recipe
from stripedhyena2 import ModelConfig, StripedHyena2, load
from stripedhyena2.layers import default_layer, layer_width, resolve_layers
from stripedhyena2.scoring import sequence_logprob

FACTS = "base.json"
UNLOADED = 2.0  # nats per base; uniform guessing has ln(4) = 1.39
MAX_CACHED = 2**31  # bytes; larger features of all bases are computed in every step instead
MAX_PROBED = 5_000  # training examples to fit the probe to, for methods other than head


@dataclass(frozen=True)
class FrozenBase:
    """The frozen base of a run, loaded only if its results are not cached.

    Attributes:
        recipe: The recipe.
        data: The examples.
        config: The shape of the base.
        fingerprint: The fingerprint of its weights.
        device: Where it runs.
    """

    recipe: Recipe
    data: DataSet
    config: ModelConfig
    fingerprint: str
    device: torch.device

    @cached_property
    def _model(self) -> StripedHyena2:
        """The base."""
        dtype = _dtype(self.recipe)
        if self.recipe.tuning.scratch:
            model = StripedHyena2.from_seed(self.config, self.recipe.seed)
            return model.to(self.device, dtype).eval()
        return load(self.recipe.base, device=self.device, dtype=dtype).eval()

    def release(self) -> None:
        """Free the memory of the model."""
        self.__dict__.pop("_model", None)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Results of the base: layer, layers (scores, if the best was searched for) and loss.

        Raises:
            UserError: The loss suggests that weights were not loaded, or there is no such layer.
        """
        path = self.recipe.output / FACTS
        if path.is_file():
            return read_facts(path)
        facts: dict[str, Any] = {"layer": self._layer_by_name()}
        held_out = self.data.valid if len(self.data.split.valid) else self.data.train
        facts["loss"] = loss = base_loss(self._model, held_out)
        console.say(
            f"loss of the base on these sequences: {loss:.3f} nats per base (chance: 1.386)"
        )
        require_trained(self.recipe, loss)
        if facts["layer"] is None:
            facts["layer"], facts["layers"] = best_layer(
                self._model, self.data.train, self.data.labels, self.form, self.recipe.seed
            )
            console.say(f"the best layer for a linear probe is {facts['layer']}")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_facts(path, facts)
        return facts

    @cached_property
    def _shape(self) -> StripedHyena2:
        """The base on the meta device, without weights."""
        with torch.device("meta"):
            return StripedHyena2(self.config)

    def _layer_by_name(self) -> str | None:
        """The layer that the recipe names; None if the best is to be searched for."""
        tuning = self.recipe.tuning
        if tuning.layer == "best":
            return None
        if tuning.layer is None and tuning.method == "head":
            return default_layer(self.config)
        if tuning.layer in (None, "last"):
            return f"blocks.{self.config.depth - 1}"
        layers = resolve_layers(self._shape, tuning.layer)
        if len(layers) != 1:
            raise UserError(f"--layer {tuning.layer}: a head reads one layer, not {len(layers)}")
        return layers[0]

    @cached_property
    def form(self) -> Reading:
        """The features of the head, with the name of the layer left empty.

        Raises:
            UserError: There is no such pool, or the task is tokens but examples are pairs.
        """
        tuning, examples = self.recipe.tuning, self.data.examples
        pool = "none" if self.data.labels.task is Task.TOKENS else tuning.pool
        form = Reading("", pool, tuning.strand, examples.pairs is not None)
        if not form.by_token:
            Pool.read(form.pool)
        elif form.is_pair:
            raise UserError(
                "--task tokens: takes one sequence per example, but the table has pairs"
            )
        return form

    @cached_property
    def reading(self) -> Reading:
        """The features that the head reads."""
        return replace(self.form, layer=self.facts["layer"])

    @property
    def is_cached(self) -> bool:
        """Whether the head is trained on cached features."""
        if self.recipe.tuning.method != "head" or self.form.pool == "attention":
            return False
        bases = sum(map(len, self.data.examples.sequences)) if self.form.by_token else 0
        return bases * self._row_bytes <= MAX_CACHED

    @property
    def _row_bytes(self) -> int:
        """Bytes per row of features, in fp32; the best layer is always a block."""
        width = layer_width(self._shape, self._layer_by_name() or "blocks.0")
        return 4 * width * self.form.num_parts

    @property
    def missing_bytes(self) -> int:
        """Bytes of the features that are not cached yet.

        Raises:
            UserError: There is no such layer or pool.
        """
        cached = sum(file.stat().st_size for file in self.recipe.output.glob(FILES))
        return max(0, sum(map(len, self.rows.values())) * self._row_bytes - cached)

    @cached_property
    def rows(self) -> dict[str, NDArray[np.int64]]:
        """Rows of features of each split: examples, or for tokens some of their bases [N, 2]."""
        rows = {}
        for part, examples in self._parts.items():
            labels = examples.labels
            if isinstance(labels, list) and self.is_cached:
                rows[part] = all_token_rows(examples.sequences)
            elif isinstance(labels, list):
                rows[part] = sample_token_rows(labels, self.recipe.seed)
            else:
                rows[part] = np.arange(len(examples))
        return rows

    @cached_property
    def _parts(self) -> dict[str, Examples]:
        train = self.data.train
        if not self.is_cached and len(train) > MAX_PROBED:
            chosen = np.random.default_rng(self.recipe.seed).permutation(len(train))[:MAX_PROBED]
            train = train.take(np.sort(chosen))
        return {"train": train, "valid": self.data.valid, "test": self.data.test}

    @cached_property
    def features(self) -> dict[str, Tensor]:
        """Features [rows, F] of the rows of each split."""
        reading = _untrained(self.reading)
        settings = [
            self.fingerprint,
            self.recipe.tuning.scratch and self.recipe.seed,
            asdict(reading),
            self.recipe.precision.compute,
        ]
        cache = FeatureCache(self.recipe.output, settings)
        features = {}
        for part, examples in self._parts.items():
            letters = examples.letters
            if not letters:
                continue
            tokens = self.rows[part] if reading.by_token else None
            compute = partial(self._read_features, part, letters, tokens)
            rows = b"" if tokens is None else tokens.tobytes()
            features[part] = cache.recall(letters, compute, rows)[reading.layer]
        return features

    def _read_features(
        self, part: str, letters: Sequence[tuple[bytes, ...]], tokens: NDArray[np.int64] | None
    ) -> dict[str, Tensor]:
        reading = _untrained(self.reading)
        with console.progress(f"features of {part}", len(letters), "examples") as bar:
            return read_features(
                self._model, letters, reading, [reading.layer], tokens, bar.advance
            )

    def features_by_example(self, part: str) -> Sequence[Tensor]:
        """The features of each example of a split: [F], or [L, F] for tokens."""
        features = self.features[part]
        if not self.reading.by_token:
            return features.unbind()
        return torch.split(features, [len(text) for text in self._parts[part].sequences])

    def probe_predictions(self, part: str) -> tuple[Any, Any]:
        """Labels of the rows of a split, and predictions of a linear probe on frozen features."""
        labels = self.data.labels

        def features_and_labels(part: str) -> tuple[NDArray[np.float64], Any]:
            features, values = self.features[part].double().numpy(), self._parts[part].labels
            if not isinstance(values, list):
                return features, values
            tokens = np.array([values[i][j] for i, j in self.rows[part]], np.int64)
            labelled = np.flatnonzero(tokens >= 0)
            if len(labelled) > MAX_TOKENS:
                generator = np.random.default_rng(self.recipe.seed)
                labelled = generator.choice(labelled, MAX_TOKENS, replace=False)
            return features[labelled], tokens[labelled]

        train, train_labels = features_and_labels("train")
        test, truth = features_and_labels(part)
        return truth, fit_and_predict(labels, train, train_labels, test)


def require_trained(recipe: Recipe, loss: float) -> None:
    """Refuse a base whose loss, in nats per base, suggests that its weights were not loaded.

    Raises:
        UserError: The loss is worse than guessing, and the recipe does not train from scratch.
    """
    if not loss < UNLOADED and not recipe.tuning.scratch:
        raise UserError(
            f"{recipe.init}: its loss of {loss:.2f} nats per base is worse than guessing (1.39); "
            "were its weights loaded? if they were, try --base fp32"
        )


def trial_base(recipe: Recipe, config: ModelConfig, reading: Reading, device: torch.device) -> None:
    """Do with random weights of this shape what `FrozenBase` does, to compile its kernels."""
    model = StripedHyena2.from_seed(config, recipe.seed).to(device, _dtype(recipe)).eval()
    letters = b"A" * recipe.batch.length
    pair = 2 if reading.is_pair else 1
    sequence_logprob(model, letters)
    read_features(
        model, [(letters,) * pair] * recipe.batch.sequences, _untrained(reading), [reading.layer]
    )


def _dtype(recipe: Recipe) -> torch.dtype:
    """The dtype of the base: bf16 if it will be frozen or computed in less than fp32."""
    narrow = recipe.tuning.base != "fp32" or recipe.precision.compute == "bf16"
    return DTYPES[DType.BF16 if narrow else DType.FP32]


def _untrained(reading: Reading) -> Reading:
    """The pool at initialization: attention with a zero query is the mean."""
    return replace(reading, pool="mean") if reading.pool == "attention" else reading
