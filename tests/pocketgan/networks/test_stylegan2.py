"""StyleGAN2's networks against the paper's counts and against formulas by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pocketgan.losses import PathLengthRegularization, R1Regularization
from pocketgan.networks import StyleGAN2Discriminator, StyleGAN2Generator
from pocketgan.networks.fir_filter import FIRFilter, FIRUpsample
from pocketgan.networks.modulated_convolution import ModulatedConvolution
from pocketgan.networks.stylegan2_discriminator import MinibatchDeviation


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def small_generator(**arguments) -> StyleGAN2Generator:
    torch.manual_seed(0)
    sizes = {"size": 32, "latent_size": 16, "mapping_layers": 2, "channel_base": 256, "channel_max": 16}
    return StyleGAN2Generator(**{**sizes, **arguments})


def small_discriminator(**arguments) -> StyleGAN2Discriminator:
    torch.manual_seed(0)
    return StyleGAN2Discriminator(**{"size": 32, "channel_base": 256, "channel_max": 16, **arguments})


@pytest.mark.parametrize(
    ("channel_multiplier", "generator_parameters", "discriminator_parameters"),
    [
        (1.0, 30_370_060, 29_012_513),
        (0.5, 11_064_988, 7_256_081),
        (0.25, 5_392_036, 1_815_497),
        (0.125, 3_550_456, 454_613),
    ],
)
def test_full_size_has_the_papers_parameters(channel_multiplier, generator_parameters, discriminator_parameters):
    with torch.device("meta"):
        generator = StyleGAN2Generator(1024, channel_multiplier)
        discriminator = StyleGAN2Discriminator(1024, channel_multiplier)
    assert parameters(generator) == generator_parameters
    assert parameters(discriminator) == discriminator_parameters


def test_a_narrow_generator_keeps_mapping_and_constant():
    with torch.device("meta"):
        full, narrow = StyleGAN2Generator(1024), StyleGAN2Generator(1024, 0.125)
    assert parameters(full.mapping) == parameters(narrow.mapping) == 8 * (512 * 512 + 512)
    assert full.constant.shape == narrow.constant.shape == (1, 512, 4, 4)
    assert narrow.blocks[0].layer.convolution.weight.shape == (64, 512, 3, 3)
    assert [block.layer.convolution.weight.shape[0] for block in narrow.blocks] == [64] * 4 + [64, 32, 16, 8, 4]


def test_networks_run_and_learn_in_float32():
    generator, discriminator = small_generator(), small_discriminator()
    images = generator(torch.randn(4, 16))
    assert images.dtype == torch.float32
    F.softplus(-discriminator(images)).mean().backward()
    gradients = [parameter.grad for network in (generator, discriminator) for parameter in network.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_second_derivatives_reach_the_weights():
    generator, discriminator = small_generator(), small_discriminator()
    PathLengthRegularization()(generator, torch.randn(4, 16)).backward()
    R1Regularization()(discriminator, torch.rand(4, 3, 32, 32) * 2 - 1).backward()
    for network in (generator, discriminator):
        weights = {name: weight for name, weight in network.named_parameters() if name.endswith("weight")}
        without = [name for name, weight in weights.items() if weight.grad is None or not weight.grad.any()]
        assert not without
        assert all(weight.grad.isfinite().all() for weight in weights.values())


def test_outputs_start_with_a_variance_of_about_one():
    # what the gains of equalised layers and activations are for
    generator = small_generator(latent_size=64, channel_max=64, channel_base=2048)
    latents = torch.randn(64, 64)
    assert 0.3 < generator.mapping(latents).std() < 3
    features = generator.constant.expand(8, -1, -1, -1)
    for index, block in enumerate(generator.blocks):
        features, _ = block(features, None, generator.map(latents[:8])[:, max(2 * index - 1, 0) : 2 * index + 2])
        assert 0.3 < features.std() < 3


def test_modulation_and_demodulation_by_hand():
    layer = ModulatedConvolution(2, 1, 1, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1))
        layer.affine.weight.copy_(torch.eye(2) * 2**0.5)
        layer.affine.bias.zero_()
    # style (1, 2): weights 3 and 8, over √73; pixels (1, 1)
    found = layer(torch.ones(1, 2, 1, 1), torch.tensor([[1.0, 2.0]]))
    assert found.item() == pytest.approx(11 / 73**0.5, rel=1e-5)
    layer.demodulate = False
    found = layer(torch.ones(1, 2, 1, 1), torch.tensor([[1.0, 2.0]]))
    assert found.item() == pytest.approx(11 / 2**0.5, rel=1e-5)


def test_resampling_by_hand():
    ones = torch.ones(1, 2, 8, 8)
    up, down = FIRUpsample()(ones), FIRFilter(padding=1, stride=2)(ones)
    assert up.shape == (1, 2, 16, 16)
    assert down.shape == (1, 2, 4, 4)
    torch.testing.assert_close(up[:, :, 1:-1, 1:-1], torch.ones(1, 2, 14, 14))
    torch.testing.assert_close(down[:, :, 1:-1, 1:-1], torch.ones(1, 2, 2, 2))
    # (0, 1, 0) between zeros becomes (0, 1, 3, 3, 1, 0) / 4 on each axis
    row = FIRUpsample()(torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])[None, None])[0, 0, 2]
    torch.testing.assert_close(row, torch.tensor([0.0, 1, 3, 3, 1, 0]) * 3 / 16)
    assert not FIRUpsample().state_dict()


def test_deviation_within_groups_by_hand():
    levels = torch.tensor([0.0, 10, 0, 10, 2, 50, 2, 50]).reshape(8, 1, 1, 1).expand(8, 3, 2, 2)
    found = MinibatchDeviation(4)(levels)
    assert found.shape == (8, 4, 2, 2)
    # even images are one group: 0, 0, 2, 2; odd ones the other: 10, 10, 50, 50
    torch.testing.assert_close(found[:, 3, 0, 0], torch.tensor([1.0, 20] * 4))


@pytest.mark.parametrize(
    ("batch", "sizes"), [(1, [1]), (3, [3]), (5, [3, 2]), (6, [3, 3]), (7, [4, 3]), (9, [3, 3, 3])]
)
def test_groups_of_a_batch_that_does_not_divide(batch, sizes):
    levels = torch.randn(batch, 1, 1, 1, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = MinibatchDeviation(4)(levels)[:, 1, 0, 0]
    groups = [list(range(first, batch, len(sizes))) for first in range(len(sizes))]
    assert [len(group) for group in groups] == sizes
    for group in groups:
        expected = (levels[group].flatten().var(correction=0) + 1e-8).sqrt()
        torch.testing.assert_close(found[group], expected.expand(len(group)))
    found.sum().backward()
    assert levels.grad.isfinite().all()


def test_style_mixing_takes_a_whole_batch_from_one_layer_on():
    generator = small_generator(style_mixing=1.0)
    latents = torch.randn(3, 16)
    own = generator.mapping(latents)
    seen = set()
    for _ in range(40):
        is_own = (generator.map(latents) == own[:, None]).all(2)
        assert is_own.shape == (3, 8)
        assert (is_own == is_own[0]).all()
        kept = int(is_own[0].sum())
        assert is_own[0, :kept].all()
        seen.add(kept)
    assert seen == set(range(1, 8))
    assert (generator.eval().map(latents) == own[:, None]).all()


def test_style_mixing_has_its_probability():
    generator = small_generator(style_mixing=0.3)
    latents = torch.randn(2, 16)
    own = generator.mapping(latents)[:, None]
    mixed = sum(not (generator.map(latents) == own).all() for _ in range(300))
    assert 60 < mixed < 120
    never = small_generator(style_mixing=0.0)
    assert (never.map(latents) == never.mapping(latents)[:, None]).all()


def test_mean_style_is_tracked_in_train_mode_alone():
    generator = small_generator()
    latents = torch.randn(4, 16)
    mean = generator.mapping(latents).mean(0)
    generator.eval().map(latents)
    assert not generator.mean_style.any()
    generator.train().map(latents)
    torch.testing.assert_close(generator.mean_style, 0.005 * mean)
    generator.map(latents)
    torch.testing.assert_close(generator.mean_style, (0.005 + 0.995 * 0.005) * mean)


def test_truncation_goes_towards_the_mean():
    generator = small_generator().eval()
    generator.mean_style.copy_(torch.randn(16))
    latents = torch.randn(2, 16)
    whole, half, none = (generator.map(latents, truncation=truncation) for truncation in (1.0, 0.5, 0.0))
    torch.testing.assert_close(none, generator.mean_style.expand(2, 8, 16))
    torch.testing.assert_close(half, (whole + none) / 2)
    torch.testing.assert_close(generator(latents, truncation=0.5), generator.synthesize(half))


def test_each_layer_reads_its_style():
    generator, read = small_generator(noise=False), []
    for layer in generator.modules():
        if isinstance(layer, ModulatedConvolution):
            layer.register_forward_pre_hook(lambda layer, inputs: read.append((layer.demodulate, int(inputs[1][0, 0]))))
    generator.synthesize(torch.arange(8.0)[None, :, None].expand(2, -1, 16))
    # to_image, the layers without demodulation, share a style with the next size's first layer
    assert [style for demodulates, style in read if demodulates] == [0, 1, 2, 3, 4, 5, 6]
    assert [style for demodulates, style in read if not demodulates] == [1, 3, 5, 7]


def test_noise_is_drawn_in_train_mode_and_stored_for_eval():
    generator = small_generator(style_mixing=0.0)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(1.0)
    latents = torch.randn(1, 16).expand(2, -1)
    one, other = generator(latents)
    assert not torch.allclose(one, other, atol=1e-3)
    generator.eval()
    one, other = generator(latents)
    torch.testing.assert_close(one, other)
    stored = [name for name in generator.state_dict() if name.endswith(".noise")]
    assert len(stored) == 7
    generator.blocks[-1].layer.noise.neg_()
    assert not torch.allclose(generator(latents)[0], one, atol=1e-3)


def test_a_generator_without_noise():
    generator = small_generator(noise=False, style_mixing=0.0)
    assert not any("noise" in name for name in generator.state_dict())
    latents = torch.randn(1, 16).expand(2, -1)
    torch.testing.assert_close(*generator(latents))


def test_other_channels_than_rgb():
    grey = small_generator(image_channels=1)(torch.randn(2, 16))
    assert grey.shape == (2, 1, 32, 32)
    assert small_discriminator(image_channels=1)(grey).shape == (2, 1)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (small_generator, {"size": 48}, "size 48 is not a power of two from 8"),
        (small_generator, {"size": 4}, "size 4 is not a power of two from 8"),
        (
            small_generator,
            {"channel_multiplier": 0.3},
            r"channel_multiplier 0.3 makes 4.8 of 16 channels at 4 px; use 1",
        ),
        (small_discriminator, {"channel_multiplier": 1 / 32}, "makes 0.5 of 16 channels"),
        (small_generator, {"style_mixing": 1.5}, "style_mixing is 1.5; it is a probability"),
        (small_generator, {"mapping_layers": 0}, "mapping_layers is 0"),
        (small_discriminator, {"group_size": 0}, "group_size is 0"),
    ],
)
def test_bad_arguments(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_bad_input():
    with pytest.raises(ValueError, match=r"latents are \(2, 8\); \(batch, 16\) is needed"):
        small_generator()(torch.randn(2, 8))
    with pytest.raises(ValueError, match=r"images are \(2, 3, 16, 16\); \(batch, 3, 32, 32\) is needed"):
        small_discriminator()(torch.randn(2, 3, 16, 16))
