"""Layers by name, and reading no more of the model than they need."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from stripedhyena2 import InputError, StripedHyena2
from stripedhyena2.checkpoint.layouts.vortex import expected
from stripedhyena2.checkpoint.published import published_config
from stripedhyena2.layers import default_layer, listening, resolve_layers, stream_layers
from stripedhyena2.layout import shared_modules
from stripedhyena2.streaming import Streaming


def test_names_and_numbers_agree(tiny_model: StripedHyena2) -> None:
    def names(text: str | None) -> list[str]:
        return resolve_layers(tiny_model, text)

    assert names("0, -1,blocks.6,norm,embedding_layer") == [
        "blocks.0",
        "blocks.6",
        "norm",
        "embedding",
    ]
    assert names("blocks.5.mlp.l3") == names("blocks.5.mlp.down") == ["blocks.5.mlp.down"]
    assert names("blocks.3.inner_mha_cls.out_proj") == ["blocks.3.mixer.project_out"]
    assert names("all") == ["embedding", *(f"blocks.{i}" for i in range(7)), "norm"]
    assert names(None) == ["blocks.5"]
    assert default_layer(published_config("evo2_7b")) == "blocks.26"
    for config in (tiny_model.config, published_config("evo2_7b")):
        theirs = {name.rpartition(".")[0] for name in expected(config)}
        assert shared_modules(config).keys() <= theirs
    for name in shared_modules(tiny_model.config).values():
        tiny_model.get_submodule(name)
    for wrong, hint in (
        ("blocks.5.mpl", "blocks.5.mlp"),
        ("7", "blocks are 0 to 6"),
        ("?", "mlp or norm"),
    ):
        with pytest.raises(InputError, match=hint):
            names(wrong)


def test_outputs_of_other_threads_are_not_listened_to(tiny_model: StripedHyena2) -> None:
    heard: list[torch.Tensor] = []
    ids = torch.tensor([[65, 67]])
    with listening([(tiny_model.embedding, heard.append)]), ThreadPoolExecutor(1) as other:
        other.submit(tiny_model.embedding, ids + 1).result()
        mine = tiny_model.embedding(ids)
    tiny_model.embedding(ids)
    assert [id(each) for each in heard] == [id(mine)]


def test_blocks_above_the_layers_are_not_run(tiny_model: StripedHyena2) -> None:
    ran: list[int] = []
    advanced: list[float] = []
    ids = torch.full((30,), 65)
    hooks = [
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, block in enumerate(tiny_model.blocks)
    ]
    for layer in ("embedding", "blocks.3.mlp", "norm"):
        listeners = {layer: lambda *_: None}
        stream_layers(tiny_model, ids, Streaming(20), listeners, advanced.append)
    for hook in hooks:
        hook.remove()
    assert ran == [0, *(i for i in range(4) for _ in "ab"), *(i for i in range(7) for _ in "ab")]
    assert sum(advanced) == pytest.approx(3 * 30)
