"""Every generator, discriminator and norm goes through the same tester."""

import copy
import inspect

import pytest
import torch
from torch import Tensor, nn

from pocketgan import networks
from pocketgan.networks import (
    BatchNorm,
    Discriminator,
    E2GANGenerator,
    Generator,
    GroupNorm,
    InstanceNorm,
    Norm,
)


def subclasses(base: type) -> list[type]:
    """Concrete subclasses exported by the package: a new one is tested unasked."""
    classes = (value for value in vars(networks).values() if inspect.isclass(value))
    return [found for found in classes if issubclass(found, base) and not inspect.isabstract(found)]


def small(cls: type, **arguments: object) -> nn.Module:
    """An instance of width 8 where the class takes a width."""
    accepted = inspect.signature(cls).parameters
    sizes = {"width": 8, "token_size": 16, **arguments}
    return cls(**{name: value for name, value in sizes.items() if name in accepted})


def random_photo(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(params=subclasses(Generator))
def generator(request) -> Generator:
    torch.manual_seed(0)
    return small(request.param)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(1))


def test_generator_keeps_shape_and_range(generator, tokens):
    edit = generator(random_photo(2, 3, 32, 48), tokens)
    assert edit.shape == (2, 3, 32, 48)
    assert edit.abs().max() <= 1


def test_every_generator_parameter_gets_a_gradient(generator, tokens):
    generator(random_photo(2, 3, 32, 32), tokens).square().sum().backward()
    without = [
        name
        for name, parameter in generator.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    # a convolution's bias is cancelled exactly by the instance norm after it
    assert all(name.endswith("bias") for name in without), without


@pytest.mark.parametrize(("height", "width"), [(100, 96), (96, 100), (4, 32)])
def test_generator_refuses_odd_sizes(generator, tokens, height, width):
    with pytest.raises(ValueError, match=r"is not divisible by \d+; use \d+ or \d+"):
        generator(random_photo(1, 3, height, width), tokens)


def test_generator_is_deterministic_in_eval(generator, tokens):
    generator.eval()
    photo = random_photo(1, 3, 32, 32)
    assert torch.equal(generator(photo, tokens), generator(photo, tokens))


def test_generator_state_dict_round_trip(generator, tokens):
    other = small(type(generator))
    other.load_state_dict(generator.state_dict())
    photo = random_photo(1, 3, 32, 32)
    assert torch.equal(generator.eval()(photo, tokens), other.eval()(photo, tokens))


def test_prompt_changes_the_edit(generator, tokens):
    photo = random_photo(1, 3, 32, 32)
    assert not torch.allclose(generator(photo, tokens), generator(photo, -tokens))


def test_one_prompt_serves_a_batch(generator, tokens):
    photo = random_photo(2, 3, 32, 32)
    torch.testing.assert_close(generator(photo, tokens), generator(photo, tokens.repeat(2, 1, 1)))


def test_folded_prompt_equals_the_prompt(generator, tokens):
    photo = random_photo(2, 3, 32, 48)
    generator.eval()
    before = copy.deepcopy(generator.state_dict())
    folded = generator.fold_prompt(tokens)
    torch.testing.assert_close(folded(photo), generator(photo, tokens), atol=1e-5, rtol=0)
    assert all(torch.equal(before[name], value) for name, value in generator.state_dict().items())


@pytest.fixture(params=subclasses(Discriminator))
def discriminator(request) -> Discriminator:
    torch.manual_seed(0)
    return small(request.param)


def test_discriminator_judges_each_pair_alone(discriminator):
    photo, edit = random_photo(3, 3, 32, 32), random_photo(3, 3, 32, 32).flip(0)
    together = discriminator(photo, edit)
    assert together.shape[:2] == (3, 1)
    alone = torch.cat([discriminator(photo[i : i + 1], edit[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_discriminator_sees_photo_and_edit(discriminator):
    photo, edit = random_photo(1, 3, 32, 32).requires_grad_(), random_photo(1, 3, 32, 32).requires_grad_()
    discriminator(photo, edit).sum().backward()
    assert photo.grad.any()
    assert edit.grad.any()


@pytest.mark.parametrize("norm", subclasses(Norm))
def test_norms_fit_the_generator(norm, tokens):
    assert E2GANGenerator(8, 16, norm=norm())(random_photo(2, 3, 32, 32), tokens).isfinite().all()


def test_full_size_has_the_papers_parameters():
    with torch.device("meta"):
        generator = E2GANGenerator()
    assert sum(parameter.numel() for parameter in generator.parameters()) == 7_054_595


def test_channels_suit_int8_kernels():
    generator = E2GANGenerator(24, 16)
    channels = {layer.out_channels for layer in generator.modules() if isinstance(layer, nn.Conv2d)} - {3}
    assert all(count % 8 == 0 for count in channels)
    assert not any(
        isinstance(layer, nn.ConvTranspose2d) or getattr(layer, "padding_mode", "zeros") != "zeros"
        for layer in generator.modules()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"width": 12}, "multiple of 8"), ({"width": 8, "head_size": 24}, "not a multiple of head_size")],
)
def test_bad_generator_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        E2GANGenerator(**arguments)


def test_bad_groups_and_layers():
    with pytest.raises(ValueError, match="12 channels do not divide into 8 groups"):
        GroupNorm(8)(12)
    with pytest.raises(ValueError, match="strided_layers is 0"):
        networks.PatchDiscriminator(strided_layers=0)


@pytest.mark.parametrize("channels_last", [False, True])
def test_instance_norm_is_torch_s(channels_last):
    features = torch.randn(3, 8, 6, 10, generator=torch.Generator().manual_seed(0), requires_grad=True)
    laid_out = features.contiguous(memory_format=torch.channels_last) if channels_last else features
    expected, found = nn.InstanceNorm2d(8)(laid_out), InstanceNorm()(8)(laid_out)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad((out * torch.arange(10.0)).sum(), features)[0] for out in (expected, found)]
    torch.testing.assert_close(*gradients)


def test_norm_layers():
    assert isinstance(InstanceNorm()(8), nn.InstanceNorm2d)
    assert isinstance(BatchNorm()(8), nn.BatchNorm2d)


@pytest.mark.parametrize(("layers", "patch"), [(3, 70), (2, 34)])
def test_patch_is_as_wide_as_stated(layers, patch):
    # eval on constant input outside the patch: only pixels within the receptive field get a gradient
    discriminator = networks.PatchDiscriminator(8, layers)
    for layer in list(discriminator.layers):
        if isinstance(layer, nn.InstanceNorm2d):  # it looks at the whole picture
            layer.forward = lambda features: features
    edit = random_photo(1, 3, 160, 160).requires_grad_()
    logits = discriminator(random_photo(1, 3, 160, 160), edit)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    rows = edit.grad.abs().sum((0, 1, 3)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == patch
