"""DeepSpeed as the engine: ZeRO over many ranks, bf16 weights with fp32 masters, its checkpoints.

Where a model does not fit one GPU, its weights lie in pieces over all of them (ZeRO 3). They are
cut part by part while the model is built.
"""

import contextlib
import io
import logging
import math
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from evo2cli.errors import UserError
from evo2cli.training.engine import Engine, Parameter, Start, prepare
from evo2cli.training.optimizer import make_optimizer
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from stripedhyena2 import StripedHyena2
from stripedhyena2.assembly import assemble
from stripedhyena2.parametrization import folded_state

FOLDER = "deepspeed"  # of its files in a checkpoint
_TAG = "state"


def import_deepspeed(device: torch.device) -> Any:
    """The package, quiet but for errors.

    Raises:
        UserError: It is not installed.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    try:
        with _quiet():
            import deepspeed
    except ImportError as error:
        raise UserError(
            f"this run needs DeepSpeed ({error}); pip install 'evo2cli[train]', or train with "
            "parallel.zero = 0 in one process"
        ) from None
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Collectives of CPUs for inference, which nothing here calls. On its first use DeepSpeed would
    # compile them, for a minute, behind a lock that a killed run leaves to hang all later ones.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No deprecations of its and its dependencies' own, and no print on our stdout."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


class DeepSpeedEngine(Engine):
    """A model whose optimizer, gradients or weights are sharded over the ranks.

    Several ranks shard the optimizer at least, also where the recipe says parallel.zero = 0: that
    changes no number, and nothing is gained by keeping it whole.

    Args:
        recipe: What to do.
        start: Where to begin.
        ranks: The processes; their group exists.
    """

    name = "deepspeed"

    def __init__(self, recipe: Recipe, start: Start, ranks: Ranks) -> None:
        self.ranks = ranks
        self._recipe = recipe
        self._deepspeed = import_deepspeed(ranks.device)
        self._stage = max(1, recipe.parallel.zero)
        self._dtype = torch.bfloat16 if recipe.precision.compute == "bf16" else torch.float32
        settings = deepspeed_settings(recipe, ranks.world)
        backend = "nccl" if ranks.device.type == "cuda" else "gloo"
        if not dist.is_initialized():  # one process, which no launcher told its rank
            os.environ.setdefault("LOCAL_RANK", str(ranks.device.index or 0))  # DeepSpeed's device
            store = dist.HashStore()  # type: ignore[attr-defined] # exported, but not by name
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
        with _quiet():
            self._deepspeed.init_distributed(backend, auto_mpi_discovery=False)
            model = self._assemble(start, settings)
            optimizer = make_optimizer(model, recipe.optimizer)
            self._engine, *_ = self._deepspeed.initialize(
                model=model, optimizer=optimizer, config=settings
            )
        self.model = self._engine.module

    @property
    def layout(self) -> dict[str, Any]:
        """As `Engine`."""
        return {**super().layout, "zero": self._stage}

    def _assemble(self, start: Start, settings: dict[str, Any]) -> StripedHyena2:
        def adopt(part: nn.Module) -> None:
            if self._stage < 3:
                part.to(self.ranks.device)
                return
            for parameter in part.parameters():
                parameter.data = parameter.data.to(self._dtype)
            for buffer in part.buffers():
                buffer.data = buffer.data.to(self.ranks.device)
            self._deepspeed.zero.Init(module=part, config_dict_or_path=settings, dtype=self._dtype)

        model = assemble(
            start.config,
            seed=self._recipe.seed,
            weights=start.weights,
            published=self._recipe.optimizer.decay == "evo2-published",
            adopt=adopt,
        ).train()
        self.part = prepare(model, self._recipe, self.ranks)
        return model

    def forward(self, ids_BL: Tensor) -> Tensor:
        """As `Engine`."""
        logits: Tensor = self._engine(ids_BL)
        return logits

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """As `Engine`: DeepSpeed averages over ranks, so a sum is the average of world times it."""
        self._engine.backward(loss * self.ranks.world, scale_wrt_gas=False)
        if not last:
            self._engine.step()  # only counts

    def step(self, learning_rate: float) -> float:
        """As `Engine`."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        skipped = self._engine.skipped_steps
        self._engine.step()
        if self._engine.skipped_steps > skipped:
            return math.nan
        return float(self._engine.get_global_grad_norm())

    def nonfinite_gradient(self) -> str | None:
        """As `Engine`: DeepSpeed has let go of the gradients by then."""
        return None

    def save(self, folder: Path) -> None:
        """As `Engine`: DeepSpeed's own files."""
        with _quiet():
            self._engine.save_checkpoint(str(folder / FOLDER), tag=_TAG, save_latest=False)

    def restore(self, folder: Path) -> None:
        """As `Engine`."""
        with _quiet():
            found, _ = self._engine.load_checkpoint(str(folder / FOLDER), tag=_TAG)
        if found is None:
            raise FileNotFoundError(folder / FOLDER)

    def adopt(self, parameters: Iterator[Parameter], steps: int) -> None:
        """As `Engine`.

        A step of rate 0 between weights and moments lets bf16 copies follow their masters, and
        makes the moments exist.
        """
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        own, place = dict(self.model.named_parameters()), self.ranks.device
        moments = []
        for parameter in parameters:
            safe_set_full_fp32_param(own[parameter.name], parameter.value.to(place))
            moments.append(parameter)
        self._idle_step()
        for parameter in moments:
            target = own[parameter.name]
            safe_set_full_optimizer_state(target, parameter.average.to(place), "exp_avg")
            safe_set_full_optimizer_state(target, parameter.square.to(place), "exp_avg_sq")
        for state in self._engine.optimizer.optimizer.state.values():
            state["step"] = torch.full_like(torch.as_tensor(state["step"]), float(steps))

    def _idle_step(self) -> None:
        length = self.part[1] - self.part[0] if self.ranks.context > 1 else 1
        ids_BL = torch.zeros(1, length, dtype=torch.long, device=self.ranks.device)
        count = self._engine.gradient_accumulation_steps()
        for micro in range(count):
            self.backward(0 * self.forward(ids_BL).sum(), last=micro == count - 1)
        self.step(0.0)
        optimizer = self._engine.optimizer
        if hasattr(optimizer, "_hp_optimizer_states_linked"):
            # DeepSpeed 0.19 finds the moments after the step of the first group of parameters, when
            # those of the second do not exist yet, and never looks again.
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()

    def weights(self) -> dict[str, Tensor]:
        """As `Engine`: every parameter is gathered by itself, from its fp32 master."""
        from deepspeed.utils import safe_get_full_fp32_param

        whole = []
        for name, parameter in self.model.named_parameters():
            value = safe_get_full_fp32_param(parameter)
            if self.ranks.is_first:
                whole.append((name, value.cpu()))
        if not self.ranks.is_first:
            return {}
        return {name: tensor.cpu() for name, tensor in folded_state(self.model, whole).items()}


def deepspeed_settings(recipe: Recipe, world: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a recipe."""
    micro = recipe.micro(world)
    # DeepSpeed counts windows by GPU, wherever their parts are; ours are the same on neighbours.
    groups = world // recipe.parallel.context
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": recipe.batch.sequences // (groups * micro),
        "gradient_clipping": recipe.optimizer.clip,
        "zero_optimization": {"stage": max(1, recipe.parallel.zero)},
        "zero_allow_untested_optimizer": True,
        # Gradients are added up and sent in fp32, whatever the weights are.
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    if recipe.precision.compute == "bf16":
        settings["bf16"] = {"enabled": True, "check_grad_overflow": True}
    return settings


def deepspeed_parameters(
    folder: Path, shapes: Mapping[str, torch.Size], ranks: Ranks
) -> Iterator[Parameter]:
    """The parameters that DeepSpeed saved on any number of ranks, for another engine to adopt.

    DeepSpeed's own converter joins the pieces once; all ranks then read the same files.

    Args:
        folder: A checkpoint.
        shapes: Of the parameters, by name.
        ranks: Who reads.

    Raises:
        UserError: The files cannot be joined.
    """
    joined = folder / "joined"
    if ranks.is_first and not joined.is_dir():
        _join(folder, joined)
    ranks.wait()
    for name, shape in shapes.items():
        value, average, square = (
            _read_joined(joined / "zero" / name / f"{part}.pt", shape)
            for part in ("fp32", "exp_avg", "exp_avg_sq")
        )
        yield Parameter(name, value, average, square)


def _join(folder: Path, joined: Path) -> None:
    partial = joined.with_name(f".{joined.name}")
    shutil.rmtree(partial, ignore_errors=True)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(folder / FOLDER / _TAG), "--output_folder", str(partial)]
    command += ["--inject_missing_state"]
    result = subprocess.run(  # noqa: S603 - our own interpreter
        command, capture_output=True, text=True, check=False
    )
    if result.returncode:
        reason = result.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise UserError(f"{folder}: DeepSpeed cannot join its pieces ({reason[0]})")
    partial.rename(joined)


def _read_joined(file: Path, shape: torch.Size) -> Tensor:
    """ZeRO 1 and 2 leave a tensor among other facts; ZeRO 3 a flat one, padded to its pieces."""
    found = torch.load(file, weights_only=True)
    tensor: Tensor = found["param"] if isinstance(found, dict) else found
    return tensor.detach().flatten()[: shape.numel()].view(shape)
