"""Published names: found in the local cache without the network, or refused in one line."""

from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from stripedhyena2 import CheckpointError, ModelConfig, StripedHyena2, load
from stripedhyena2.checkpoint import published, released
from stripedhyena2.checkpoint.contents import Checkpoint
from stripedhyena2.parametrization import folded_state

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no way out of this machine."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def fill(cache: Path, name: str, model: StripedHyena2) -> None:
    """Lay a model into the cache as the hub does."""
    repository = cache / f"models--{published.PUBLISHED[name].repository.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    released.write(Checkpoint(model.config, folded_state(model)), snapshot / f"{name}.pt")


def test_what_is_in_the_cache_needs_no_network(
    cache: Path,
    tiny_model: StripedHyena2,
    tiny_config: ModelConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(cache, "evo2_7b", tiny_model)
    monkeypatch.setattr("stripedhyena2.checkpoint.loading.published_config", lambda _: tiny_config)
    model = load("evo2_7b", dtype=torch.float64)
    ids = torch.arange(65, 85)[None]
    torch.testing.assert_close(model(ids), tiny_model(ids))


def test_what_cannot_be_had_is_one_line(cache: Path) -> None:
    assert not list(cache.iterdir())
    with pytest.raises(
        CheckpointError, match="evo2_40b: arcinstitute/evo2_40b is not in the local"
    ):
        load("evo2_40b")


def test_a_folder_of_the_same_name_wins(
    tiny_model: StripedHyena2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stripedhyena2 import save

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    save(tiny_model, tmp_path / "evo2_7b", {})
    assert load("evo2_7b").config == tiny_model.config
