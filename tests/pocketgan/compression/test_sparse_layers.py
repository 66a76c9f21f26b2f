"""Masks on layers: which, stored, copied, merged, baked."""

import copy

import pytest
import torch
from diffusers import UNet2DModel
from tiny_dit import make_dit
from torch import nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization, remove_parametrizations

from pocketgan.adapters import add_lora, layer_ranks, merge, save_adapter
from pocketgan.compression import (
    FixedMask,
    NToMMask,
    add_masks,
    bake_masks,
    choose_layers,
    find_masks,
    is_n_to_m,
    masked_share,
    n_to_m_mask,
    plain_tensors,
    restore_masks,
    sparsity_of,
    weight_layers,
)
from pocketgan.networks import E2GANGenerator, GroupNorm

RANKS = {"down": 1, "transformer_down": 2, "transformer": 3, "transformer_up": 2, "up": 4}
PHOTO = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
TOKENS = torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(2))


def new_generator():
    torch.manual_seed(0)
    return E2GANGenerator(8, 16, norm=GroupNorm()).eval()


def new_adapter():
    adapted = add_lora(new_generator(), RANKS, ["stem", "head"]).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.03)
    return adapted


def masked(network, kept=2, group_size=4):
    add_masks(choose_layers(network, None, 4).masked, lambda _: NToMMask(kept, group_size))
    return network


def pruned(network, share=0.7):
    """Half at random, the same in each."""
    add_masks(choose_layers(network, None).masked, FixedMask)
    draws = torch.Generator().manual_seed(0)
    for mask in find_masks(network).values():
        mask.mask.copy_(torch.rand(mask.mask.shape, generator=draws) > share)
    return network


def test_convolutions_and_linear_layers_but_the_first_and_the_last():
    chosen = choose_layers(new_generator(), None, 4)
    assert set(chosen.dense) == {"stem.0", "head.0"}
    every = {name for name, layer in new_generator().named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    assert set(chosen.masked) == every - {"stem.0", "head.0"}


def make_unet():
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(block_out_channels=(8, 16), norm_num_groups=2, **blocks)


@pytest.mark.parametrize("make", [make_dit, make_unet])
def test_the_first_and_the_last_layer_of_diffusion_networks(make):
    dense = [name for name, reason in choose_layers(make(), None, 4).dense.items() if reason == "first or last layer"]
    assert dense in (["pos_embed.proj", "proj_out_2"], ["conv_in", "conv_out"])


def test_parts_to_leave_dense_by_name():
    chosen = choose_layers(new_generator(), ["up", "blocks_after", "transformer.self_attention"])
    assert {name.split(".")[0] for name in chosen.dense} == {"up", "blocks_after", "transformer"}
    assert "stem.0" in chosen.masked
    with pytest.raises(ValueError, match="names uq, but the network's layers stand under stem, down"):
        choose_layers(new_generator(), ["uq"])


def test_inputs_that_m_does_not_divide_stay_dense():
    network = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 8))
    chosen = choose_layers(network, [], 4)
    assert list(chosen.masked) == ["0", "2"]
    assert chosen.dense == {"1": "6 inputs, which 4 does not divide"}


def test_no_layer_left():
    with pytest.raises(ValueError, match=r"no convolution or linear layer .*\(0: 6 inputs, which 4 does not divide"):
        choose_layers(nn.Sequential(nn.Linear(6, 8)), [], 4)
    with pytest.raises(ValueError, match=r"no convolution or linear layer .* \(it has no such layer\)"):
        choose_layers(nn.Sequential(nn.GroupNorm(2, 8)), None)


def test_weights_that_are_parametrised_already():
    with pytest.raises(ValueError, match=r"layer down\.0\.0 is parametrised already"):
        choose_layers(masked(new_generator()), None, 4)


def test_an_adapters_layers_have_the_generators_names():
    chosen = choose_layers(new_adapter(), None, 4)
    assert set(chosen.masked) == set(choose_layers(new_generator(), None, 4).masked)
    assert {name for name, part in chosen.masked.items() if part.lora} == set(layer_ranks(new_generator(), RANKS))
    assert set(chosen.dense) == {"stem", "head"}


@torch.no_grad()
@pytest.mark.parametrize("mask", [masked, pruned])
@pytest.mark.parametrize("make", [new_generator, new_adapter])
def test_merging_leaves_the_masked_network_and_its_origin(mask, make):
    network = mask(make())
    before = network(PHOTO, TOKENS)
    assert not torch.allclose(before, make()(PHOTO, TOKENS))
    plain = merge(network)
    assert not any(is_parametrized(module) for module in plain.modules())
    assert plain.state_dict().keys() == new_generator().state_dict().keys()
    torch.testing.assert_close(plain(PHOTO, TOKENS), before)
    assert torch.equal(network(PHOTO, TOKENS), before)  # the origin is as it was
    for name, layer in weight_layers(plain).items():
        if name in find_masks(network):
            expected = weight_layers(network)[name].layer.weight
            assert torch.equal(layer.layer.weight, expected)
            if mask is masked:
                assert is_n_to_m(expected, 2, 4)


@torch.no_grad()
def test_an_adapters_mask_is_of_weight_and_delta():
    adapter, plain = masked(new_adapter()), merge(new_adapter())
    for name, layer in weight_layers(merge(adapter)).items():
        dense = weight_layers(plain)[name].layer.weight
        if name in find_masks(adapter):
            torch.testing.assert_close(layer.layer.weight, dense * n_to_m_mask(dense, 2, 4))


def test_a_masked_adapters_deltas_learn():
    adapter = masked(new_adapter())
    adapter(PHOTO, TOKENS).square().mean().backward()
    deltas = {name: value for name, value in adapter.named_parameters() if "lora_" in name}
    assert deltas
    assert all(value.grad is not None and value.grad.any() for value in deltas.values())


def test_an_adapter_is_stored_without_masks(tmp_path):
    save_adapter(new_adapter(), TOKENS[0], tmp_path / "dense", "x")
    save_adapter(masked(new_adapter()), TOKENS[0], tmp_path / "masked", "x")
    for file in (tmp_path / "dense").iterdir():
        assert file.read_bytes() == (tmp_path / "masked" / file.name).read_bytes()


@torch.no_grad()
@pytest.mark.parametrize("mask", [masked, pruned])
@pytest.mark.parametrize("make", [new_generator, new_adapter])
def test_a_checkpoint_makes_the_masks_again(mask, make):
    network, fresh = mask(make()), make()
    restore_masks(fresh, sparsity_of(network))
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(fresh(PHOTO, TOKENS), network(PHOTO, TOKENS))
    assert sparsity_of(fresh) == sparsity_of(network)


def test_a_checkpoint_sets_the_stage_of_masks_that_are_there():
    network = masked(new_generator(), 4, 4)
    restore_masks(network, sparsity_of(masked(new_generator(), 1, 4)))
    assert all(mask.pattern == [1, 4] for mask in find_masks(network).values())


def test_other_masks_are_refused():
    with pytest.raises(ValueError, match="of another kind or on other layers"):
        restore_masks(masked(new_generator()), sparsity_of(pruned(new_generator())))
    with pytest.raises(ValueError, match="has masks on middle, which the network here lacks"):
        restore_masks(new_generator(), {"middle": [2, 4]})


@torch.no_grad()
def test_plain_tensors_of_an_average():
    network = masked(new_generator())
    average = {name: value + 0.01 for name, value in network.named_parameters()}
    plain = new_generator()
    plain.load_state_dict(plain_tensors(network, average))
    expected = torch.func.functional_call(network, average, (PHOTO, TOKENS))
    torch.testing.assert_close(plain(PHOTO, TOKENS), expected)


def test_share_of_zeros():
    assert masked_share(masked(new_generator())) == 0.5
    assert masked_share(new_generator()) == 0
    baked = bake_masks(masked(new_generator(), 1, 4))
    layers = weight_layers(baked)
    zeros = sum(
        int((layer.weight == 0).sum()) for name, (layer, _) in layers.items() if name not in {"stem.0", "head.0"}
    )
    total = sum(layer.weight.numel() for name, (layer, _) in layers.items() if name not in {"stem.0", "head.0"})
    assert zeros / total == 0.75


def test_pytorchs_copies_still_share_their_class():
    """Fails once ``copy.deepcopy`` of a parametrised layer is independent: then ``_with_class_of_its_own`` can go."""
    layer = nn.Linear(4, 4)
    register_parametrization(layer, "weight", NToMMask(2, 4))
    remove_parametrizations(copy.deepcopy(layer), "weight")
    with pytest.raises(AttributeError):
        layer.weight  # noqa: B018
