"""`evo2 convert`: there and back is the same file, and what cannot be is one line."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from evo2cli.app import app
from evo2cli.commands.convert import ConvertOptions
from evo2cli.convert.run import convert_checkpoint
from evo2cli.errors import UserError
from stripedhyena2 import CheckpointError, StripedHyena2, load, save


@pytest.fixture
def native(tiny_model: StripedHyena2, tmp_path: Path) -> Path:
    save(tiny_model, tmp_path / "native", {})
    return tmp_path / "native"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_there_and_back(native: Path, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"released{suffix}"
    first = convert_checkpoint(str(native), file)
    second = convert_checkpoint(str(file), tmp_path / "back", config=str(file.with_suffix(".yml")))
    assert (first["layout"], second["layout"]) == ("vortex", "native")
    assert first["parameters"] == second["parameters"]
    for name in ("config.toml", "model.safetensors"):
        assert (tmp_path / "back" / name).read_bytes() == (native / name).read_bytes()
    ids = torch.arange(65, 95)[None]
    assert torch.equal(
        load(native, dtype=torch.float64)(ids), load(tmp_path / "back", dtype=torch.float64)(ids)
    )


@pytest.mark.parametrize(
    ("destination", "to", "message"),
    [
        ("out", "vortex", "written as a .pt or .safetensors file"),
        ("out.pt", "native", "written as a folder"),
        ("out.bin", "auto", r"end in \.pt or \.safetensors; for a folder .* give --to native, hf"),
        ("out.PT", "auto", r"end in \.pt or \.safetensors"),
    ],
)
def test_impossible_targets_are_named(
    native: Path, tmp_path: Path, destination: str, to: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        convert_checkpoint(str(native), tmp_path / destination, to=to)
    assert not (tmp_path / destination).exists()


@pytest.mark.parametrize(
    ("folder", "to", "exists"),
    [("nano-v1.5", "auto", False), ("out.bin", "native", False), ("out.bin", "auto", True)],
)
def test_a_folder_may_have_any_name(
    native: Path, tmp_path: Path, folder: str, to: str, exists: bool
) -> None:
    if exists:
        (tmp_path / folder).mkdir()
    assert convert_checkpoint(str(native), tmp_path / folder, to=to)["layout"] == "native"
    assert (tmp_path / folder).is_dir()


@pytest.mark.parametrize("to", ["native", "hf", "savanna"])
def test_a_folder_of_other_things_is_refused_before_the_source_is_read(
    tmp_path: Path, to: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(CheckpointError, match="mine: exists"):
        convert_checkpoint("no such source", tmp_path / "mine", to=to)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--to gguf: must be one of auto, native, vortex, hf, "):
        ConvertOptions(source="nano", destination=tmp_path, to="gguf")  # type: ignore[arg-type]


def test_another_checkpoint_is_not_replaced(
    native: Path, tiny_model: StripedHyena2, tmp_path: Path
) -> None:
    convert_checkpoint(str(native), tmp_path / "out")
    convert_checkpoint(str(native), tmp_path / "out")  # as often as one likes
    save(tiny_model, tmp_path / "trained", {"trained_by": "someone"})
    for into in ("native", "out"):
        with pytest.raises(
            CheckpointError, match="contains another checkpoint; choose another name"
        ):
            convert_checkpoint(str(tmp_path / "trained"), tmp_path / into)
        assert load(tmp_path / into, dtype=torch.float64) is not None
    (tmp_path / "out" / "provenance.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"provenance\.json: invalid JSON"):
        convert_checkpoint(str(native), tmp_path / "out")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_released_file_is_replaced_with_its_shape(
    native: Path, tmp_path: Path, suffix: str
) -> None:
    """A killed run has left what it was writing."""
    file, left = tmp_path / f"x{suffix}", tmp_path / f".x{suffix}.new"
    left.mkdir()
    (left / f"x{suffix}").write_bytes(b"half")
    for source in ("nano", str(native), "nano"):
        convert_checkpoint(source, file)
        assert load(file).config == load(source).config
    assert {path.name for path in tmp_path.iterdir()} == {"native", file.name, "x.yml"}


def test_the_goldens_convert(shared: Path, tmp_path: Path) -> None:
    source = shared / "goldens" / "pt-layout-7b"
    result = CliRunner().invoke(
        app,
        [
            "convert",
            str(source / "pt-layout-7b.pt"),
            str(tmp_path / "out"),
            "--config",
            str(source / "config.yml"),
            "--json",
        ],
    )
    assert result.exit_code == 0
    assert '"stripes": "SMLA"' in result.stdout
    ids = torch.arange(65, 95)[None]
    direct = load(source / "pt-layout-7b.pt", config=source / "config.yml")
    assert torch.equal(load(tmp_path / "out")(ids), direct(ids))


def test_a_missing_source_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model 'nowhere\.pt'"):
        convert_checkpoint("nowhere.pt", tmp_path / "out")
