"""DeepSpeed as the engine: ZeRO over many ranks, and bf16 weights with fp32 masters.

A model that does not fit one GPU has its weights sharded over all of them (ZeRO 3), part by part
while it is built.

DeepSpeed has no public interface for a few things that are needed here. The functions at the end of
this file are all that depends on its internals; a test fails if one of these changes.
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
from evo2cli.training.engine import Engine, Parameter, prepare
from evo2cli.training.optimizer import make_optimizer, set_rate
from evo2cli.training.plan.calibration import LIVE, PREFETCH
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from evo2cli.training.start import Start
from stripedhyena2.mixer import Mixer
from stripedhyena2.model import Block
from stripedhyena2.parametrization import folded_state

FOLDER = "deepspeed"  # its subfolder in a checkpoint
_TAG = "state"


def import_deepspeed(device: torch.device) -> Any:
    """Import the package, with its messages reduced to errors.

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
    _disable_shm_comm(deepspeed)
    return deepspeed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence deprecation warnings, also of its dependencies, and its prints to stdout."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


class DeepSpeedEngine(Engine):
    """A model whose optimizer, gradients or weights are sharded over the ranks.

    Args:
        recipe: The recipe.
        start: The model that the run starts from.
        ranks: The processes, which have joined their group.
    """

    name = "deepspeed"

    def __init__(self, recipe: Recipe, start: Start, ranks: Ranks) -> None:
        self.ranks, self.start = ranks, start
        self._recipe = recipe
        self._deepspeed = import_deepspeed(ranks.device)
        self._stage = recipe.parallel.zero
        self._dtype = torch.bfloat16 if recipe.precision.compute == "bf16" else torch.float32
        settings = deepspeed_settings(recipe, ranks.world)
        backend = "nccl" if ranks.device.type == "cuda" else "gloo"
        if not dist.is_initialized():  # a single process without a launcher
            os.environ.setdefault("LOCAL_RANK", str(ranks.device.index or 0))  # selects the GPU
            store = dist.HashStore()  # type: ignore[attr-defined] # exported, but not by name
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
        with _quiet():
            self._deepspeed.init_distributed(backend, auto_mpi_discovery=False)
            masters: list[tuple[nn.Parameter, Tensor]] = []
            model = self._build(settings, masters)
            optimizer = make_optimizer(model, recipe.optimizer, recipe.head_scale)
            self._engine, *_ = self._deepspeed.initialize(
                model=model, optimizer=optimizer, config=settings
            )
            self._widen(masters)
        self.model = self._engine.module

    @property
    def layout(self) -> dict[str, Any]:
        """As `Engine`."""
        return {**super().layout, "zero": self._stage}

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """As `Engine`."""
        return {name: _whole_shape(tensor) for name, tensor in self.trained.items()}

    def _build(
        self, settings: dict[str, Any], masters: list[tuple[nn.Parameter, Tensor]]
    ) -> nn.Module:
        """The model, before DeepSpeed takes it over.

        Args:
            settings: The configuration of DeepSpeed.
            masters: Where parameters are narrowed, they are appended here with this rank's shard of
                their fp32 values, so that all ranks together keep one copy.
        """

        def adopt(part: nn.Module) -> None:
            for module in part.modules():
                if isinstance(module, Mixer):
                    module.keeps_fp32 = False  # DeepSpeed narrows all parameters alike
            if self._dtype != torch.float32:
                for parameter in part.parameters():
                    masters.append((parameter, self._shard(parameter.detach())))
                    parameter.data = parameter.data.to(self._dtype)
            if self._stage < 3:
                part.to(self.ranks.device)
                return
            for buffer in part.buffers():
                buffer.data = buffer.data.to(self.ranks.device)
            self._deepspeed.zero.Init(module=part, config_dict_or_path=settings, dtype=self._dtype)

        model = self.start.build(self._recipe, adopt).train()
        # A block is gathered as one, because hooks cost more than its bytes. On CPUs DeepSpeed asks
        # for the stream of gradients that such a module got without being trained.
        if self._stage == 3 and self.ranks.device.type == "cuda":
            self._deepspeed.utils.set_z3_leaf_modules(model, [Block])
        self.part = prepare(model, self._recipe, self.ranks)
        return model

    def _shard(self, whole: Tensor) -> Tensor:
        """A copy of this rank's share of a tensor, flat and padded at the end, as ZeRO 3 has it."""
        size = -(-whole.numel() // self.ranks.world)
        own = whole.flatten()[self.ranks.rank * size :][:size]
        return nn.functional.pad(own, (0, size - len(own))).clone()

    def _widen(self, masters: list[tuple[nn.Parameter, Tensor]]) -> None:
        """Give fp32 masters, which DeepSpeed made of bf16 weights, the digits that those lost."""
        for parameter, shard in masters:
            if parameter.requires_grad and self._stage == 3:
                self._set_shard(parameter, shard)
            elif parameter.requires_grad:
                own = shard.to(self.ranks.device)
                shards = [torch.empty_like(own) for _ in range(self.ranks.world)]
                dist.all_gather(shards, own)
                self._set(parameter, torch.cat(shards)[: _whole_shape(parameter).numel()])

    def forward(self, *inputs: Tensor) -> Tensor:
        """As `Engine`."""
        outputs: Tensor = self._engine(*inputs)
        return outputs

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """As `Engine`; DeepSpeed averages over ranks, so the loss is multiplied by their number."""
        self._engine.backward(loss * self.ranks.world, scale_wrt_gas=False)
        if not last:
            self._engine.step()  # only counts micro-batches

    def step(self, learning_rate: float) -> float:
        """As `Engine`."""
        set_rate(self._engine.optimizer, learning_rate)
        skipped = self._engine.skipped_steps
        self._engine.step()
        if self._engine.skipped_steps > skipped:
            return math.nan
        return float(self._engine.get_global_grad_norm())

    def nonfinite_gradient(self) -> str | None:
        """As `Engine`: None, because DeepSpeed has freed the gradients."""
        return None

    def save(self, folder: Path) -> None:
        """As `Engine`, in DeepSpeed's own files."""
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

        A step with learning rate 0, between setting weights and moments, copies the fp32 masters to
        the bf16 weights and creates the moments.
        """
        own = self.trained
        moments = []
        for parameter in parameters:
            self._set(own[parameter.name], parameter.value)
            moments.append(parameter)
        self._idle_step()
        for parameter in moments:
            self._set(own[parameter.name], parameter.average, "exp_avg")
            self._set(own[parameter.name], parameter.square, "exp_avg_sq")
        _set_step_count(self._engine.optimizer, steps)

    def _set(self, parameter: nn.Parameter, whole: Tensor, moment: str | None = None) -> None:
        """Set the fp32 master of a parameter, or one of its moments, to values all ranks have."""
        from deepspeed import utils

        if self._stage == 3:
            self._set_shard(parameter, self._shard(whole), moment)
        else:
            whole = whole.to(self.ranks.device)
            if moment is None:
                utils.safe_set_full_fp32_param(parameter, whole)
            else:
                utils.safe_set_full_optimizer_state(parameter, whole, moment)

    def _set_shard(self, parameter: nn.Parameter, own: Tensor, moment: str | None = None) -> None:
        """As `_set` under ZeRO 3, by this rank's share.

        Shards are set, not the whole: DeepSpeed 0.19 does not pad the last one itself.
        """
        from deepspeed import utils

        if moment is None:
            utils.safe_set_local_fp32_param(parameter, own)
        else:
            utils.safe_set_local_optimizer_state(parameter, own, moment)

    def _idle_step(self) -> None:
        length = self.part[1] - self.part[0] if self.ranks.context_parallel > 1 else 1
        ids_BL = torch.zeros(1, length, dtype=torch.long, device=self.ranks.device)
        count = self._engine.gradient_accumulation_steps()
        for micro in range(count):
            self.backward(0 * self.forward(ids_BL).sum(), last=micro == count - 1)
        self.step(0.0)
        _link_moments(self._engine.optimizer)

    def weights(self) -> dict[str, Tensor]:
        """As `Engine`; parameters are gathered one by one from their fp32 masters."""
        from deepspeed.utils import safe_get_full_fp32_param

        whole = []
        for name, parameter in self.trained.items():
            value = safe_get_full_fp32_param(parameter)
            if self.ranks.is_first:
                # A copy on a CPU, too: it may be a view into a padded buffer.
                whole.append((name, value.to("cpu", copy=True)))
        if not self.ranks.is_first:
            return {}
        return {name: tensor.cpu() for name, tensor in folded_state(self.model, whole).items()}


def deepspeed_settings(recipe: Recipe, world: int) -> dict[str, Any]:
    """The configuration of DeepSpeed for a recipe."""
    micro = recipe.micro(world)
    # DeepSpeed counts windows per GPU; under context parallelism a window is counted once a group.
    groups = world // recipe.parallel.context
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": recipe.batch.sequences // (groups * micro),
        "gradient_clipping": recipe.optimizer.clip,
        "zero_optimization": _zero_settings(recipe.parallel.zero),
        "zero_allow_untested_optimizer": True,
        # Gradients are summed and communicated in fp32, whatever the dtype of the weights.
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    if recipe.precision.compute == "bf16":
        settings["bf16"] = {"enabled": True, "check_grad_overflow": True}
    return settings


def _zero_settings(stage: int) -> dict[str, Any]:
    """How weights are gathered under ZeRO 3; tests/benchmarks/results/training.md has the times."""
    if stage < 3:
        return {"stage": stage}
    return {
        "stage": stage,
        # Parameters of up to so many numbers (norms, filters, biases) are not sharded at all.
        "stage3_param_persistence_threshold": 1_000_000,
        "stage3_prefetch_bucket_size": PREFETCH,
        "stage3_max_live_parameters": LIVE,
        "stage3_max_reuse_distance": LIVE,
    }


def deepspeed_parameters(
    folder: Path, shapes: Mapping[str, torch.Size], ranks: Ranks
) -> Iterator[Parameter]:
    """The parameters that DeepSpeed saved on any number of ranks, for another engine to adopt.

    DeepSpeed's own converter joins the shards once; then all ranks read the same files.

    Args:
        folder: A checkpoint.
        shapes: Shapes of the whole parameters, by name.
        ranks: The ranks that read.

    Raises:
        UserError: The shards cannot be joined.
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
        raise UserError(f"{folder}: DeepSpeed cannot join its shards ({reason[0]})")
    partial.rename(joined)


def _read_joined(file: Path, shape: torch.Size) -> Tensor:
    """Read a tensor: in a dict from ZeRO 1 and 2; flat, with padding, from ZeRO 3."""
    found = torch.load(file, weights_only=True)
    tensor: Tensor = found["param"] if isinstance(found, dict) else found
    return tensor.detach().flatten()[: shape.numel()].view(shape)


def _disable_shm_comm(deepspeed: Any) -> None:
    """Mark the shared-memory collectives, which only inference on CPUs uses, as not available.

    DeepSpeed would otherwise compile them on its first use: for a minute, under a file lock that a
    killed run leaves behind, which blocks all later runs.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of a parameter that ZeRO 3 may have sharded."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def _set_step_count(optimizer: Any, steps: int) -> None:
    """Set the number of steps of the AdamW inside DeepSpeed's optimizer."""
    for state in optimizer.optimizer.state.values():
        state["step"] = torch.full_like(torch.as_tensor(state["step"]), float(steps))


def _link_moments(optimizer: Any) -> None:
    """Make the moments of all parameters known to `safe_set_full_optimizer_state`.

    DeepSpeed 0.19 links them (under ZeRO 1 and 2) after the step of the first parameter group, when
    those of the second group do not exist yet, and never again.
    """
    if hasattr(optimizer, "_hp_optimizer_states_linked"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()
