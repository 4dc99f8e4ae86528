"""Published names: found in the local cache without the network, or refused in one line."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from stripedhyena2 import CheckpointError, ModelConfig, StripedHyena2, load, save
from stripedhyena2.checkpoint import hub, read_checkpoint
from stripedhyena2.checkpoint.contents import Checkpoint
from stripedhyena2.checkpoint.layouts import vortex
from stripedhyena2.checkpoint.published import PUBLISHED
from stripedhyena2.parametrization import folded_state
from tests.hub import lay

NAME = "evo2_7b"
COMMIT, OTHER = PUBLISHED[NAME].commit, "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: ModelConfig) -> Path:
    """An empty hub cache, and no way out of this machine."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("stripedhyena2.checkpoint.loading.published_config", lambda _: tiny_config)
    return tmp_path / "cache"


@pytest.fixture
def content(tiny_model: StripedHyena2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A released file, of the size that is on record for `NAME`."""
    vortex.write(Checkpoint(tiny_model.config, folded_state(tiny_model)), tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    monkeypatch.setitem(PUBLISHED, NAME, replace(PUBLISHED[NAME], sizes=(len(content),)))
    return content


def test_what_is_in_the_cache_needs_no_network(
    cache: Path, content: bytes, tiny_model: StripedHyena2
) -> None:
    repository = PUBLISHED[NAME].repository
    lay(cache, repository, COMMIT, {f"{NAME}.pt": content})
    ids = torch.arange(65, 85)[None]
    torch.testing.assert_close(load(NAME, dtype=torch.float64)(ids), tiny_model(ids))
    assert read_checkpoint(NAME).provenance == {
        "source": f"{NAME}.pt",
        "layout": "released",
        "repository": repository,
        "commit": COMMIT,
        "license": "Apache-2.0",
    }


def test_another_commit_is_taken_only_if_asked_for(cache: Path, content: bytes) -> None:
    lay(cache, PUBLISHED[NAME].repository, OTHER, {f"{NAME}.pt": content})
    with pytest.raises(CheckpointError, match=r"only another commit.*use it as evo2_7b@main"):
        load(NAME)
    for commit in ("main", OTHER):
        assert read_checkpoint(f"{NAME}@{commit}").provenance["commit"] == OTHER


def test_a_file_of_another_size_is_not_it(cache: Path, content: bytes) -> None:
    lay(cache, PUBLISHED[NAME].repository, COMMIT, {f"{NAME}.pt": content[:-1]})
    assert hub.find(NAME) is None


@pytest.mark.parametrize("count", [1, 2])
def test_a_part_alone_is_not_a_model_at_any_commit(cache: Path, count: int) -> None:
    parts = {f"evo2_40b.pt.part{number}": b"x" for number in range(count)}
    lay(cache, PUBLISHED["evo2_40b"].repository, OTHER, parts)
    assert (hub.find("evo2_40b@main") is None) is (count == 1)


def test_a_commit_that_is_not_named_is_asked_for() -> None:
    with pytest.raises(CheckpointError, match="evo2_7b@: no commit after @"):
        hub.find("evo2_7b@")


def test_what_cannot_be_had_is_one_line(cache: Path) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"evo2_40b: arcinstitute/evo2_40b is not in the local cache.*HF_HUB_OFFLINE is set",
    ):
        load("evo2_40b")
    assert not cache.exists()


@pytest.mark.usefixtures("cache")
def test_a_folder_of_the_same_name_wins(
    tiny_model: StripedHyena2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tiny_model, tmp_path / NAME, {})
    assert load(NAME).config == tiny_model.config


def test_what_is_on_record_is_the_manifests(shared: Path) -> None:
    for file in (shared / "manifests").glob("*.json"):
        recorded = json.loads(file.read_text())
        model, files = PUBLISHED[recorded["name"]], recorded["files_third_party"]
        assert model.repository == recorded["hf_repo"]
        assert (model.commit, model.sha256) == (files["revision"], files["sha256"])
        assert model.sizes == tuple(size for _, size in files["files"])


def test_records_look_like_what_they_are() -> None:
    for model in PUBLISHED.values():
        assert model.commit == "main" or len(model.commit) == 40
        assert model.sha256 is None or len(model.sha256) == hashlib.sha256().digest_size * 2
