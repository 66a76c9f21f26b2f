"""LoRA: identity at the start, merging, PEFT's own loading, refusals."""

import copy

import peft
import pytest
import torch

from pocketgan.adapters import add_lora, layer_ranks, load_adapter, merge, save_adapter
from pocketgan.networks import BatchNorm, E2GANGenerator, GroupNorm, InstanceNorm

RANKS = {"down": 1, "transformer_down": 2, "transformer": 3, "transformer_up": 2, "up": 4, "up.1": 2}
FULL = ["stem", "head"]


def new_generator(norm=None):
    torch.manual_seed(0)
    return E2GANGenerator(8, 16, norm=norm or GroupNorm()).eval()


@pytest.fixture
def photo():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def tokens():
    return torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(2))


def disturbed(generator):
    """Move every trainable parameter, as training does."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in generator.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.03)
    return generator


def test_ranks_spread_over_layers_by_longest_prefix():
    ranks = layer_ranks(new_generator(), RANKS)
    assert ranks["up.0.1"] == 4
    assert ranks["up.1.1"] == 2
    assert ranks["transformer.cross_attention.to_k"] == 3
    assert not any(name.startswith(("blocks", "stem", "head")) for name in ranks)


@torch.no_grad()
def test_step_zero_equals_the_base(photo, tokens):
    # frozen first: torch takes other kernels for weights that need no gradient, which moves the last digit
    base = new_generator().requires_grad_(False)
    expected = base(photo, tokens)
    assert torch.equal(add_lora(copy.deepcopy(base), RANKS, FULL)(photo, tokens), expected)


@pytest.mark.parametrize("norm", [InstanceNorm, GroupNorm, BatchNorm])
def test_merged_equals_unmerged(norm, photo, tokens):
    adapted = disturbed(add_lora(new_generator(norm()), RANKS, FULL)).eval()
    merged = merge(adapted)
    assert isinstance(merged, E2GANGenerator)
    torch.testing.assert_close(merged(photo, tokens), adapted(photo, tokens), atol=1e-5, rtol=0)
    assert not torch.allclose(adapted(photo, tokens), new_generator(norm())(photo, tokens), atol=1e-3)
    assert set(merged.state_dict()) == set(new_generator(norm()).state_dict())


def test_only_deltas_and_full_parts_train():
    adapted = add_lora(new_generator(), RANKS, FULL)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    assert any("stem" in name for name in trained)
    assert not any("blocks" in name for name in trained)


@torch.no_grad()
def test_plain_peft_loads_it(photo, tokens, tmp_path):
    adapted = disturbed(add_lora(new_generator(), RANKS, FULL)).eval()
    save_adapter(adapted, tokens[0], tmp_path, "sepia")
    adapted.requires_grad_(False)
    plain = peft.PeftModel.from_pretrained(new_generator(), tmp_path).eval().requires_grad_(False)
    assert torch.equal(plain(photo, tokens), adapted(photo, tokens))
    ours, stored = load_adapter(new_generator(), tmp_path)
    assert torch.equal(ours.eval().requires_grad_(False)(photo, tokens), adapted(photo, tokens))
    assert torch.equal(stored["sepia"], tokens[0])
    stored_names = peft.utils.load_peft_weights(str(tmp_path), device="cpu")
    assert all("lora_" in name or "stem" in name or "head" in name for name in stored_names)


@pytest.mark.parametrize(
    ("ranks", "full", "message"),
    [
        ({"up": 33}, [], r"rank 33 of layer up\.1\.1 is above its dimension|rank 33 of layer up\.0\.1"),
        ({"up": -1}, [], "negative"),
        ({"upp": 1}, [], "ranks names upp, but the generator's layers stand under stem, down"),
        ({"up": 0}, [], "all ranks are 0"),
        ({"up": 1}, ["up.0"], "has a rank and stands in full_layers"),
        ({"up": 1}, ["tail"], "full_layers names tail, which the generator lacks"),
    ],
)
def test_refusals(ranks, full, message):
    with pytest.raises(ValueError, match=message):
        add_lora(new_generator(), ranks, full)
