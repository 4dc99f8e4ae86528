"""The DeepSpeed engine: ZeRO over many ranks, and bf16 weights with fp32 master weights.

Under ZeRO 3 the weights are sharded while the model is built, module by module, so that a model
need not fit one GPU.

DeepSpeed has no public interface for a few things that are needed here. Only the functions at the
end of this file depend on its internals; a test fails if one of these changes.
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
    """Import DeepSpeed, and silence all its messages but errors.

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
    """Silence deprecation warnings of DeepSpeed and its dependencies, and prints to stdout."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


class DeepSpeedEngine(Engine):
    """A model whose optimizer, gradients or weights are sharded over the ranks.

    Args:
        recipe: The recipe.
        start: The model that the run starts from.
        ranks: The ranks, whose process group is initialized.
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
            self._restore_masters(masters)
        self.model = self._engine.module

    @property
    def layout(self) -> dict[str, Any]:
        """As `Engine`."""
        return {**super().layout, "zero": self._stage}

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """As `Engine`."""
        return {name: _whole_shape(tensor) for name, tensor in self.trainable.items()}

    def _build(
        self, settings: dict[str, Any], masters: list[tuple[nn.Parameter, Tensor]]
    ) -> nn.Module:
        """Build the model that DeepSpeed is initialized with.

        Args:
            settings: The configuration of DeepSpeed.
            masters: Parameters that are cast to bf16 are appended here, each with this rank's shard
                of its fp32 values, so that all ranks together keep one copy.
        """

        def adopt(part: nn.Module) -> None:
            for module in part.modules():
                if isinstance(module, Mixer):
                    module.keeps_fp32 = False  # DeepSpeed casts all parameters alike
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
        # Gather a block as a unit: hooks on each of its modules cost more time than the transfer.
        # On CPUs DeepSpeed asks for the stream of gradients that such a module got without being
        # trained.
        if self._stage == 3 and self.ranks.device.type == "cuda":
            self._deepspeed.utils.set_z3_leaf_modules(model, [Block])
        self.positions = prepare(model, self._recipe, self.ranks)
        return model

    def _shard(self, whole: Tensor) -> Tensor:
        """A copy of this rank's shard of a tensor: flat, padded at the end, as in ZeRO 3."""
        size = -(-whole.numel() // self.ranks.world)
        shard = whole.flatten()[self.ranks.rank * size :][:size]
        return nn.functional.pad(shard, (0, size - len(shard))).clone()

    def _restore_masters(self, masters: list[tuple[nn.Parameter, Tensor]]) -> None:
        """Restore the fp32 masters, which DeepSpeed has copied from the rounded bf16 weights."""
        for parameter, shard in masters:
            if parameter.requires_grad and self._stage == 3:
                self._set_shard(parameter, shard)
            elif parameter.requires_grad:
                shard = shard.to(self.ranks.device)
                shards = [torch.empty_like(shard) for _ in range(self.ranks.world)]
                dist.all_gather(shards, shard)
                self._set(parameter, torch.cat(shards)[: _whole_shape(parameter).numel()])

    def forward(self, *inputs: Tensor) -> Tensor:
        """As `Engine`."""
        outputs: Tensor = self._engine(*inputs)
        return outputs

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """As `Engine`; the loss is scaled by the world size, because DeepSpeed averages ranks."""
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
        """As `Engine`: always None, because DeepSpeed has freed the gradients."""
        return None

    def save(self, folder: Path) -> None:
        """As `Engine`, in DeepSpeed's checkpoint format."""
        with _quiet():
            self._engine.save_checkpoint(str(folder / FOLDER), tag=_TAG, save_latest=False)

    def restore(self, folder: Path) -> None:
        """As `Engine`."""
        with _quiet():
            loaded, _ = self._engine.load_checkpoint(str(folder / FOLDER), tag=_TAG)
        if loaded is None:
            raise FileNotFoundError(folder / FOLDER)

    def load_parameters(self, parameters: Iterator[Parameter], steps: int) -> None:
        """As `Engine`.

        A step with learning rate 0, after the weights and before the moments are set, copies the
        fp32 masters to the bf16 weights and allocates the moments.
        """
        trainable = self.trainable
        moments = []
        for parameter in parameters:
            self._set(trainable[parameter.name], parameter.value)
            moments.append(parameter)
        self._zero_rate_step()
        for parameter in moments:
            self._set(trainable[parameter.name], parameter.exp_avg, "exp_avg")
            self._set(trainable[parameter.name], parameter.exp_avg_sq, "exp_avg_sq")
        _set_step_count(self._engine.optimizer, steps)

    def _set(self, parameter: nn.Parameter, whole: Tensor, moment: str | None = None) -> None:
        """Set the fp32 master of a parameter, or one of its moments, from the unsharded tensor."""
        from deepspeed import utils

        if self._stage == 3:
            self._set_shard(parameter, self._shard(whole), moment)
        else:
            whole = whole.to(self.ranks.device)
            if moment is None:
                utils.safe_set_full_fp32_param(parameter, whole)
            else:
                utils.safe_set_full_optimizer_state(parameter, whole, moment)

    def _set_shard(self, parameter: nn.Parameter, shard: Tensor, moment: str | None = None) -> None:
        """As `_set` under ZeRO 3, from this rank's shard.

        DeepSpeed 0.19 could shard the whole tensor itself, but does not pad the last shard.
        """
        from deepspeed import utils

        if moment is None:
            utils.safe_set_local_fp32_param(parameter, shard)
        else:
            utils.safe_set_local_optimizer_state(parameter, shard, moment)

    def _zero_rate_step(self) -> None:
        """Take an optimizer step that changes no weight."""
        length = self.positions[1] - self.positions[0] if self.ranks.context_parallel > 1 else 1
        ids_BL = torch.zeros(1, length, dtype=torch.long, device=self.ranks.device)
        count = self._engine.gradient_accumulation_steps()
        for micro in range(count):
            self.backward(0 * self.forward(ids_BL).sum(), last=micro == count - 1)
        self.step(0.0)
        _link_moments(self._engine.optimizer)

    def weights(self) -> dict[str, Tensor]:
        """As `Engine`; gathers the fp32 masters one parameter at a time."""
        from deepspeed.utils import safe_get_full_fp32_param

        whole = []
        for name, parameter in self.trainable.items():
            value = safe_get_full_fp32_param(parameter)
            if self.ranks.is_first:
                # Copied even on a CPU, where it may be a view into a padded buffer.
                whole.append((name, value.to("cpu", copy=True)))
        if not self.ranks.is_first:
            return {}
        return {name: tensor.cpu() for name, tensor in folded_state(self.model, whole).items()}


def deepspeed_settings(recipe: Recipe, world: int) -> dict[str, Any]:
    """The configuration of DeepSpeed for a recipe."""
    micro = recipe.micro(world)
    # DeepSpeed counts windows per data-parallel rank, which is a context-parallel group here.
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
    """The ZeRO configuration; tests/benchmarks/results/training.md has timings of its values."""
    if stage < 3:
        return {"stage": stage}
    return {
        "stage": stage,
        # Parameters with fewer elements (norms, filters, biases) are not sharded.
        "stage3_param_persistence_threshold": 1_000_000,
        "stage3_prefetch_bucket_size": PREFETCH,
        "stage3_max_live_parameters": LIVE,
        "stage3_max_reuse_distance": LIVE,
    }


def deepspeed_parameters(
    folder: Path, shapes: Mapping[str, torch.Size], ranks: Ranks
) -> Iterator[Parameter]:
    """The unsharded parameters of a DeepSpeed checkpoint, for another engine or world size.

    Rank 0 joins the shards with DeepSpeed's converter; then all ranks read the same files.

    Args:
        folder: A checkpoint, written by any number of ranks.
        shapes: Shapes of the unsharded parameters, by name.
        ranks: The ranks that read.

    Raises:
        UserError: The shards cannot be joined.
    """
    joined = folder / "joined"
    if ranks.is_first and not joined.is_dir():
        _join(folder, joined)
    ranks.barrier()
    for name, shape in shapes.items():
        value, exp_avg, exp_avg_sq = (
            _read_joined(joined / "zero" / name / f"{part}.pt", shape)
            for part in ("fp32", "exp_avg", "exp_avg_sq")
        )
        yield Parameter(name, value, exp_avg, exp_avg_sq)


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
    """Read a joined tensor; ZeRO 1 and 2 wrap it in a dict, ZeRO 3 leaves it flat and padded."""
    stored = torch.load(file, weights_only=True)
    tensor: Tensor = stored["param"] if isinstance(stored, dict) else stored
    return tensor.detach().flatten()[: shape.numel()].view(shape)


def _disable_shm_comm(deepspeed: Any) -> None:
    """Mark the shared-memory collectives, which only CPU inference uses, as not available.

    DeepSpeed would otherwise compile them on first use. That takes a minute, under a file lock that
    a killed run leaves behind and that blocks all later runs.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The unsharded shape of a parameter."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def _set_step_count(optimizer: Any, steps: int) -> None:
    """Set the step count of the AdamW inside DeepSpeed's optimizer."""
    for state in optimizer.optimizer.state.values():
        state["step"] = torch.full_like(torch.as_tensor(state["step"]), float(steps))


def _link_moments(optimizer: Any) -> None:
    """Link the moments of all parameters, for `safe_set_full_optimizer_state`.

    Under ZeRO 1 and 2, DeepSpeed 0.19 links them only once, after the step of the first parameter
    group, when those of the second do not exist yet.
    """
    if hasattr(optimizer, "_hp_optimizer_states_linked"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()
