"""What every test may lean on: where the shared material lies, and small models."""

import gc
import os
import signal
from pathlib import Path

# Small tensors: more threads only wait for each other, here and in the processes tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # the kernels run on the CPU, slowly

from stripedhyena2 import ModelConfig, StripedHyena2
from tests.models import random_model

# No law speaks of time, and a fixture may serve all examples.
hypothesis.settings.register_profile(
    "busy machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("busy machine")

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

# Tests send SIGINT to what they start, which would ignore it, as a shell's background job does.
signal.signal(signal.SIGINT, signal.default_int_handler)

gc.disable()  # while tests are imported: all of it stays, and to search it takes long


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the documentation: no process waits at the end for a test of half a minute."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


def pytest_collection_finish() -> None:
    """From here on there may be waste."""
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def what_was_imported_is_not_searched() -> None:
    """What stays of earlier modules is for good: to search it for waste takes long."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Goldens, manifests and real genomes, kept beside the checkout and not in it."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} (goldens, manifests, genomes) is not here")
    return SHARED


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """Every operator once and more, in a shape where no two sizes are equal."""
    return ModelConfig(
        stripes="SMLASML",
        width=24,
        num_heads=2,
        mlp_width=40,
        num_short_filter_groups=6,
        num_medium_filter_groups=6,
        context=256,
        num_modes=5,
        rotary_scale=4,
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_config: ModelConfig) -> StripedHyena2:
    return random_model(tiny_config)
