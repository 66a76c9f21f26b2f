"""Every network that makes images of noise, and every one that judges single images, goes through the same tester."""

import copy
import inspect

import pytest
import torch
from torch import Tensor, nn

from pocketgan import networks
from pocketgan.networks import ImageDiscriminator, LatentGenerator

SMALL = {
    "size": 32,
    "width": 8,
    "classes": 3,
    "channel_base": 256,
    "channel_max": 16,
    "latent_size": 16,
    "mapping_layers": 2,
}


def subclasses(base: type) -> list[type]:
    """Concrete subclasses exported by the package: a new one is tested unasked."""
    classes = (value for value in vars(networks).values() if inspect.isclass(value))
    return [found for found in classes if issubclass(found, base) and not inspect.isabstract(found)]


def small(cls: type, **arguments: object) -> nn.Module:
    """A small instance, by whichever of the sizes the class takes."""
    accepted = inspect.signature(cls).parameters
    sizes = {**SMALL, **arguments}
    torch.manual_seed(0)
    return cls(**{name: value for name, value in sizes.items() if name in accepted})


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def labels_for(network: nn.Module, batch: int) -> Tensor | None:
    return torch.arange(batch) % network.classes if network.classes else None


def inputs_for(network: nn.Module, batch: int = 4) -> tuple[Tensor, Tensor | None]:
    """Latents or images, and labels where there are classes."""
    if isinstance(network, LatentGenerator):
        return random(batch, network.latent_size), labels_for(network, batch)
    images = random(batch, network.image_channels, network.size, network.size).clamp(-1, 1)
    return images, labels_for(network, batch)


def away_from_start(network: nn.Module) -> nn.Module:
    """Move every parameter a little: a gate that starts at 0 keeps the gradient from what lies behind it."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network


@pytest.fixture(params=subclasses(LatentGenerator))
def generator(request) -> LatentGenerator:
    return small(request.param)


@pytest.fixture(params=subclasses(ImageDiscriminator))
def discriminator(request) -> ImageDiscriminator:
    return small(request.param)


@pytest.fixture(params=subclasses(LatentGenerator) + subclasses(ImageDiscriminator))
def network(request) -> nn.Module:
    return small(request.param)


def test_generator_makes_images(generator):
    assert generator.size == 32
    images = generator(*inputs_for(generator))
    assert images.shape == (4, generator.image_channels, 32, 32)
    assert images.isfinite().all()


def test_generator_makes_each_image_alone_in_eval(generator):
    away_from_start(generator).eval()
    latents, labels = inputs_for(generator)
    together = generator(latents, labels)
    alone = [generator(latents[i : i + 1], None if labels is None else labels[i : i + 1]) for i in range(len(latents))]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(together[0], together[3], atol=1e-3)  # labels 0 and 3 % 3 are alike, latents are not


def test_discriminator_judges_images(discriminator):
    assert discriminator.size == 32
    logits = discriminator(*inputs_for(discriminator))
    assert logits.shape == (4, 1)
    assert logits.isfinite().all()


def test_gradient_passes_a_frozen_discriminator(discriminator):
    discriminator.requires_grad_(False).eval()
    before = copy.deepcopy(discriminator.state_dict())
    images, labels = inputs_for(discriminator)
    discriminator(images.requires_grad_(), labels).sum().backward()
    assert images.grad.flatten(1).any(1).all()
    assert all(torch.equal(before[name], value) for name, value in discriminator.state_dict().items())


def test_every_parameter_gets_a_gradient(network):
    away_from_start(network)
    network(*inputs_for(network)).square().sum().backward()
    missing = [
        name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    # a bias before a normalisation is cancelled by it
    assert all(name.endswith("bias") for name in missing), missing
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.grad is not None)


def test_network_is_deterministic_in_eval(network):
    away_from_start(network).eval()
    inputs = inputs_for(network)
    assert torch.equal(network(*inputs), network(*inputs))


def test_state_dict_round_trip(network):
    away_from_start(network)
    torch.manual_seed(2)
    other = type(network)(
        **{name: SMALL[name] for name in inspect.signature(type(network)).parameters if name in SMALL}
    )
    other.load_state_dict(network.state_dict())
    inputs = inputs_for(network)
    assert torch.equal(network.eval()(*inputs), other.eval()(*inputs))


def test_labels_are_demanded_and_looked_at(network):
    inputs, labels = inputs_for(network)
    if network.classes == 0:
        assert network(inputs).shape[0] == 4
        return
    with pytest.raises(ValueError, match="label"):
        network(inputs)
    away_from_start(network).eval()
    assert not torch.allclose(network(inputs, labels), network(inputs, (labels + 1) % network.classes))


@pytest.mark.parametrize("cls", subclasses(LatentGenerator) + subclasses(ImageDiscriminator))
@pytest.mark.parametrize("size", [0, 100])
def test_refused_size(cls, size):
    with pytest.raises(ValueError, match=rf"\b{size}\b.*; use "):
        small(cls, size=size)
