"""`evo2 fetch`: what comes is what was published; what cannot come is one line."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from typer.testing import CliRunner

from evo2cli.app import app
from evo2cli.errors import UserError
from evo2cli.fetch import fetch_model
from stripedhyena2 import CheckpointError, ModelConfig, StripedHyena2, load
from stripedhyena2.checkpoint import read_checkpoint
from stripedhyena2.checkpoint.contents import Checkpoint
from stripedhyena2.checkpoint.layouts import hf, vortex
from stripedhyena2.checkpoint.published import PUBLISHED
from stripedhyena2.parametrization import folded_state
from tests.hub import LocalHub, serve

NAME, COMMIT = "evo2_40b", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def content(tiny_model: StripedHyena2, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A released file."""
    file = tmp_path_factory.mktemp("released") / "whole.pt"
    vortex.write(Checkpoint(tiny_model.config, folded_state(tiny_model)), file)
    return file.read_bytes()


@pytest.fixture
def hub(
    content: bytes, tiny_config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LocalHub]:
    """A hub that publishes it in two parts, and an empty cache."""
    half = len(content) // 2
    files = {f"{NAME}.pt.part0": content[:half], f"{NAME}.pt.part1": content[half:]}
    entry = replace(
        PUBLISHED[NAME],
        commit=COMMIT,
        sizes=tuple(len(part) for part in files.values()),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    monkeypatch.setitem(PUBLISHED, NAME, entry)
    monkeypatch.setattr("stripedhyena2.checkpoint.loading.published_config", lambda _: tiny_config)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serve(entry.repository, COMMIT, {**files, "README.md": b"a card"}) as hub:
        connect(monkeypatch, hub.address)
        yield hub


def connect(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Let huggingface-hub speak to this address alone, and not wait before it tries again."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("time.sleep", lambda _: None)


def test_what_was_fetched_is_used_without_the_network(
    hub: LocalHub, tiny_model: StripedHyena2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"
    result = CliRunner().invoke(app, ["fetch", NAME, "--to", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["verified"]
    assert [Path(file["path"]).name for file in summary["files"]] == sorted(hub.files)[1:]
    assert len(hub.downloads()) == 2  # the parts, and nothing else
    whole = sum(len(part) for name, part in hub.files.items() if name != "README.md")
    assert sum(file.stat().st_size for file in folder.glob("*.*t*")) == whole  # no joined copy

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    ids = torch.arange(65, 85)[None]
    torch.testing.assert_close(load(folder, dtype=torch.float64)(ids), tiny_model(ids))
    assert fetch_model(NAME, folder) == {key: summary[key] for key in summary}
    assert hub.requests == []


def test_the_cache_serves_the_name(hub: LocalHub, tiny_model: StripedHyena2) -> None:
    ids = torch.arange(65, 85)[None]
    torch.testing.assert_close(load(NAME, dtype=torch.float64)(ids), tiny_model(ids))
    asked = len(hub.requests)
    load(NAME)
    assert len(hub.requests) == asked
    load(f"{NAME}@main")
    assert len(hub.downloads()) == 2  # another name of the same commit


def test_a_cut_download_goes_on(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.cut = 100_000
    summary = fetch_model(NAME, tmp_path / "bundle")
    assert summary["verified"]
    assert any("bytes=100000-" in line for line in hub.downloads())


def test_another_file_is_not_taken_for_it(hub: LocalHub, tmp_path: Path) -> None:
    name = f"{NAME}.pt.part1"
    hub.files[name] = hub.files[name][:-1] + b"x"
    with pytest.raises(UserError, match=r"part0: SHA-256 .* is not the recorded .*fetch again"):
        fetch_model(NAME, tmp_path / "bundle")


def test_a_missing_part_is_fetched_again(hub: LocalHub, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    fetch_model(NAME, folder)
    (folder / f"{NAME}.pt.part1").unlink()
    hub.requests.clear()
    assert fetch_model(NAME, folder)["verified"]
    assert [line.partition("?")[0].rpartition("/")[2] for line in hub.downloads()] == [
        f"{NAME}.pt.part1"
    ]


def test_a_full_disk_is_told_before(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"GB are missing and .*bundle has 0\.0 GB free"):
        fetch_model(NAME, tmp_path / "bundle")
    assert hub.downloads() == []


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("evo2_9b", "", "evo2_9b: not a published model; these are: evo2_1b_base"),
        (
            NAME,
            "offline",
            r"could not be fetched \(HF_HUB_OFFLINE is set\).*run this command on a machine with",
        ),
        (NAME, "away", r"is not in the local cache and could not be fetched"),
        (NAME, "gone", r"arcinstitute/evo2_40b is not on the hub, or needs a login"),
        (f"{NAME}@{'f' * 40}", "", r"has no commit f+; try evo2_40b@main"),
        (NAME, "empty", r"has no weights"),
    ],
)
def test_what_cannot_be_had_is_one_line(
    hub: LocalHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    change: str,
    message: str,
) -> None:
    if change == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif change == "away":
        connect(monkeypatch, "http://127.0.0.1:9")
    elif change == "gone":
        hub.repository = "somebody/else"
    elif change == "empty":
        hub.files = {"README.md": b"a card"}
    with pytest.raises((UserError, CheckpointError), match=message) as caught:
        fetch_model(name, tmp_path / "bundle")
    assert "\n" not in str(caught.value)
    assert "evo2 fetch" not in str(caught.value)  # it is what has just failed
    assert not list(tmp_path.glob("bundle/*.pt*"))


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_any_repository_of_the_hub_is_a_model(
    tiny_model: StripedHyena2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    """It is fetched once, with what describes its shape and nothing else, and then is here."""
    hf.write(Checkpoint(tiny_model.config, folded_state(tiny_model)), tmp_path / "hf")
    files = {file.name: file.read_bytes() for file in (tmp_path / "hf").iterdir()}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serve("lab/tuned-evo2", COMMIT, {**files, "figure.png": b"a picture"}) as hub:
        connect(monkeypatch, hub.address)
        found = read_checkpoint(f"lab/tuned-evo2{revision}")
        assert {line.split("/")[-1].split()[0] for line in hub.downloads()} >= {"config.json"}
        assert not any("figure.png" in line for line in hub.downloads())
    assert found.config == replace(tiny_model.config, base_context=found.config.base_context)
    assert found.provenance["repository"] == "lab/tuned-evo2"
    assert found.provenance["commit"] == COMMIT
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = load(f"lab/tuned-evo2{revision}", dtype=torch.float64)
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_the_repository_of_a_published_model_is_the_model(hub: LocalHub) -> None:
    del hub
    found = read_checkpoint(PUBLISHED[NAME].repository)
    assert found.provenance["repository"] == PUBLISHED[NAME].repository
    assert found.provenance["layout"] == "released"


def test_a_repository_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serve("lab/other", COMMIT, {}) as hub:
        connect(monkeypatch, hub.address)
        with pytest.raises(CheckpointError, match="lab/evo9 is not on the hub") as caught:
            read_checkpoint("lab/evo9")
    assert "\n" not in str(caught.value)
