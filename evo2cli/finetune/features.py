"""Features of a frozen model: computed once, kept on disk, and used to choose a layer.

They are what a head sees before anything is trained. `--method head` trains on them alone; for
other methods they give the statistics of the head's input, and the linear probe that results are
compared with.

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

LOSS_EXAMPLES = 32
MAX_TOKENS = 20_000  # labelled bases of a split whose features are kept, for a task of tokens
FILES = "features-*.safetensors"
MAX_ROWS = 2_000  # examples by which the best layer is chosen
FOLDS = 5


def base_loss(model: StripedHyena2, examples: Examples) -> float:
    """The mean loss of a model on the first `LOSS_EXAMPLES` sequences, in nats per base."""
    chosen = [group[0] for group in examples.letters[:LOSS_EXAMPLES] if len(group[0]) > 1]
    total = sum(-sequence_logprob(model, as_read(bases)) for bases in chosen)
    return total / max(1, sum(len(bases) - 1 for bases in chosen))


def token_rows(labels: Sequence[NDArray[np.int64]], seed: int) -> NDArray[np.int64]:
    """Some labelled bases: their sequences and positions, [rows, 2], at most `MAX_TOKENS`."""
    where = [
        np.stack([np.full(len(found), index), found], axis=1)
        for index, own in enumerate(labels)
        if len(found := np.flatnonzero(own >= 0))
    ]
    rows: NDArray[np.int64] = np.concatenate(where) if where else np.zeros((0, 2), np.int64)
    if len(rows) > MAX_TOKENS:
        chosen = np.random.default_rng(seed).choice(len(rows), MAX_TOKENS, replace=False)
        rows = rows[np.sort(chosen)]
    return rows


def all_rows(sequences: Sequence[str]) -> NDArray[np.int64]:
    """All bases: their sequences and positions, [rows, 2]."""
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
    """Features of examples from each of several layers, [N, F] in fp32 on the CPU.

    Args:
        model: The frozen model.
        examples: The sequence of each, or both of a pair.
        reading: What is read; its layer does not matter.
        layers: The layers, which are read in one pass.
        tokens: For a task of tokens, the bases whose features are kept, ascending: [N, 2].
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
            found = [np.arange(*np.searchsorted(tokens[:, 0], (row, row + 1))) for row in rows]
            order += np.concatenate(found).tolist()
            index = [
                torch.from_numpy(np.concatenate(part)).to(device)
                for part in (
                    [np.full(len(own), i) for i, own in enumerate(found)],
                    [tokens[own, 1] for own in found],
                )
            ]
        else:
            order += rows
        for layer, x_BLD in zip(layers, outputs, strict=True):
            features = combine(x_BLD, lengths_NS, reading, pool)
            kept[layer].append((features[index[0], index[1]] if index else features).cpu())
        progress(len(rows))
    back = torch.from_numpy(np.argsort(order))
    return {layer: torch.cat(parts)[back].float() for layer, parts in kept.items()}


class FeatureCache:
    """Features on disk, one file for each of the settings that decide them.

    Args:
        folder: Where the files are.
        settings: What decides the features beside the sequences, as JSON values.
    """

    def __init__(self, folder: Path, settings: Sequence[object]) -> None:
        self._folder, self._settings = folder, json.dumps(settings)

    def recall(
        self,
        examples: Sequence[tuple[bytes, ...]],
        compute: Callable[[], Mapping[str, Tensor]],
        rows: bytes = b"",
    ) -> dict[str, Tensor]:
        """The stored tensors of these examples, or what `compute` returns, which is stored.

        Args:
            examples: The sequence of each, or both of a pair.
            compute: Computes the tensors.
            rows: Which parts of the examples are meant.
        """
        digest = hashlib.sha256(self._settings.encode() + rows)
        for group in examples:
            digest.update(b"\n" + b"\t".join(group))
        path = self._folder / FILES.replace("*", digest.hexdigest()[:16])
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no iterator
        except (OSError, SafetensorError):
            found = dict(compute())
        with atomic_path(path, wait=True) as part:
            write_safetensors(found, part)
        return found


def best_layer(
    model: StripedHyena2, examples: Examples, labels: Labels, reading: Reading, seed: int
) -> tuple[str, list[dict[str, Any]]]:
    """The layer whose frozen features predict the labels of training examples best.

    Each block is scored by cross-validation on some of the examples, with every group in one fold.

    Returns:
        Its name, and the score of each layer as `probe_layers` describes them.

    Raises:
        UserError: There are too few examples of a class.
    """
    chosen = np.random.default_rng(seed).permutation(len(examples))[:MAX_ROWS]
    some = examples.take(np.sort(chosen))
    layers = [name for name in part_names(model.config) if name.startswith("blocks.")]
    tokens = None
    found = some.labels
    groups = some.groups or some.chromosomes
    if isinstance(found, list):
        tokens = token_rows(found, seed)
        values: NDArray[Any] = np.array([found[i][j] for i, j in tokens])
        groups = [str(i) for i, _ in tokens]
    else:
        assert found is not None
        values = found
    features = read_features(model, some.letters, reading, layers, tokens)
    if labels.task is Task.MULTILABEL:  # whether it has the most frequent label
        values = values[:, values.mean(axis=0).argmax()]
    elif labels.task is Task.REGRESS:
        values = values.mean(axis=1)
    numeric = labels.task is Task.REGRESS
    spoken = [float(v) for v in values] if numeric else [str(v) for v in values]
    if groups is not None and len(set(groups)) < FOLDS:
        groups = None
    labelled = Labelled(rows=[*range(len(values))], values=spoken, groups=groups)
    result = probe_layers(
        {layer: tensor.numpy() for layer, tensor in features.items()},
        labelled,
        folds=FOLDS,
        seed=seed,
    )
    return result["best"], result["rows"]
