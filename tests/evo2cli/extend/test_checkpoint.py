"""`evo2 extend`: positions are what its scheme says, and nothing else has moved."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from evo2cli.app import app
from evo2cli.errors import UserError
from evo2cli.extend.checkpoint import extend_checkpoint
from evo2cli.extend.options import Scheme as SchemeOption
from evo2cli.lengths import parse_bytes, parse_length
from evo2cli.training.engine import PlainEngine
from evo2cli.training.ranks import Ranks
from evo2cli.training.recipe import Recipe
from evo2cli.training.start import Start
from stripedhyena2 import CheckpointError, ModelConfig, StripedHyena2, load, read_config, save
from stripedhyena2.checkpoint import Checkpoint, read_checkpoint
from stripedhyena2.config import to_released
from stripedhyena2.extension import Extension, Scheme
from stripedhyena2.operators import Attention
from stripedhyena2.parametrization import DecayWindow, folded_state

CONTEXT = 256  # of the tiny model


@pytest.fixture
def source(tiny_model: StripedHyena2, tmp_path: Path) -> str:
    save(tiny_model, tmp_path / "source", {"license": "mine"})
    return str(tmp_path / "source")


def attention(folder: Path | str) -> Attention:
    model = load(folder, dtype=torch.float64)
    return next(module for module in model.modules() if isinstance(module, Attention))


def extended(source: str, to: int, scheme: Scheme) -> Checkpoint:
    return Extension(to, scheme).apply(read_checkpoint(source))


def test_without_a_scheme_no_logit_moves(source: str, tmp_path: Path) -> None:
    extend_checkpoint(source, tmp_path / "long", to=1024, scheme="none")
    ids = torch.randint(65, 85, (1, CONTEXT), generator=torch.Generator().manual_seed(0))
    before, after = (load(path, dtype=torch.float64)(ids) for path in (source, tmp_path / "long"))
    assert torch.equal(before, after)
    assert read_config(tmp_path / "long" / "config.toml").context == 1024


@pytest.mark.parametrize("factor", [2, 3, 128])
def test_interpolation_gives_at_f_times_t_the_angles_of_t(
    source: str, tmp_path: Path, factor: int
) -> None:
    extend_checkpoint(source, tmp_path / "long", to=factor * CONTEXT)
    before, after = attention(source), attention(tmp_path / "long")
    positions_BL = torch.tensor([[0, 1, 7, CONTEXT - 1]])
    x_BLHW = torch.randn(1, 4, 2, 12, dtype=torch.float64)
    torch.testing.assert_close(
        after.rotate(x_BLHW, factor * positions_BL), before.rotate(x_BLHW, positions_BL)
    )


@pytest.mark.parametrize("scheme", [*Scheme])
def test_the_buffers_are_the_formula(source: str, tmp_path: Path, scheme: Scheme) -> None:
    extend_checkpoint(source, tmp_path / "long", to=1024, scheme=scheme)
    checkpoint = read_checkpoint(tmp_path / "long")
    base = 10_000 * (10**2 if scheme in ("base", "both") else 1)  # a factor of 2^2
    assert checkpoint.config.rotary_base == base
    assert checkpoint.config.rotary_scale == 4 * (4 if scheme in ("interpolation", "both") else 1)
    wanted = torch.tensor([base ** (-2 * i / 12) for i in range(6)], dtype=torch.float64)
    stored = checkpoint.tensors["blocks.3.mixer.inverse_frequency"]
    assert torch.equal(stored, wanted.float())


def test_only_a_new_base_touches_what_a_file_had_rounded(source: str) -> None:
    checkpoint = read_checkpoint(source)
    name = "blocks.3.mixer.inverse_frequency"
    rounded = checkpoint.tensors[name].bfloat16()
    checkpoint = replace(checkpoint, tensors={**checkpoint.tensors, name: rounded})
    kept = Extension(1024).apply(checkpoint).tensors[name]
    assert torch.equal(kept, rounded)
    assert kept.dtype == torch.bfloat16
    wrong = replace(checkpoint, config=replace(checkpoint.config, rotary_base=1e6))
    with pytest.raises(ValueError, match="does not hold the frequencies of rotary_base = 1e\\+06"):
        Extension(1024).apply(wrong)


@pytest.mark.parametrize("scheme", [*Scheme])
def test_stages_give_what_one_step_gives(source: str, scheme: Scheme) -> None:
    at_once = extended(source, 2048, scheme)
    stage = Extension(2048, scheme).apply(extended(source, 512, scheme))
    assert stage.config == at_once.config
    for name, tensor in at_once.tensors.items():
        assert torch.equal(stage.tensors[name], tensor), name


def test_every_scheme_is_an_option() -> None:
    assert [*SchemeOption] == [*Scheme]


def test_the_schemes_are_those_that_were_published() -> None:
    base = ModelConfig(
        stripes="A",
        width=8,
        num_heads=1,
        mlp_width=8,
        num_short_filter_groups=2,
        num_medium_filter_groups=2,
        context=8_192,
    )
    for m, log_base in ((4, 1e6), (8, 1e7), (128, 1e11)):
        both = Extension(8_192 * m, Scheme.BOTH).config(base)
        assert both.rotary_scale == m
        assert both.rotary_base == pytest.approx(log_base)


def test_filters_train_under_the_window_of_the_first_context(source: str, tmp_path: Path) -> None:
    extend_checkpoint(source, tmp_path / "long", to=32_768)
    long = read_checkpoint(tmp_path / "long")
    assert long.config.original_context == CONTEXT
    recipe = Recipe.model_validate(
        {
            "init": str(tmp_path / "long"),
            "output": tmp_path / "run",
            "data": {"sources": [{"path": "tokens"}]},
            "batch": {"length": 512, "sequences": 1},
            "optimizer": {
                "steps": 2,
                "warmup_steps": 0,
                "learning_rate": 1e-3,
                "min_learning_rate": 1e-4,
            },
            "precision": {"compute": "fp32"},
        }
    )
    engine = PlainEngine(recipe, Start(long.config, long.tensors), Ranks.alone(torch.device("cpu")))
    for name, tensor in folded_state(engine.model).items():
        torch.testing.assert_close(tensor, long.tensors[name].float(), msg=name)
    windows = [m.window_GK for m in engine.model.modules() if isinstance(m, DecayWindow)]
    assert windows
    for window in windows:
        assert torch.equal(window, DecayWindow(6, 128, CONTEXT).window_GK)

    ids = torch.randint(65, 85, (1, 512), generator=torch.Generator().manual_seed(0))
    engine.backward(engine.forward(ids).logsumexp(dim=-1).mean(), last=True)
    assert engine.step(1e-3) > 0
    save(engine.model, tmp_path / "trained", {})
    assert load(tmp_path / "trained").config == long.config


def test_where_it_comes_from_is_told(source: str, tmp_path: Path) -> None:
    arguments = ["extend", source, "--to", "1k", "-O", str(tmp_path / "long"), "--json"]
    summary = json.loads(CliRunner().invoke(app, arguments).stdout)
    provenance = read_checkpoint(tmp_path / "long").provenance
    assert {"output": str(tmp_path / "long"), **provenance["extended"]} == summary
    assert (summary["source"], summary["scheme"], summary["factor"]) == (source, "interpolation", 4)
    assert len(summary["source_hash"]) == 12
    assert provenance["before"] == {"license": "mine"}


def test_a_released_file_remembers_the_first_context(source: str, tmp_path: Path) -> None:
    config = extended(source, 1024, Scheme.BASE).config
    values = to_released(config)
    assert values["base_context"] == CONTEXT
    del values["base_context"]  # as in published yml: the scale tells
    values |= {"max_seqlen": 1_048_576, "rotary_emb_scaling_factor": 128}
    (tmp_path / "x.yml").write_text(json.dumps(values))  # JSON is yml
    assert read_config(tmp_path / "x.yml").original_context == 8_192


@pytest.mark.parametrize(
    ("to", "output", "message"),
    [
        ("128", "long", r"/source: 128 positions are not more than the context of 256"),
        ("256", "long", r"not more than"),
        ("700", "long", r"not a multiple of the context of 256; the next one is 768"),
        ("32kb", "long", r"--to 32kb: not a length such as 8192, 32k \(32,768\) or 1M"),
        ("-1", "long", "--to -1: not a length"),
        ("1k", "long.pt", "long.pt: is written as a folder"),
        ("1k", "source", "is the checkpoint itself"),
        ("1k", "other", "other: contains another checkpoint"),
    ],
)
def test_what_cannot_be_is_one_line(
    source: str, tmp_path: Path, to: str, output: str, message: str
) -> None:
    extend_checkpoint(source, tmp_path / "other", to=512)
    arguments = ["extend", source, f"--to={to}", "-O", str(tmp_path / output)]
    error = CliRunner().invoke(app, arguments).exception
    with pytest.raises((UserError, CheckpointError), match=message):
        raise error or AssertionError
    assert "\n" not in str(error)
    assert not (tmp_path / "long").exists()
    assert read_checkpoint(source).config.context == CONTEXT


@pytest.mark.parametrize(
    ("text", "length"), [("8192", 8_192), ("32k", 32_768), ("1M", 1_048_576), ("2K", 2_048)]
)
def test_lengths(text: str, length: int) -> None:
    assert parse_length(text, "--to") == length


@pytest.mark.parametrize(
    ("text", "size"), [("24G", 24 * 2**30), ("0.5 TiB", 2**39), ("800mb", 800 * 2**20)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text, "--max-memory") == size


@pytest.mark.parametrize("text", ["24", "0G", "G", "-1G", "24Q"])
def test_what_is_no_size_is_told(text: str) -> None:
    with pytest.raises(UserError, match=f"--max-memory {text}: not a size such as 24G"):
        parse_bytes(text, "--max-memory")
