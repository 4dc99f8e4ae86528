"""A model built part by part is the model built at once, in training form."""

from typing import Any

import pytest
import torch
from torch import nn

from stripedhyena2 import ModelConfig, StripedHyena2
from stripedhyena2.assembly import assemble
from stripedhyena2.parametrization import PublishedPoles, folded_state


@pytest.mark.parametrize("published", [False, True])
def test_parts_of_a_seed_make_its_model(tiny_config: ModelConfig, *, published: bool) -> None:
    adopted: list[nn.Module] = []
    model = assemble(tiny_config, seed=3, published=published, adopt=adopted.append)
    assert len(adopted) == tiny_config.depth + 2
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    forms = [module for module in model.modules() if isinstance(module, PublishedPoles)]
    assert len(forms) == (tiny_config.stripes.count("L") if published else 0)
    expected = StripedHyena2.from_seed(tiny_config, seed=3).state_dict()
    folded = folded_state(model)
    assert folded.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(folded[name], tensor, rtol=2e-6, atol=0)


def test_weights_come_back_folded(tiny_config: ModelConfig, tiny_model: StripedHyena2) -> None:
    weights = {name: tensor.float() for name, tensor in tiny_model.state_dict().items()}
    weights["blocks.3.mixer.inverse_frequency"] = weights["blocks.3.mixer.inverse_frequency"] * 2
    model = assemble(tiny_config, weights=weights, adopt=lambda part: part)
    for name, tensor in folded_state(model).items():
        torch.testing.assert_close(tensor, weights[name], rtol=2e-6, atol=0)
    ids = torch.randint(65, 85, (1, 50), generator=torch.Generator().manual_seed(0))
    reference = StripedHyena2(tiny_config)
    reference.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), reference(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("group", [1, 2, 3, 7, 10])
def test_activation_checkpointing_changes_no_bit(tiny_config: ModelConfig, group: int) -> None:
    ids = torch.randint(65, 85, (2, 40), generator=torch.Generator().manual_seed(0))
    results: list[Any] = []
    for every in (0, group):
        model = StripedHyena2.from_seed(tiny_config, seed=0)
        model.activation_checkpointing = every
        logits = model(ids)
        logits.logsumexp(2).sum().backward()
        results.append([logits, *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
