"""BigGAN: sizes, what its networks refuse, spectral vectors at rest, and BigGAN-PyTorch's weights."""

import copy
import re

import biggan_reference
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pocketgan.losses import HingeLoss
from pocketgan.networks import BigGANDiscriminator, BigGANGenerator, load_biggan
from pocketgan.networks.self_attention import SelfAttention

LABELS = torch.tensor([0, 3, 1])


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def small_generator(**arguments):
    torch.manual_seed(0)
    return BigGANGenerator(**{"size": 32, "width": 8, "classes": 4, "latent_size": 16, "shared_size": 6, **arguments})


def small_discriminator(**arguments):
    torch.manual_seed(0)
    return BigGANDiscriminator(**{"size": 32, "width": 8, "classes": 4, **arguments})


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


# 70.43, 18.38 and 5.03 M (arXiv 2112.06502); compare_gan's test of its BigGAN has 70,433,988 and 87,982,370 too
@pytest.mark.parametrize(("width", "count"), [(96, 70_433_988), (48, 18_383_460), (24, 5_031_348)])
def test_generator_has_the_papers_parameters(width, count):
    with torch.device("meta"):
        generator = BigGANGenerator(width=width, initialization="normal")
    assert parameters(generator) == count
    assert parameters(generator.embedding) == 128_000
    assert [name for name, part in generator.named_modules() if isinstance(part, SelfAttention)] == [
        "blocks.3.attention"
    ]


def test_discriminator_has_the_originals_parameters():
    with torch.device("meta"):
        discriminator = BigGANDiscriminator(initialization="normal")
    assert parameters(discriminator) == 87_982_370


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_sizes(size):
    generator = small_generator(size=size, width=4, latent_size=420).eval()
    images = generator(draw(2, 420), LABELS[:2])
    assert images.shape == (2, 3, size, size)
    assert images.abs().max() <= 1
    # at 256 px and width 4 the discriminator's attention would have no query channel
    discriminator = small_discriminator(size=size, width=4, attention_sizes=()).eval()
    assert discriminator(images, LABELS[:2]).shape == (2, 1)


def test_each_chunk_of_the_latent_and_the_label_change_the_image():
    generator = small_generator().eval()
    latents = draw(1, 16)
    image = generator(latents, LABELS[:1])
    for first in range(0, 16, 4):
        changed = latents.clone()
        changed[:, first : first + 4] += 1
        assert not torch.allclose(generator(changed, LABELS[:1]), image)
    assert not torch.allclose(generator(latents, LABELS[1:2]), image)


def test_labels_change_the_logits():
    discriminator = small_discriminator().eval()
    images = draw(1, 3, 32, 32)
    assert not torch.allclose(discriminator(images, LABELS[:1]), discriminator(images, LABELS[1:2]))


def test_every_layer_but_the_generators_embedding_is_spectral():
    generator, discriminator = small_generator(attention_sizes=(16,)), small_discriminator(attention_sizes=(16,))
    for network, plain in ((generator, {"embedding"}), (discriminator, set())):
        layers = {
            name: layer
            for name, layer in network.named_modules()
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding)
        }
        assert {name for name, layer in layers.items() if not hasattr(layer, "parametrizations")} == plain
        for _ in range(40):  # power iteration converges
            [layer.weight for layer in layers.values()]
        for name in layers.keys() - plain:
            norm = torch.linalg.matrix_norm(layers[name].weight.flatten(1), 2)
            assert norm.item() == pytest.approx(1, abs=1e-3), name


def test_initialization():
    orthogonal = small_generator().embedding.weight
    torch.testing.assert_close(orthogonal @ orthogonal.T, torch.eye(4))
    normal = small_discriminator(initialization="normal").blocks[1].convolution1.parametrizations.weight.original
    assert normal.std().item() == pytest.approx(0.02, rel=0.05)


def test_attention_is_off_at_first_and_learns():
    attention = SelfAttention(16)
    features = draw(2, 16, 8, 8)
    assert torch.equal(attention(features), features)
    with torch.no_grad():
        attention.gain.fill_(0.5)
    attention(features).square().sum().backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in attention.parameters())


def test_frozen_discriminator_rests_and_passes_gradients():
    discriminator = small_discriminator(attention_sizes=(16,))
    images = draw(3, 3, 32, 32).requires_grad_()
    before = copy.deepcopy(discriminator.state_dict())
    discriminator.eval().requires_grad_(False)
    HingeLoss().generator(discriminator(images, LABELS)).backward()
    assert images.grad.isfinite().all()
    assert all(image.any() for image in images.grad)
    assert all(torch.equal(before[name], value) for name, value in discriminator.state_dict().items())
    discriminator.train()(images, LABELS)
    moved = {name for name, value in discriminator.state_dict().items() if not torch.equal(before[name], value)}
    assert moved
    assert all(name.endswith(("._u", "._v")) for name in moved)


def test_generators_eval_mode_rests():
    generator = small_generator(attention_sizes=(16,))
    generator(draw(3, 16), LABELS)
    generator.eval()
    before = copy.deepcopy(generator.state_dict())
    together = generator(draw(3, 16), LABELS)
    assert all(torch.equal(before[name], value) for name, value in generator.state_dict().items())
    alone = generator(draw(3, 16)[1:2], LABELS[1:2])
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=0)


def test_hinge_steps_change_every_weight():
    generator, discriminator = small_generator(attention_sizes=(16,)), small_discriminator(attention_sizes=(16,))
    with torch.no_grad():
        generator.blocks[1].attention.gain.fill_(0.5)
        discriminator.blocks[0].attention.gain.fill_(0.5)
    fake = generator(draw(3, 16), LABELS)
    real_logits = discriminator(draw(3, 3, 32, 32), LABELS)
    # shifted to 0, so that no logit lies beyond the hinge; both sides at once would cancel in the last bias
    HingeLoss().discriminator(real_logits - real_logits.detach(), torch.zeros(3, 1)).backward()
    assert all(parameter.grad.any() for parameter in discriminator.parameters())
    HingeLoss().generator(discriminator.eval()(fake, LABELS)).backward()
    # a bias ahead of batch norm is cancelled
    assert all(parameter.grad.any() for name, parameter in generator.named_parameters() if not name.endswith(".bias"))


def test_copies_train_apart():
    generator = small_generator()
    average = copy.deepcopy(generator).eval()
    before = copy.deepcopy(average.state_dict())
    generator(draw(3, 16), LABELS).sum().backward()
    torch.optim.SGD(generator.parameters(), 0.1).step()
    assert all(torch.equal(before[name], value) for name, value in average.state_dict().items())
    average.load_state_dict(generator.state_dict())
    assert torch.equal(average(draw(3, 16), LABELS), generator.eval()(draw(3, 16), LABELS))


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (small_generator, {"classes": 0}, "class-conditional and classes is 0; give the number of classes"),
        (small_discriminator, {"classes": 0}, "class-conditional and classes is 0; give the number of classes"),
        (small_generator, {"size": 48}, "no layout for 48 px; use one of 32, 64, 128, 256"),
        (small_discriminator, {"size": 512}, "no layout for 512 px; use one of 32, 64, 128, 256"),
        (small_generator, {"width": 0}, "width is 0; at least 1"),
        (small_discriminator, {"width": -1}, "width is -1; at least 1"),
        (small_generator, {"latent_size": 18}, "latent_size 18 does not fall into 4 equal chunks.*use 16 or 20"),
        (small_generator, {"latent_size": 0}, "use 4 or 8"),
        (small_generator, {"shared_size": 0}, "shared_size is 0"),
        (small_generator, {"attention_sizes": (64,)}, "attention_sizes has 64, which no block.*use some of 8, 16, 32"),
        (small_discriminator, {"attention_sizes": (32,)}, "attention_sizes has 32, which no block.*use some of 8, 16"),
        (small_discriminator, {"width": 1, "attention_sizes": (16,)}, "attention over 4 channels.*at least 8"),
    ],
)
def test_bad_arguments(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (None, ValueError, "no labels were given to a network of 4 classes"),
        (torch.tensor([0, 4, 1]), ValueError, "label 4 is out of range for 4 classes; give labels from 0 to 3"),
        (torch.tensor([0, -1, 1]), ValueError, "label -1 is out of range"),
        (torch.tensor([0, 1]), ValueError, r"shape \(2,\) beside 3 images"),
        (torch.tensor([[0, 1, 2]]), ValueError, r"shape \(1, 3\) beside 3 images"),
        (torch.zeros(3), TypeError, "labels are torch.float32; give whole numbers"),
    ],
)
def test_bad_labels(labels, error, message):
    with pytest.raises(error, match=message):
        small_generator()(draw(3, 16), labels)
    with pytest.raises(error, match=message):
        small_discriminator()(draw(3, 3, 32, 32), labels)


def test_bad_latents_and_images():
    with pytest.raises(ValueError, match=r"latents have the shape \(3, 20\); this generator takes \(B, 16\)"):
        small_generator()(draw(3, 20), LABELS)
    for shape in ((3, 3, 64, 64), (3, 1, 32, 32), (3, 32, 32)):
        with pytest.raises(ValueError, match=r"images have the shape .*judges \(B, 3, 32, 32\)"):
            small_discriminator()(draw(*shape), LABELS)


# BigGAN-PyTorch's weights

GENERATORS = {
    "32 px": {"size": 32, "width": 8, "latent_size": 16, "attention_sizes": ()},
    "32 px with attention": {"size": 32, "width": 2, "latent_size": 12, "attention_sizes": (16, 32)},
    "64 px": {"size": 64, "width": 4, "latent_size": 10, "attention_sizes": (64,)},
    "128 px": {"size": 128, "width": 4, "latent_size": 12, "attention_sizes": (64,)},
    "256 px": {"size": 256, "width": 2, "latent_size": 14, "attention_sizes": (64,)},
}
# (arguments, indices of the blocks that attention follows)
DISCRIMINATORS = {
    "32 px": ({"size": 32, "width": 8, "attention_sizes": ()}, ()),
    "32 px with attention": ({"size": 32, "width": 2, "attention_sizes": (8,)}, (1, 2, 3)),
    "64 px": ({"size": 64, "width": 8, "attention_sizes": (32,)}, (0,)),
    "128 px": ({"size": 128, "width": 8, "attention_sizes": (64,)}, (0,)),
    "256 px": ({"size": 256, "width": 4, "attention_sizes": (64,)}, (1,)),
}


def reference_generator(size, width, latent_size, attention_sizes, classes=4, shared_size=6):
    return biggan_reference.generator_state(size, width, classes, latent_size, shared_size, attention_sizes)


def saved(state, file):
    torch.save(state, file)
    return file


def counted(state):
    """The state with numbers that tell every entry from every other, save for spectral vectors."""
    counted, start = {}, 0.0
    for name, value in state.items():
        if name.endswith(("u0", "sv0")):
            counted[name] = torch.ones_like(value)
        else:
            counted[name] = start + torch.arange(float(value.numel())).reshape(value.shape)
            start += value.numel()
    return counted, start


@pytest.mark.parametrize("arguments", GENERATORS.values(), ids=GENERATORS)
def test_loaded_generator_equals_the_reference(arguments, tmp_path):
    state = reference_generator(**arguments)
    generator = small_generator(**arguments).eval()
    load_biggan(generator, saved(state, tmp_path / "G_ema.pth"))
    latents = draw(3, arguments["latent_size"])
    expected = biggan_reference.generate(state, latents, LABELS)
    assert expected.std() > 0.1
    torch.testing.assert_close(generator(latents, LABELS), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize(("arguments", "attended"), DISCRIMINATORS.values(), ids=DISCRIMINATORS)
def test_loaded_discriminator_equals_the_reference(arguments, attended, tmp_path):
    state = biggan_reference.discriminator_state(arguments["size"], arguments["width"], 4, attended)
    discriminator = small_discriminator(**arguments).eval()
    load_biggan(discriminator, saved(state, tmp_path / "D.pth"))
    images = draw(3, 3, arguments["size"], arguments["size"])
    expected = biggan_reference.judge(state, arguments["size"], images, LABELS)
    torch.testing.assert_close(discriminator(images, LABELS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["generator", "discriminator"])
def test_each_entry_of_the_file_lands_in_one_place(kind, tmp_path):
    if kind == "generator":
        network = small_generator(attention_sizes=(16,))
        state = reference_generator(32, 8, 16, (16,))
    else:
        network = small_discriminator(attention_sizes=(16,))
        state = biggan_reference.discriminator_state(32, 8, 4, (0,))
    state, total = counted(state)
    assert total < 2**24  # whole numbers that float32 tells apart
    load_biggan(network, saved(state, tmp_path / "weights.pth"))
    loaded = network.state_dict()
    found = [
        value.flatten() for name, value in loaded.items() if not name.endswith(("._u", "._v", "num_batches_tracked"))
    ]
    assert torch.equal(torch.cat(found).sort().values, torch.arange(total))
    vectors = sum(name.endswith("._u") for name in loaded)
    assert vectors == sum(name.endswith("u0") for name in state)
    for name in state:  # nor does the loader do without any
        with pytest.raises(ValueError, match=re.escape(f"{name} {tuple(state[name].shape)} is missing from the file")):
            load_biggan(network, saved({key: state[key] for key in state if key != name}, tmp_path / "fewer.pth"))


def test_other_forms_of_the_file(tmp_path):
    state = reference_generator(32, 8, 16, ())
    latents = draw(3, 16)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)  # what torch 1.0 wrote
    save_file(state, tmp_path / "G.safetensors")
    images = []
    for name in ("old.pth", "G.safetensors"):
        generator = small_generator().eval()
        load_biggan(generator, tmp_path / name)
        images.append(generator(latents, LABELS))
    torch.testing.assert_close(*images, atol=1e-5, rtol=0)
    torch.testing.assert_close(images[0], biggan_reference.generate(state, latents, LABELS), atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"width": 4},
            r"linear.weight is \(512, 4\) in the file and \(256, 4\) here; .*; and \d+ more differences; make it ",
        ),
        ({"classes": 5}, r"shared.weight is \(4, 6\) in the file and \(5, 6\) here; make it with .*classes=4"),
        ({"latent_size": 32}, r"linear.weight is \(512, 4\) in the file and \(512, 8\) here.*latent_size=16"),
        ({"size": 64, "latent_size": 20}, r"make it with size=32, width=8, classes=4"),
        (
            {"attention_sizes": (16,)},
            r"blocks.1.1.gamma \(\) is missing from the file.*make it with .*attention_sizes=\(\)",
        ),
    ],
)
def test_another_architecture_is_refused(arguments, message, tmp_path):
    file = saved(reference_generator(32, 8, 16, ()), tmp_path / "G.pth")
    generator = small_generator(**arguments)
    before = copy.deepcopy(generator.state_dict())
    with pytest.raises(ValueError, match=f"G.pth does not fit this BigGANGenerator: .*{message}"):
        load_biggan(generator, file)
    assert all(torch.equal(before[name], value) for name, value in generator.state_dict().items())


def test_another_discriminator_is_refused(tmp_path):
    file = saved(biggan_reference.discriminator_state(64, 8, 4, (0,)), tmp_path / "D.pth")
    with pytest.raises(ValueError, match=r"make it with size=64, width=8, classes=4, attention_sizes=\(32,\)"):
        load_biggan(small_discriminator(), file)


def test_another_network_is_refused(tmp_path):
    file = saved(biggan_reference.discriminator_state(32, 8, 4, ()), tmp_path / "D.pth")
    with pytest.raises(
        ValueError, match=r"linear.weight is \(1, 32\) in the file.*give a file of that network, trained"
    ):
        load_biggan(small_generator(), file)
    with_more = {**reference_generator(32, 8, 16, ()), "linear.u1": torch.ones(1, 512)}
    with pytest.raises(ValueError, match=r"linear.u1 \(1, 512\) is in the file alone; give a file of that network"):
        load_biggan(small_generator(), saved(with_more, tmp_path / "G.pth"))


class Anything:
    """Stands for an object that a pickle may bring along."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"G": Anything()}, "holds pickled objects, .* not loaded: where you trust .* save the network's state_dict"),
        ([torch.ones(1)], "holds a list and no state dict; give BigGAN-PyTorch's G_ema.pth, G.pth or D.pth"),
        ({"itr": 3, "config": {}}, r"holds more than tensors \(itr, config\); give"),
    ],
)
def test_files_of_something_else_are_refused(content, message, tmp_path):
    file = saved(content, tmp_path / "G.pth")
    with pytest.raises(ValueError, match=message):
        load_biggan(small_generator(), file)


def test_missing_and_broken_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"G\.pth is missing; give the path of"):
        load_biggan(small_generator(), tmp_path / "G.pth")
    whole = saved(reference_generator(32, 8, 16, ()), tmp_path / "G.pth").read_bytes()
    for name, content in (("G.pth", whole[:5000]), ("empty.pth", b""), ("text.safetensors", b"no tensors")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{re.escape(name)} cannot be read .*; check it, or fetch it again"):
            load_biggan(small_generator(), tmp_path / name)
