"""Side by side, token by token, each sequence has the logits it has alone and whole."""

import copy

import pytest
import torch
from torch import Tensor

from stripedhyena2 import Cache, StripedHyena2, load
from stripedhyena2.decoding import Decoder

LENGTHS = [1, 2, 30, 200]


def sequence(length: int, seed: int) -> Tensor:
    return torch.randint(0, 512, (length,), generator=torch.Generator().manual_seed(seed))


def prefilled(model: StripedHyena2, ids_L: Tensor) -> Cache:
    cache = model.new_cache(1)
    with torch.no_grad():
        model(ids_L[None], cache=cache)
    return cache


def test_ragged_rows_are_whole_sequences(tiny_model: StripedHyena2) -> None:
    new = 6
    whole = [sequence(length + new, seed=length) for length in LENGTHS]
    decoder = Decoder(tiny_model, len(LENGTHS), max(LENGTHS) + new)
    for row, (ids, length) in enumerate(zip(whole, LENGTHS, strict=True)):
        decoder.place(row, prefilled(tiny_model, ids[:length]))
    steps = [
        decoder.step(torch.stack([ids[n + t] for ids, n in zip(whole, LENGTHS, strict=True)]))
        for t in range(new)
    ]
    with torch.no_grad():
        for row, (ids, length) in enumerate(zip(whole, LENGTHS, strict=True)):
            right = tiny_model(ids[None])[0, length:]
            found = torch.stack([logits[row] for logits in steps])
            torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)


def test_a_row_is_taken_over(tiny_model: StripedHyena2) -> None:
    first, second, third = (sequence(20, seed) for seed in range(3))
    decoder = Decoder(tiny_model, 2, 20)
    decoder.place(0, prefilled(tiny_model, first[:19]))
    decoder.place(1, prefilled(tiny_model, second[:10]))
    decoder.step(torch.stack([first[19], second[10]]))
    decoder.place(0, prefilled(tiny_model, third[:4]))  # the first has reached the capacity
    logits = decoder.step(torch.stack([third[4], second[11]]))
    with torch.no_grad():
        right = torch.stack([tiny_model(third[None])[0, 4], tiny_model(second[None])[0, 11]])
    torch.testing.assert_close(logits, right, rtol=1e-9, atol=1e-9)


def test_the_smallest_decoder_takes_one_token(tiny_model: StripedHyena2) -> None:
    ids = sequence(2, 0)
    decoder = Decoder(tiny_model, 1, 1)
    decoder.place(0, prefilled(tiny_model, ids[:1]))
    with torch.no_grad():
        torch.testing.assert_close(decoder.step(ids[1:]), tiny_model(ids[None])[:, 1])


def test_every_row_has_memory_of_its_own(tiny_model: StripedHyena2) -> None:
    """Prompts that are read into the rows of a decoder one after the other stay there."""
    whole = [sequence(12, seed) for seed in range(3)]
    decoder = Decoder(tiny_model, 3, 12)
    for row, ids in enumerate(whole):
        cache = decoder.new_cache(row)
        with torch.no_grad():
            tiny_model(ids[None, :11], cache=cache)
        decoder.place(row, cache)
    logits = decoder.step(torch.stack([ids[11] for ids in whole]))
    with torch.no_grad():
        right = torch.stack([tiny_model(ids[None])[0, 11] for ids in whole])
    torch.testing.assert_close(logits, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("float8", [False, True], ids=["exact", "float8"])
def test_a_prompt_read_into_a_row_serves_others_while_it_grows(
    tiny_model: StripedHyena2, float8: bool
) -> None:
    prompt, other = sequence(90, 0), sequence(110, 1)
    apart, within = (Decoder(tiny_model, 2, 120, float8=float8) for _ in range(2))
    readings = []
    for decoder, cache in (
        (apart, tiny_model.new_cache(1, 90, float8=float8)),
        (within, within.new_cache(0)),
    ):
        decoder.place(1, prefilled(tiny_model, other[:100]))
        with torch.no_grad():
            for piece in prompt[None].split(40, dim=1):
                tiny_model(piece, cache=cache)
        decoder.place(0, cache)
        for token in other[100:]:
            decoder.step(token.repeat(2))
        decoder.place(1, cache)
        readings.append(torch.stack([decoder.step(token.repeat(2)) for token in other[:10]]))
    assert torch.equal(*readings)


def test_keys_and_values_in_float8_are_near(tiny_model: StripedHyena2) -> None:
    ids = sequence(120, 0)
    readings = []
    for read, kept in ((False, False), (True, True), (True, False), (False, True)):
        cache = tiny_model.new_cache(1, 100, float8=read)
        with torch.no_grad():
            for piece in ids[None, :100].split(40, dim=1):
                tiny_model(piece, cache=cache)
        decoder = Decoder(tiny_model, 1, 120, float8=kept)
        decoder.place(0, cache)
        readings.append(torch.stack([decoder.step(ids[t, None]) for t in range(100, 120)]))
    right, *others = readings
    for found in others:
        error = float((found - right).norm() / right.norm())
        assert 1e-4 < error < 0.03


def test_what_does_not_fit_is_refused(tiny_model: StripedHyena2) -> None:
    decoder = Decoder(tiny_model, 1, 8)
    with pytest.raises(ValueError, match="1 to 8 tokens; the cache holds 1 of 9"):
        decoder.place(0, prefilled(tiny_model, sequence(9, 0)))
    with pytest.raises(ValueError, match="the cache holds 1 of 0"):
        decoder.place(0, tiny_model.new_cache(1))
    with pytest.raises(ValueError, match="both must be"):
        Decoder(tiny_model, 0, 8)
    with pytest.raises(ValueError, match="0 tokens seen and 20 new ones exceed the capacity of 9"):
        tiny_model(sequence(20, 0)[None], cache=decoder.new_cache(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("lengths", [[50], [1, 50, 100]], ids=["one-row", "three-rows"])
def test_a_graph_step_is_an_eager_step(lengths: list[int], dtype: torch.dtype) -> None:
    model = load("nano", device="cuda", dtype=dtype).requires_grad_(False)
    ids = torch.randint(65, 85, (3, 120), generator=torch.Generator().manual_seed(0)).cuda()
    graph, eager = (Decoder(model, len(lengths), 120) for _ in range(2))
    for decoder in (graph, eager):
        for row, length in enumerate(lengths):
            decoder.place(row, prefilled(model, ids[row, :length]))
    found = []
    with torch.no_grad():
        whole = model(ids)
        for t in range(20):
            tokens = torch.stack([ids[row, length + t] for row, length in enumerate(lengths)])
            found.append(graph.step(tokens))
            eager._ids_B1.copy_(tokens[:, None])
            assert torch.equal(found[-1], eager._advance())
    for row, length in enumerate(lengths):
        mine, right = torch.stack(found)[:, row], whole[row, length : length + 20]
        error = float((mine - right).norm() / right.norm())
        assert error < (1e-4 if dtype == torch.float32 else 0.03)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_any_gpu_records_its_own_graph() -> None:
    ids = torch.randint(65, 85, (60,), generator=torch.Generator().manual_seed(0))
    found = []
    for device in ("cuda:0", "cuda:1"):
        model = load("nano", device=device, dtype=torch.bfloat16).requires_grad_(False)
        decoder = Decoder(model, 1, 60)
        decoder.place(0, prefilled(model, ids[:50].to(device)))
        found.append(torch.stack([decoder.step(ids[None, t].to(device)) for t in range(50, 60)]))
    assert torch.equal(found[0], found[1].cpu().to("cuda:0"))


def test_a_row_that_is_taken_out_goes_on(tiny_model: StripedHyena2) -> None:
    """In the whole model, several tokens at a time, joined with another row or alone."""
    whole = [sequence(length + 12, seed=length) for length in (5, 5, 200)]
    decoder = Decoder(tiny_model, 3, 220)
    for row, ids in enumerate(whole):
        decoder.place(row, prefilled(tiny_model, ids[:-12]))
    for step in range(-12, -8):
        decoder.step(torch.stack([ids[step] for ids in whole]))
    taken = [decoder.take(row) for row in range(3)]
    decoder.step(torch.zeros(3, dtype=torch.int64))  # what is taken is a copy
    with torch.no_grad():
        for cache, rows in ((Cache.join(taken[:2]), [0, 1]), (taken[2], [2])):
            found = tiny_model(torch.stack([whole[row][-8:] for row in rows]), cache)
            for logits, row in zip(found, rows, strict=True):
                right = tiny_model(whole[row][None])[0, -8:]
                torch.testing.assert_close(logits, right, rtol=1e-9, atol=1e-9)


def test_rows_are_chosen_and_repeated(tiny_model: StripedHyena2) -> None:
    ids = torch.stack([sequence(30, seed) for seed in range(3)])
    cache = tiny_model.new_cache(3)
    with torch.no_grad():
        tiny_model(ids[:, :20], cache)
        rows = [2, 0, 2]
        found = tiny_model(ids[rows, 20:], cache.select(rows))
        torch.testing.assert_close(found, tiny_model(ids[rows])[:, 20:], rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="allocated with a capacity"):
        tiny_model.new_cache(2, capacity=8).select([0])


class Doubled(torch.nn.Module):
    """Stands in for a linear layer, as an adapter does, and has its weights."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> object:
        found = super().__getattr__
        return found(name) if name in ("layer", "_modules") else getattr(found("layer"), name)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.layer(x)


@pytest.mark.parametrize("name", ["project_in", "project_out", "gate", "up", "down"])
def test_what_stands_in_for_a_linear_layer_is_decoded(tiny_model: StripedHyena2, name: str) -> None:
    model = copy.deepcopy(tiny_model)
    for path, layer in list(model.named_modules()):
        if path.endswith(f".{name}"):
            model.set_submodule(path, Doubled(layer))
    ids = sequence(12, 0)
    decoder = Decoder(model, 1, 12)
    decoder.place(0, prefilled(model, ids[:10]))
    found = torch.cat([decoder.step(ids[10:11]), decoder.step(ids[11:])])
    with torch.no_grad():
        torch.testing.assert_close(found, model(ids[None])[0, 10:], rtol=1e-9, atol=1e-9)
        assert not torch.allclose(found, tiny_model(ids[None])[0, 10:])
