"""Laws of the model: cut anywhere = whole, batch mates do not matter, everything trains."""

import hashlib
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stripedhyena2 import ModelConfig, StripedHyena2, read_config, trainable
from stripedhyena2.checkpoint.published import recipes_folder
from stripedhyena2.diagnosis import first_nonfinite_layer
from stripedhyena2.model import initial_values
from stripedhyena2.parametrization import folded_state


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


def test_a_cache_of_another_batch_size_is_refused(tiny_model: StripedHyena2) -> None:
    with pytest.raises(ValueError, match="holds 2 sequences, the ids 3"):
        tiny_model(random_ids(3, 4), cache=tiny_model.new_cache(2))


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


def test_a_seed_gives_the_weights_it_always_gave() -> None:
    config = read_config(recipes_folder() / "models" / "nano.toml")
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


@pytest.mark.parametrize("context", [2, 64, 256, 8192])
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
