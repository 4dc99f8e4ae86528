"""The folder of a fine-tuned model: write it, and load the model from it.

finetune.json       task, classes, features of the head, base and its fingerprint, and results
head.safetensors    the head
adapter/            the adapter, in the format of the package `peft` (method lora)
model/              the whole model, as a native checkpoint (method full)

In the folder of a run it is `final`, and during training `best`.
"""

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from evo2cli.errors import UserError
from evo2cli.files import atomic_path, writing
from evo2cli.finetune.heads import Head, Reading, TaskModel, padded
from evo2cli.finetune.tasks import Labels, Task
from evo2cli.models import open_model
from evo2cli.options import ModelOptions
from stripedhyena2 import StripedHyena2
from stripedhyena2.adapters import Adapter, LoRA, check_base, read_adapter, write_adapter
from stripedhyena2.checkpoint import read_checkpoint, save_weights
from stripedhyena2.checkpoint.shards import write_safetensors
from stripedhyena2.config import ModelConfig
from stripedhyena2.dna import as_read, strand_of
from stripedhyena2.packing import Shapes
from stripedhyena2.values import read_json

FACTS, HEAD, ADAPTER, MODEL = "finetune.json", "head.safetensors", "adapter", "model"
PAD = 0  # token id of padding at the end of a sequence; the model is causal, so no base sees it
BATCH_TOKENS = 65_536  # positions per forward pass without gradients, on a GPU
CPU_TOKENS = 8_192  # the same on a CPU

_OBJECT = TypeAdapter(dict[str, Any])


@dataclass(frozen=True)
class Description:
    """Metadata of a fine-tuned model.

    Attributes:
        labels: Task and classes.
        method: "lora", "full" or "head".
        base: Name of the base model.
        base_fingerprint: Fingerprint of the stored weights of the base.
        length: Maximum sequence length in training, in bases.
        cut: The part of longer sequences that was kept.
        reading: The features that the head reads; None for lm.
        head: "linear" or "mlp".
        num_features: Number of features that the head reads, F.
        scale: Mean and standard deviation of each regression target, to rescale outputs.
        temperature: Calibration: logits are divided by it before they become probabilities.
        adapters: Hyperparameters of the adapters; None without adapters.
    """

    labels: Labels
    method: str
    base: str
    base_fingerprint: str
    length: int
    cut: str = "centre"
    reading: Reading | None = None
    head: str = "linear"
    num_features: int = 0
    scale: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    temperature: float = 1.0
    adapters: LoRA | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """The content of finetune.json, as JSON values."""
        labels = {"task": str(self.labels.task), "classes": list(self.labels.classes)}
        others = asdict(self)
        del others["labels"]
        return {**labels, **others}

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> "Description":
        """Create it from `facts`."""
        keys = ("method", "base", "base_fingerprint", "length", "cut", "head", "num_features")
        return cls(
            labels=Labels(Task(facts["task"]), tuple(facts["classes"])),
            reading=Reading(**facts["reading"]) if facts["reading"] else None,
            scale=tuple(map(tuple, facts["scale"])) if facts["scale"] else None,  # type: ignore[arg-type] # two rows
            temperature=float(facts["temperature"]),
            adapters=LoRA(**facts["adapters"]) if facts["adapters"] else None,
            **{key: facts[key] for key in keys},
        )

    @property
    def num_outputs(self) -> int:
        """Number of outputs of the head, C."""
        return len(self.labels.classes)

    def new_model(self, trunk: StripedHyena2 | None) -> TaskModel:
        """A model with a new head; without a trunk, its input are features."""
        assert self.reading is not None
        head = Head(self.num_features, self.num_outputs, self.head)
        return TaskModel(trunk, head, self.reading)


def write_tuned(
    description: Description,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    folder: Path,
    provenance: Mapping[str, Any],
) -> None:
    """Write a fine-tuned model.

    Args:
        description: Its metadata.
        config: The shape of the model.
        weights: Trained weights by name, in fp32; below a head, names begin with `trunk.`.
        folder: A folder that does not exist yet.
        provenance: Further metadata, as JSON values.
    """
    folder.mkdir(parents=True)
    trunk = {name.removeprefix("trunk."): tensor for name, tensor in weights.items()}
    head = {n: trunk.pop(n) for n in [*trunk] if n.startswith(("head.", "pooling."))}
    if head:
        write_safetensors(head, folder / HEAD)
    if description.adapters is not None:
        adapters = {name: tensor for name, tensor in trunk.items() if "lora_" in name}
        adapter = Adapter(
            description.adapters, adapters, description.base, description.base_fingerprint
        )
        (folder / ADAPTER).mkdir()
        write_adapter(adapter, folder / ADAPTER)
    elif description.method == "full":
        origin = {"trained_by": "evo2 finetune", "base": description.base}
        save_weights(config, trunk, folder / MODEL, {**origin, **provenance})
    write_facts(folder / FACTS, {**description.facts, **provenance})


def find_tuned(run: Path) -> Path:
    """Find the fine-tuned model: the folder itself, or a subfolder of the folder of a run.

    Raises:
        UserError: There is none.
    """
    for folder in (run, run / "final", run / "best"):
        if (folder / FACTS).is_file():
            return folder
    raise UserError(
        f"{run}: is not a folder written by evo2 finetune: {FACTS} is missing there, in "
        "final and in best"
    )


def read_facts(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a run.

    Raises:
        UserError: It cannot be read.
    """
    return read_json(path, _OBJECT, UserError)


def write_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a JSON object to a file, atomically.

    Raises:
        UserError: It cannot be written.
    """
    with writing(path), atomic_path(path) as part:
        part.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def read_description(folder: Path) -> Description:
    """Read the description from the folder of a fine-tuned model.

    Raises:
        UserError: It cannot be read, or is damaged.
    """
    facts = read_facts(folder / FACTS)
    try:
        return Description.read(facts)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / FACTS}: does not describe a fine-tuned model ({error!r}); train again"
        ) from None


@dataclass
class Tuned:
    """A fine-tuned model, loaded for prediction.

    Attributes:
        description: Its metadata.
        model: The model with its head.
    """

    description: Description
    model: TaskModel

    @property
    def trunk(self) -> StripedHyena2:
        """The model below the head."""
        assert self.model.trunk is not None
        return self.model.trunk

    @torch.inference_mode()
    def outputs(self, examples: Sequence[tuple[bytes, ...]]) -> Iterator[Tensor]:
        """The outputs of the head: [C] for each example, or [L, C] for tokens; fp32, on the CPU.

        They come in the order of the examples, each as soon as all before it are computed. The
        output of an example depends on that example alone, bit for bit: batches have the fixed
        shapes of `stripedhyena2.packing`.

        Args:
            examples: The sequence of each example, or both of a pair.
        """
        reading = self.model.reading
        device, shapes = self.trunk.embedding.weight.device, Shapes.of(self.trunk)
        lengths = [shapes.padded(max(map(len, group))) for group in examples]
        waiting: dict[int, deque[int]] = {}  # rows that are not computed yet, by length
        for row, length in enumerate(lengths):
            waiting.setdefault(length, deque()).append(row)
        computed: dict[int, Tensor] = {}
        for row, length in enumerate(lengths):
            if row not in computed:
                # A batch of this length always has as many rows; the last one is repeated to fill
                # it.
                num_rows = max(shapes.rows(length) // reading.num_sequences, 1)
                same = waiting[length]
                rows = [same.popleft() for _ in range(min(num_rows, len(same)))]
                chosen = [examples[index] for index in rows]
                filling = [chosen[-1]] * (num_rows - len(rows))
                inputs = read_inputs([*chosen, *filling], reading, length)
                outputs = self.model(*(tensor.to(device) for tensor in inputs)).cpu()
                for index, group, output in zip(rows, chosen, outputs[: len(rows)], strict=True):
                    computed[index] = output[: len(group[0])] if reading.by_token else output
            yield computed.pop(row)


def read_inputs(
    examples: Sequence[tuple[bytes, ...]], reading: Reading, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Token ids [N, S, L], padded, and lengths [N, S] of examples, on the CPU.

    Args:
        examples: The sequence of each example, or both of a pair.
        reading: Determines the strands to read.
        length: L; None for the length of the longest sequence.
    """
    strands = ("fwd", "rc") if reading.strand == "both" else ("fwd",)
    read = [
        [strand_of(as_read(sequence), strand) for sequence in group for strand in strands]
        for group in examples
    ]
    longest = max(len(letters) for group in read for letters in group)
    return padded(read, length or longest, PAD)


def by_length(examples: Sequence[tuple[bytes, ...]], device: torch.device) -> Iterator[list[int]]:
    """Batch rows by similar length, up to a safe number of tokens per batch."""
    budget = BATCH_TOKENS if device.type == "cuda" else CPU_TOKENS
    longest = [max(map(len, group)) for group in examples]
    rows: list[int] = []
    for row in sorted(range(len(examples)), key=lambda row: longest[row]):
        if rows and (len(rows) + 1) * longest[row] * len(examples[row]) > budget:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


def open_tuned(run: Path, options: ModelOptions) -> Tuned:
    """Load the fine-tuned model of a run.

    Args:
        run: The folder of the run.
        options: Device and precision, and the base if it is not the recorded one.

    Raises:
        UserError: It has no head, or the folder is damaged.
        CheckpointError: The base cannot be loaded, or is not the one it was trained on.
    """
    folder = find_tuned(run)
    description = read_description(folder)
    if description.reading is None:
        raise UserError(
            f"{run}: was trained with --task lm and has no labels to predict; use it in "
            f"evo2 score or generate with --adapter {run}"
        )
    trunk = open_trunk(folder, description, options)
    model = _with_head(folder, description, trunk)
    for part in (model.head, model.pooling):
        if part is not None:
            part.to(trunk.embedding.weight.device)
    return Tuned(description, model)


def open_head(folder: Path, description: Description) -> TaskModel:
    """Load only the head, which takes features, on the CPU.

    Raises:
        UserError: The folder is damaged.
    """
    return _with_head(folder, description, None).requires_grad_(False)


def _with_head(folder: Path, description: Description, trunk: StripedHyena2 | None) -> TaskModel:
    """Load the head from the folder, on top of a trunk."""
    model = description.new_model(trunk)
    try:
        tensors = load_file(folder / HEAD)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / HEAD}: cannot be read ({error})") from None
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or any(name.startswith(("head.", "pooling.")) for name in missing):
        raise UserError(f"{folder / HEAD}: is not the head that {FACTS} describes")
    return model.eval()


def open_trunk(folder: Path, description: Description, options: ModelOptions) -> StripedHyena2:
    """Load the model below the head, with its adapter if it has one."""
    common = {"device": options.device, "dtype": options.dtype}
    if description.method == "full":
        return open_model(ModelOptions(model=str(folder / MODEL), **common))  # type: ignore[arg-type] # of their types
    base = options.model if options.model != ModelOptions.model else description.base
    trunk = open_model(ModelOptions(model=base, **common))  # type: ignore[arg-type] # of their types
    stored = read_checkpoint(base)
    of_base = (description.base, description.base_fingerprint)
    check_base(*of_base, stored.config, stored.tensors, str(folder))
    if description.adapters is not None:
        read_adapter(folder / ADAPTER).put_on(trunk)
    return trunk
