"""Features of the frozen base: computed once, cached on disk, and used to choose a layer.

They are the input of the head before training. `--method head` trains on them alone; for other
methods they give the statistics of the head's input, and the linear probe that results are compared
with.

N examples, F features, D channels.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evo2cli.embed.probe import Labelled, probe_layers
from evo2cli.files import atomic_path
from evo2cli.finetune.examples import Examples
from evo2cli.finetune.folder import by_length, read_inputs
from evo2cli.finetune.heads import Pool, Pooling, Reading, combine
from evo2cli.finetune.tasks import Labels, Task
from stripedhyena2 import StripedHyena2
from stripedhyena2.checkpoint.shards import write_safetensors
from stripedhyena2.dna import as_read
from stripedhyena2.layers import part_names
from stripedhyena2.progress import Progress, ignore_progress
from stripedhyena2.scoring import sequence_logprob

LOSS_EXAMPLES = 32  # examples for `base_loss`
MAX_TOKENS = 20_000  # labelled bases per split whose features are kept, for the task tokens
FILES = "features-*.safetensors"
MAX_ROWS = 2_000  # examples for choosing the best layer
FOLDS = 5


def base_loss(model: StripedHyena2, examples: Examples) -> float:
    """The mean loss of a model on the first `LOSS_EXAMPLES` sequences, in nats per base."""
    chosen = [group[0] for group in examples.letters[:LOSS_EXAMPLES] if len(group[0]) > 1]
    total = sum(-sequence_logprob(model, as_read(bases)) for bases in chosen)
    return total / max(1, sum(len(bases) - 1 for bases in chosen))


def sample_token_rows(labels: Sequence[NDArray[np.int64]], seed: int) -> NDArray[np.int64]:
    """Sample at most `MAX_TOKENS` labelled bases; their sequences and positions [rows, 2]."""
    pairs = [
        np.stack([np.full(len(positions), index), positions], axis=1)
        for index, tokens in enumerate(labels)
        if len(positions := np.flatnonzero(tokens >= 0))
    ]
    rows: NDArray[np.int64] = np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)
    if len(rows) > MAX_TOKENS:
        chosen = np.random.default_rng(seed).choice(len(rows), MAX_TOKENS, replace=False)
        rows = rows[np.sort(chosen)]
    return rows


def all_token_rows(sequences: Sequence[str]) -> NDArray[np.int64]:
    """All bases, as sequence and position [rows, 2]."""
    lengths = [len(sequence) for sequence in sequences]
    positions = [np.arange(length) for length in lengths]
    return np.stack([np.repeat(np.arange(len(lengths)), lengths), np.concatenate(positions)], 1)


@torch.inference_mode()
def read_features(
    model: StripedHyena2,
    examples: Sequence[tuple[bytes, ...]],
    reading: Reading,
    layers: Sequence[str],
    tokens: NDArray[np.int64] | None = None,
    progress: Progress = ignore_progress,
) -> dict[str, Tensor]:
    """Compute features of examples from several layers, each [N, F] in fp32 on the CPU.

    Args:
        model: The frozen model.
        examples: The sequence of each example, or both of a pair.
        reading: Pool, strand and pairs; its layer is ignored.
        layers: The layers, all read in one forward pass.
        tokens: For the task tokens, the bases whose features are kept, ascending: [N, 2].
        progress: Called with the number of examples done since the last call.
    """
    device = model.embedding.weight.device
    pool = None if reading.by_token else Pooling(Pool.read(reading.pool), 1)
    kept: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    order: list[int] = []
    for rows in by_length(examples, device):
        ids_NSL, lengths_NS = (
            x.to(device) for x in read_inputs([examples[r] for r in rows], reading)
        )
        outputs = model.read_layers(ids_NSL.flatten(0, 1), layers)
        index = None
        if tokens is not None:
            chosen = [np.arange(*np.searchsorted(tokens[:, 0], (row, row + 1))) for row in rows]
            order += np.concatenate(chosen).tolist()
            index = [
                torch.from_numpy(np.concatenate(part)).to(device)
                for part in (
                    [np.full(len(selected), i) for i, selected in enumerate(chosen)],
                    [tokens[selected, 1] for selected in chosen],
                )
            ]
        else:
            order += rows
        for layer, x_BLD in zip(layers, outputs, strict=True):
            features = combine(x_BLD, lengths_NS, reading, pool)
            kept[layer].append((features[index[0], index[1]] if index else features).cpu())
        progress(len(rows))
    inverse = torch.from_numpy(np.argsort(order))
    return {layer: torch.cat(parts)[inverse].float() for layer, parts in kept.items()}


class FeatureCache:
    """A disk cache of features, keyed by settings and sequences.

    Args:
        folder: Folder of the cache files.
        settings: Everything besides the sequences that determines the features, as JSON values.
    """

    def __init__(self, folder: Path, settings: Sequence[object]) -> None:
        self._folder, self._settings = folder, json.dumps(settings)

    def recall(
        self,
        examples: Sequence[tuple[bytes, ...]],
        compute: Callable[[], Mapping[str, Tensor]],
        rows: bytes = b"",
    ) -> dict[str, Tensor]:
        """Load the cached tensors of these examples, or compute and store them.

        Args:
            examples: The sequence of each example, or both of a pair.
            compute: Computes the tensors.
            rows: Identifies the positions of the examples that are meant.
        """
        digest = hashlib.sha256(self._settings.encode() + rows)
        for group in examples:
            digest.update(b"\n" + b"\t".join(group))
        path = self._folder / FILES.replace("*", digest.hexdigest()[:16])
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no iterator
        except (OSError, SafetensorError):
            tensors = dict(compute())
        with atomic_path(path, wait=True) as part:
            write_safetensors(tensors, part)
        return tensors


def best_layer(
    model: StripedHyena2, examples: Examples, labels: Labels, reading: Reading, seed: int
) -> tuple[str, list[dict[str, Any]]]:
    """Choose the layer whose frozen features predict the labels of training examples best.

    Each block is scored by a cross-validated linear probe on a sample of the examples; groups are
    not split across folds.

    Returns:
        Its name, and the score of each layer, see `probe_layers`.

    Raises:
        UserError: There are too few examples of a class.
    """
    chosen = np.random.default_rng(seed).permutation(len(examples))[:MAX_ROWS]
    sample = examples.take(np.sort(chosen))
    layers = [name for name in part_names(model.config) if name.startswith("blocks.")]
    tokens = None
    sample_labels = sample.labels
    groups = sample.groups or sample.chromosomes
    if isinstance(sample_labels, list):
        tokens = sample_token_rows(sample_labels, seed)
        values: NDArray[Any] = np.array([sample_labels[i][j] for i, j in tokens])
        groups = [str(i) for i, _ in tokens]
    else:
        assert sample_labels is not None
        values = sample_labels
    features = read_features(model, sample.letters, reading, layers, tokens)
    if labels.task is Task.MULTILABEL:  # the probe predicts the most frequent label
        values = values[:, values.mean(axis=0).argmax()]
    elif labels.task is Task.REGRESS:
        values = values.mean(axis=1)
    numeric = labels.task is Task.REGRESS
    targets = [float(v) for v in values] if numeric else [str(v) for v in values]
    if groups is not None and len(set(groups)) < FOLDS:
        groups = None
    labelled = Labelled(rows=[*range(len(values))], values=targets, groups=groups)
    result = probe_layers(
        {layer: tensor.numpy() for layer, tensor in features.items()},
        labelled,
        folds=FOLDS,
        seed=seed,
    )
    return result["best"], result["rows"]
