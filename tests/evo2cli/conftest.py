"""What tests of commands share: the command line, and a small model on disk."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest

from evo2cli import console
from evo2cli.app import main
from evo2cli.journal import _Journal
from evo2cli.training import loop
from stripedhyena2 import ModelConfig, StripedHyena2, save
from tests.models import random_model

# At its end a run would unfreeze what tests/conftest.py has frozen.
loop._gc_frozen = nullcontext


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`evo2` as its console script runs it, in this process: code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["evo2", *arguments])
        monkeypatch.setattr(console, "show_warnings", lambda: None)  # for good, it would be
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def stopped_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """A block that ends as by Ctrl-C once so many results are stored in a journal."""
    recall = _Journal.recall

    @contextmanager
    def stop(count: int) -> Iterator[None]:
        def recall_some(journal: _Journal, *arguments: Any) -> Any:
            nonlocal count
            if not count:
                raise KeyboardInterrupt
            count -= 1
            return recall(journal, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(_Journal, "recall", recall_some)
            with pytest.raises(KeyboardInterrupt):
                yield

    return stop


# Of a module: as long as playwright runs, no test can start an event loop of its own.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium, driven by playwright; its own or one of the system."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no Chromium starts here: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def tiny_config(tiny_config: ModelConfig) -> ModelConfig:
    """Every operator once: that blocks of one kind differ is a law of the model."""
    return replace(tiny_config, stripes="SMLA")


@pytest.fixture(scope="session")
def tiny_model(tiny_config: ModelConfig) -> StripedHyena2:
    return random_model(tiny_config)


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
