"""What tests of commands that score share: a small model on disk."""

import pytest

from stripedhyena2 import ModelConfig, StripedHyena2, save


@pytest.fixture(scope="session")
def model(tiny_config: ModelConfig, tiny_model: StripedHyena2) -> StripedHyena2:
    """The fp32 twin of `tiny_model`."""
    twin = StripedHyena2(tiny_config).eval()
    twin.load_state_dict(tiny_model.state_dict())
    return twin


@pytest.fixture(scope="session")
def checkpoint(model: StripedHyena2, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of `model`."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save(model, folder, {})
    return str(folder)
