"""SpliceAI's five networks on the test set of splice sites, beside which `splice.py` puts models.

    pip download --no-deps spliceai && unzip spliceai-*.whl   # never a dependency of this project
    python -m tests.benchmarks.spliceai spliceai/models

The networks are read from their Keras files, which h5py opens, and computed by PyTorch in fp32; on
32 examples of the test set, Keras 3.15 finds the same probabilities within 2e-6. They see the 600
bases of an example and nothing around them, as all other models of the table do; they were made for
10,000 bases of context. The class is that of the largest of three scores: the probability of an
acceptor and of a donor near the middle (the largest within 2 bases), and of neither (1 less both).

B sequences, L positions, C channels.
"""

import argparse
import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evo2cli import console
from evo2cli.finetune.metrics import measure
from evo2cli.finetune.tasks import Labels, Task

DATA = Path(__file__).parents[3] / "shared" / "data" / "tasks" / "splice"
CONTEXT = 5000  # positions that a network cuts off on each side
NEAR = 2


def read_network(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A network of Keras: one-hot bases [B, L + 2 CONTEXT, 4] to probabilities [B, 3, L]."""
    import h5py

    with h5py.File(path) as file:
        layers = json.loads(file.attrs["model_config"])["config"]["layers"]
        stored = file["model_weights"]
        weights = {
            layer["name"]: [
                torch.from_numpy(stored[layer["name"]][name][()]).to(device)
                for name in stored[layer["name"]].attrs["weight_names"]
            ]
            for layer in layers
        }

    def run(onehot_BL4: Tensor) -> Tensor:
        outputs: dict[str, Tensor] = {}
        for layer in layers:
            settings, own = layer["config"], weights[layer["name"]]
            inputs = [outputs[node[0]] for node in (layer["inbound_nodes"] or [[]])[0]]
            outputs[layer["name"]] = _layer(
                layer["class_name"], settings, own, inputs or [onehot_BL4.transpose(1, 2)]
            )
        return outputs[layers[-1]["name"]]

    return run


def _layer(kind: str, settings: dict[str, Any], own: list[Tensor], inputs: list[Tensor]) -> Tensor:
    x_BCL = inputs[0]
    if kind == "Conv1D":
        kernel, bias = own
        x_BCL = F.conv1d(
            x_BCL, kernel.permute(2, 1, 0), bias, padding="same", dilation=settings["dilation_rate"]
        )
    elif kind == "BatchNormalization":
        scale, shift, mean, variance = (each[:, None] for each in own)
        x_BCL = (x_BCL - mean) * scale / (variance + settings["epsilon"]).sqrt() + shift
    elif kind == "Add":
        x_BCL = torch.stack(inputs).sum(0)
    elif kind == "Cropping1D":
        left, right = settings["cropping"]
        x_BCL = x_BCL[:, :, left : x_BCL.shape[2] - right]
    elif kind not in ("InputLayer", "Activation"):
        raise ValueError(f"no layer of kind {kind}")
    activation = settings.get("activation", "linear")
    if activation == "softmax":
        return x_BCL.softmax(1)
    return x_BCL.relu() if activation == "relu" else x_BCL


def one_hot(sequence: str, device: torch.device) -> Tensor:
    """The bases, with nothing on either side, [L + 2 CONTEXT, 4]."""
    table = torch.zeros(256, 4, device=device)
    table[list(b"ACGT")] = torch.eye(4, device=device)
    bases = torch.tensor([*sequence.upper().encode()], device=device)
    return F.pad(table[bases], (0, 0, CONTEXT, CONTEXT))


def main() -> None:
    """Print the metrics of the mean of the networks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, help="folder with spliceai1.h5 to spliceai5.h5")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--limit", type=int, default=None, help="only so many examples")
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.allow_tf32 = False
    networks = [read_network(path, device) for path in sorted(arguments.models.glob("*.h5"))]
    with gzip.open(arguments.data / "test.tsv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))[: arguments.limit]
    classes = ("acceptor", "donor", "none")
    truth = np.array([classes.index(row["label"]) for row in rows])
    found = []
    with console.progress("SpliceAI", len(rows), "examples") as bar, torch.no_grad():
        for start in range(0, len(rows), arguments.batch):
            batch = rows[start : start + arguments.batch]
            x_BL4 = torch.stack([one_hot(row["sequence"], device) for row in batch])
            mean_B3L = torch.stack([network(x_BL4) for network in networks]).mean(0)
            middle = mean_B3L.shape[2] // 2
            near_B3N = mean_B3L[:, :, middle - NEAR - 1 : middle + NEAR + 1]
            acceptor_B, donor_B = near_B3N[:, 1].amax(1), near_B3N[:, 2].amax(1)
            neither_B = (1 - acceptor_B - donor_B).clamp_min(0)
            scores_B3 = torch.stack([acceptor_B, donor_B, neither_B], 1)
            found.append((scores_B3 / scores_B3.sum(1, keepdim=True)).double().cpu().numpy())
            bar.advance(len(batch))
    metrics = measure(Labels(Task.CLASSIFY, classes, ""), truth, np.concatenate(found), seed=0)
    for name, value in metrics.items():
        console.say(f"{name}: {value}")


if __name__ == "__main__":
    main()
