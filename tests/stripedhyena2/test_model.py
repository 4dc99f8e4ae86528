"""Laws of the model: cut anywhere = whole, batch mates do not matter, everything trains."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hyenakernels.attention.reference import rotary_angles
from stripedhyena2 import (
    Cache,
    InputError,
    ModelConfig,
    StripedHyena2,
    load,
    read_config,
    save,
    trainable,
)
from stripedhyena2 import model as modelling
from stripedhyena2.checkpoint.published import recipes_folder
from stripedhyena2.diagnosis import first_nonfinite_layer
from stripedhyena2.model import initial_values
from stripedhyena2.parametrization import (
    DecayingPoles,
    DecayWindow,
    PublishedPoles,
    folded_state,
)
from stripedhyena2.streaming import stream


def random_ids(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 512, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [1, 5, 127, 128, 1000], ids=lambda chunk: f"chunk{chunk}")
def test_chunks_give_the_whole(tiny_model: StripedHyena2, chunk: int) -> None:
    length = 300 if chunk == 1 else 1100
    ids = random_ids(2, length)
    cache = tiny_model.new_cache(2)
    with torch.no_grad():
        pieces = [tiny_model(piece, cache=cache) for piece in ids.split(chunk, dim=1)]
        whole = tiny_model(ids)
    assert cache.position == length
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-9, atol=1e-9)


def test_a_cache_with_room_is_a_cache(tiny_model: StripedHyena2) -> None:
    ids = random_ids(2, 90)
    cache = tiny_model.new_cache(2, capacity=95)
    with torch.no_grad():
        pieces = [tiny_model(piece, cache=cache) for piece in ids.split([50, 1, 39], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), tiny_model(ids), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prompt", [1, 2, 3, 4, 5], ids=lambda prompt: f"prompt{prompt}")
def test_short_prompts_decode_exactly(tiny_model: StripedHyena2, prompt: int) -> None:
    ids = random_ids(1, 40)
    cache = tiny_model.new_cache(1)
    with torch.no_grad():
        pieces = [tiny_model(ids[:, :prompt], cache=cache)]
        pieces += [tiny_model(token, cache=cache) for token in ids[:, prompt:].split(1, dim=1)]
        whole = tiny_model(ids)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-9, atol=1e-9)


def test_a_clone_continues_on_its_own(tiny_model: StripedHyena2) -> None:
    ids = random_ids(1, 60)
    cache = tiny_model.new_cache(1)
    with torch.no_grad():
        tiny_model(ids[:, :30], cache=cache)
        branch = cache.clone()
        tiny_model(random_ids(1, 17, seed=5), cache=branch)
        after = tiny_model(ids[:, 30:], cache=cache)
        whole = tiny_model(ids)
    torch.testing.assert_close(after, whole[:, 30:], rtol=1e-9, atol=1e-9)
    assert (cache.position, branch.position) == (60, 47)


def test_rows_of_a_batch_do_not_meet(tiny_model: StripedHyena2) -> None:
    ids = random_ids(3, 90)
    with torch.no_grad():
        alone = torch.cat([tiny_model(row[None]) for row in ids])
        torch.testing.assert_close(tiny_model(ids), alone, rtol=1e-9, atol=1e-9)


def test_later_tokens_do_not_matter(tiny_model: StripedHyena2) -> None:
    ids = random_ids(1, 200)
    changed = ids.clone()
    changed[:, 150:] = (changed[:, 150:] + 1) % 512
    with torch.no_grad():
        torch.testing.assert_close(tiny_model(ids)[:, :150], tiny_model(changed)[:, :150])


def assert_same_state(found: Cache, expected: Cache) -> None:
    """The same tokens seen, and the same pasts, whatever class they are of."""
    assert found.position == expected.position
    for past, other in zip(found.pasts, expected.pasts, strict=True):
        for name in [field.name for field in fields(past) if field.name != "memory"]:
            assert torch.equal(getattr(past, name), getattr(other, name)), name


@pytest.mark.parametrize("capacity", [None, 40], ids=["grown", "allocated"])
@pytest.mark.parametrize("seen", [0, 1, 30], ids=lambda seen: f"seen{seen}")
def test_no_new_token_changes_nothing(
    tiny_model: StripedHyena2, seen: int, capacity: int | None
) -> None:
    ids, cache = random_ids(2, 33), tiny_model.new_cache(2, capacity)
    with torch.no_grad():
        for piece in (ids[:, :seen], ids[:, :0], ids[:, seen:], ids[:, :0]):
            logits = tiny_model(piece, cache=cache)
            assert logits.shape == (*piece.shape, 512)
            if piece.shape[1]:
                right = tiny_model(ids)[:, cache.position - piece.shape[1] : cache.position]
                torch.testing.assert_close(logits, right, rtol=1e-9, atol=1e-9)
        assert tiny_model(ids[:, :0]).shape == (2, 0, 512)


@pytest.mark.parametrize("value", [-1, 512, 10**12])
def test_ids_outside_the_vocabulary_are_one_line(tiny_model: StripedHyena2, value: int) -> None:
    """However the model is called; a loop that knows its ids need not wait for the answer."""
    ids = random_ids(3, 20)
    ids[1, 7] = ids[2, 0] = value
    calls: list[Callable[[], object]] = [
        lambda: tiny_model(ids),
        lambda: tiny_model(ids, cache=tiny_model.new_cache(3)),
        lambda: tiny_model.read_layers(ids, ["blocks.0"]),
        lambda: next(stream(tiny_model, ids)),
    ]
    for call in calls:
        with pytest.raises(InputError) as error:
            call()
        assert str(error.value) == f"token id {value} at [1, 7]: must be from 0 to 511"
    model = StripedHyena2(tiny_model.config)
    model.checks_ids = False
    with pytest.raises(IndexError, match="out of range"):
        model(ids)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (random_ids(3, 4), "holds 2 sequences, the ids 3"),
        (random_ids(2, 16), "30 tokens seen and 16 new ones exceed the capacity of 40"),
        (random_ids(1, 4)[0], r"shape \(4,\): must be torch.int64, \[sequences, tokens\]"),
        (random_ids(2, 4).float(), "ids are torch.float32"),
        (torch.tensor([[1, 2], [3, 512]]), r"token id 512 at \[1, 1\]: must be from 0 to 511"),
    ],
    ids=["batch", "capacity", "shape", "dtype", "range"],
)
def test_refused_ids_leave_the_cache_as_it_was(
    tiny_model: StripedHyena2, ids: Tensor, message: str
) -> None:
    cache = tiny_model.new_cache(2, capacity=40)
    with torch.no_grad():
        tiny_model(random_ids(2, 30), cache=cache)
        before = cache.clone()
        with pytest.raises(InputError, match=message):
            tiny_model(ids, cache=cache)
    assert_same_state(cache, before)


@pytest.mark.parametrize("tokens", [1, 40, 50, 100], ids=lambda tokens: f"chunks-of-{tokens}")
def test_the_mlp_of_long_sequences_is_the_mlp(
    tiny_model: StripedHyena2, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """In chunks, with its gradients, and no more than `MLP_TOKENS` positions together."""
    mlp, sizes = tiny_model.blocks[0].mlp, []
    x = torch.randn(2, 100, 24, dtype=torch.float64).requires_grad_()
    (dx,) = torch.autograd.grad(mlp(x).square().sum(), x)
    whole = mlp(x)
    monkeypatch.setattr(modelling, "MLP_TOKENS", tokens)
    hook = mlp.gate.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[1]))
    try:
        torch.testing.assert_close(mlp(x), whole)
        assert sizes == [tokens] * (100 // tokens) + [100 % tokens] * (100 % tokens > 0)
        (found,) = torch.autograd.grad(mlp(x).square().sum(), x)
    finally:
        hook.remove()
    torch.testing.assert_close(found, dx)


@pytest.mark.parametrize("group", [1, 2, 3, 7, 100], ids=lambda group: f"group{group}")
def test_recomputed_groups_of_blocks_change_nothing(
    tiny_model: StripedHyena2, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    ids, passes = random_ids(1, 40), []
    parameters = list(tiny_model.parameters())
    whole = torch.autograd.grad(tiny_model(ids).sum(), parameters)
    monkeypatch.setattr(tiny_model, "activation_checkpointing", group)
    hook = tiny_model.blocks[4].register_forward_pre_hook(lambda *_: passes.append(4))
    try:
        found = torch.autograd.grad(tiny_model(ids).sum(), parameters)
    finally:
        hook.remove()
    assert len(passes) == 2  # forward, and again in the backward pass
    for gradient, expected in zip(found, whole, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


def test_every_parameter_learns(tiny_config: ModelConfig) -> None:
    model = StripedHyena2.from_seed(tiny_config, seed=0)
    ids = random_ids(2, 200)
    torch.nn.functional.cross_entropy(
        model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    ).backward()
    # MR starts all but switched off: its projections' gradients are tiny, but they are there.
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_one_seed_one_model(tiny_config: ModelConfig) -> None:
    first, second = (StripedHyena2.from_seed(tiny_config, seed=3).state_dict() for _ in range(2))
    other = StripedHyena2.from_seed(tiny_config, seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="PyTorch rounds the last bits otherwise without AVX2; see test_initial.py",
)
def test_a_seed_gives_the_weights_it_always_gave() -> None:
    config = read_config(recipes_folder() / "models" / "nano.toml")
    config = replace(config, mlp_width=344)  # as it was when these weights were drawn
    values = initial_values(StripedHyena2(config), seed=7)
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in values)).hexdigest()
    assert digest == "367f205e5402d271776ef431bd249992abbcb39880fb700f582c23256a224ece"


def test_taps_start_as_their_operator_says_whatever_their_number(tiny_config: ModelConfig) -> None:
    config = replace(tiny_config, num_short_taps=128)
    taps = {
        mixer.letter: mixer.operator.taps_GK.abs().mean()
        for mixer in StripedHyena2.from_seed(config, seed=0).mixers
        if mixer.letter in "SM"
    }
    assert taps["S"] > 0.1 > 1e-5 > taps["M"]


def test_bf16_stays_near_fp64(tiny_model: StripedHyena2, tiny_config: ModelConfig) -> None:
    narrow = StripedHyena2(tiny_config)
    narrow.load_state_dict(tiny_model.state_dict())
    narrow = narrow.bfloat16()
    ids = random_ids(1, 300)
    with torch.no_grad():
        logits, exact = narrow(ids), tiny_model(ids)
    assert logits.dtype == torch.float32
    # 0.042 to 0.067 over 24 draws of such models.
    assert float((logits - exact).norm() / exact.norm()) < 0.08


@pytest.mark.parametrize("cast", ["bfloat16", "half", "float", "double"])
def test_a_cast_is_a_load_in_that_dtype(
    tmp_path: Path, tiny_config: ModelConfig, cast: str
) -> None:
    """Poles, residues and rotary frequencies stay in fp32 or better, and so do their gradients."""
    save(StripedHyena2.from_seed(tiny_config, seed=0), tmp_path / "tiny", {})
    model = load(tmp_path / "tiny")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    getattr(model, cast)()
    expected = load(tmp_path / "tiny", dtype=model.embedding.weight.dtype).state_dict()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == parameter.dtype


def test_pairs_of_a_head_turn_at_powers_of_the_base(tiny_config: ModelConfig) -> None:
    """Radians a position: base^(-2i / W) of pair i, from 1 down."""
    wanted = [10_000 ** (-2 * pair / 12) for pair in range(6)]
    mixer = StripedHyena2(tiny_config).blocks[3].mixer
    assert mixer.inverse_frequency.tolist() == pytest.approx(wanted, rel=1e-6)


def test_far_positions_keep_their_angles_in_bf16(tiny_config: ModelConfig) -> None:
    """However the model is cast, position 3,000 is as exact as the first ones."""
    mixer = StripedHyena2.from_seed(tiny_config, seed=0).blocks[3].mixer
    x_BLHW = random_ids(1, 48).reshape(1, 4, 1, 12).float() / 512 - 0.5
    positions = torch.arange(3000, 3004)[None]
    right = mixer.double().rotate(x_BLHW.double(), positions)
    found = mixer.bfloat16().rotate(x_BLHW.bfloat16(), positions)
    assert float((found - right).norm() / right.norm()) < 2**-8
    narrow, wide = (mixer.inverse_frequency.to(x) for x in (torch.bfloat16, torch.float32))
    angles = rotary_angles(positions, narrow, 4.0)
    torch.testing.assert_close(angles, positions[..., None] / 4 * narrow.to(wide.dtype))


def test_filters_in_training_form_keep_their_poles_in_bf16(tiny_config: ModelConfig) -> None:
    model = StripedHyena2.from_seed(tiny_config, seed=0)
    trainable(model, model.config.context)
    before = folded_state(model)
    after = folded_state(model.bfloat16())
    for name in (name for name in before if "poles" in name):
        assert torch.equal(before[name], after[name])


@pytest.mark.parametrize("context", [1, 2, 64, 256, 8192])
def test_the_training_form_changes_no_number(tiny_config: ModelConfig, context: int) -> None:
    model = StripedHyena2.from_seed(replace(tiny_config, context=context), seed=0)
    ids, before = random_ids(1, 300), dict(model.state_dict())
    with torch.no_grad():
        plain = model(ids)
        trainable(model, model.config.context)
        torch.testing.assert_close(model(ids), plain, rtol=0, atol=1e-5)
    folded = folded_state(model)
    assert folded.keys() == before.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(folded[name], tensor, rtol=1e-6, atol=0)


def test_values_set_in_training_form_are_those_values(tiny_config: ModelConfig) -> None:
    """Unfolded and folded, other values than the form began with come back; 0 does, too."""
    generator = torch.Generator().manual_seed(0)
    start, other = -torch.rand(2, 24, 5, generator=generator)
    other[1, 2] = 0
    forms = DecayingPoles(start), PublishedPoles(), DecayWindow(24, 5, tiny_config.context)
    for form in forms:
        unfolded = form.right_inverse(other)
        folded = form(*unfolded) if isinstance(unfolded, tuple) else form(unfolded)
        torch.testing.assert_close(folded, other, rtol=1e-5, atol=0)


def test_training_forms_are_those_of_the_published_runs() -> None:
    """Poles begin with p = -1; the rates of windows are log-spaced from 0.01 to 100 a context."""
    p_DS, g_DS = PublishedPoles().right_inverse(-torch.full((2, 3), 0.5))
    assert (p_DS == -1).all()
    torch.testing.assert_close(g_DS.exp(), torch.full((2, 3), 0.5 * math.e))
    rate_G1, n_K = torch.tensor([0.01, 1, 100])[:, None], torch.arange(6)
    expected_GK = torch.exp(-rate_G1 * n_K / 10).clamp_min(1e-6)
    torch.testing.assert_close(DecayWindow(3, 6, context=11).window_GK, expected_GK)
    for context in (1, 2):
        expected_GK = torch.exp(-rate_G1 * n_K).clamp_min(1e-6)
        torch.testing.assert_close(DecayWindow(3, 6, context).window_GK, expected_GK)


@pytest.mark.parametrize("published", [False, True], ids=["ours", "published"])
def test_a_pole_of_zero_trains_as_one(tiny_config: ModelConfig, published: bool) -> None:
    """A mode that keeps its whole past: nothing becomes NaN, and the pole stays."""
    model = StripedHyena2.from_seed(tiny_config, seed=0)
    with torch.no_grad():
        model.blocks[2].mixer.operator.log_poles_DS[3, 1] = 0
    before, ids = folded_state(model), random_ids(1, 100)
    before = {name: tensor.clone() for name, tensor in before.items()}
    trainable(model, model.config.context, published=published)
    for name, tensor in folded_state(model).items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-6, atol=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(ids).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    optimizer.step()
    poles = folded_state(model)["blocks.2.mixer.operator.log_poles_DS"]
    assert (poles <= 0).all()
    assert float(poles[3, 1]) == 0
    assert (poles != before["blocks.2.mixer.operator.log_poles_DS"]).any()


def test_training_keeps_every_mode_decaying(tiny_config: ModelConfig) -> None:
    model = StripedHyena2.from_seed(tiny_config, seed=0)
    trainable(model, model.config.context)
    ids = random_ids(2, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e4)
    torch.nn.functional.cross_entropy(
        model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    ).backward()
    optimizer.step()
    poles = [tensor for name, tensor in folded_state(model).items() if "log_poles" in name]
    assert poles
    assert all((tensor <= 0).all() for tensor in poles)


def test_a_nan_names_its_layer(tiny_config: ModelConfig) -> None:
    model = StripedHyena2.from_seed(tiny_config, seed=0)
    ids = random_ids(1, 10)
    assert first_nonfinite_layer(model, ids) is None
    with torch.no_grad():
        model.blocks[4].mixer.operator.taps_GK[0, 0] = torch.nan
    assert first_nonfinite_layer(model, ids) == "blocks.4.mixer.operator"
