"""Public checkpoints: their weights in these networks make what the public codes would make of them."""

import argparse
import pickle
from collections import Counter

import public_stylegan2 as public
import pytest
import torch
from safetensors.torch import save_file

from pocketgan.networks import (
    StyleGAN2Discriminator,
    StyleGAN2Generator,
    load_rosinality_stylegan2_discriminator,
    load_rosinality_stylegan2_generator,
    load_stylegan2_ada_discriminator,
    load_stylegan2_ada_generator,
)

WIDTHS = {4: 12, 8: 12, 16: 8, 32: 4}
LATENT, MAPPING_LAYERS = 10, 3


def generator(**arguments) -> StyleGAN2Generator:
    sizes = {"latent_size": LATENT, "mapping_layers": MAPPING_LAYERS, "channel_base": 128, "channel_max": 12}
    return StyleGAN2Generator(**{"size": 32, **sizes, **arguments})


def discriminator(**arguments) -> StyleGAN2Discriminator:
    return StyleGAN2Discriminator(**{"size": 32, "channel_base": 128, "channel_max": 12, **arguments})


ADA_GENERATOR = public.ada_generator_shapes(WIDTHS, LATENT, MAPPING_LAYERS)
ADA_DISCRIMINATOR = public.ada_discriminator_shapes(WIDTHS)
ROSINALITY_GENERATOR = public.rosinality_generator_shapes(WIDTHS, LATENT, MAPPING_LAYERS)
ROSINALITY_DISCRIMINATOR = public.rosinality_discriminator_shapes(WIDTHS)
LATENT_AVG = torch.linspace(-1, 1, LATENT)

CASES = pytest.mark.parametrize(
    ("make", "load", "shapes"),
    [
        (generator, load_stylegan2_ada_generator, ADA_GENERATOR),
        (discriminator, load_stylegan2_ada_discriminator, ADA_DISCRIMINATOR),
        (generator, load_rosinality_stylegan2_generator, ROSINALITY_GENERATOR),
        (discriminator, load_rosinality_stylegan2_discriminator, ROSINALITY_DISCRIMINATOR),
    ],
    ids=["ada generator", "ada discriminator", "rosinality generator", "rosinality discriminator"],
)


def saved(folder, content):
    torch.save(content, folder / "checkpoint.pt")
    return folder / "checkpoint.pt"


def values(state):
    return Counter(tuple(value.flatten().tolist()) for value in state.values())


@pytest.fixture
def latents():
    return torch.randn(3, LATENT, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.fixture
def images():
    return torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("truncation", [1.0, 0.7])
def test_ada_generator_makes_what_its_code_makes(tmp_path, latents, truncation):
    state = public.random_state(ADA_GENERATOR)
    network = generator()
    load_stylegan2_ada_generator(network, saved(tmp_path, state))
    expected = public.ada_generate(state, latents, MAPPING_LAYERS, truncation)
    assert expected.shape == (3, 3, 32, 32)
    torch.testing.assert_close(network.eval().double()(latents, truncation=truncation), expected)


def test_ada_discriminator_judges_as_its_code_does(tmp_path, images):
    state = public.random_state(ADA_DISCRIMINATOR)
    network = discriminator()
    load_stylegan2_ada_discriminator(network, saved(tmp_path, state))
    torch.testing.assert_close(network.double()(images), public.ada_judge(state, images))


@pytest.mark.parametrize("truncation", [1.0, 0.7])
def test_rosinality_generator_makes_what_its_code_makes(tmp_path, latents, truncation):
    state = public.random_state(ROSINALITY_GENERATOR)
    network = generator()
    load_rosinality_stylegan2_generator(network, saved(tmp_path, {"g_ema": state, "latent_avg": LATENT_AVG}))
    expected = public.rosinality_generate(state, latents, MAPPING_LAYERS, truncation, LATENT_AVG)
    assert expected.shape == (3, 3, 32, 32)
    torch.testing.assert_close(network.eval().double()(latents, truncation=truncation), expected)


def test_rosinality_discriminator_judges_as_its_code_does(tmp_path, images):
    state = public.random_state(ROSINALITY_DISCRIMINATOR)
    network = discriminator()
    load_rosinality_stylegan2_discriminator(network, saved(tmp_path, {"d": state}))
    torch.testing.assert_close(network.double()(images), public.rosinality_judge(state, images))


@CASES
def test_every_key_is_used_once(tmp_path, make, load, shapes):
    state = public.random_state(shapes)
    network = make()
    load(network, saved(tmp_path, state))
    found = network.state_dict()
    if load is load_rosinality_stylegan2_generator:
        del found["mean_style"]  # not in the file
    filters = {key for key in state if key.endswith(("resample_filter", "kernel"))}
    assert values(found) == values({key: value for key, value in state.items() if key not in filters})


@CASES
def test_full_size_has_the_public_codes_keys(make, load, shapes):
    widths = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}
    is_generator = make is generator
    by_load = {
        load_stylegan2_ada_generator: lambda: public.ada_generator_shapes(widths, 512, 8),
        load_stylegan2_ada_discriminator: lambda: public.ada_discriminator_shapes(widths),
        load_rosinality_stylegan2_generator: lambda: public.rosinality_generator_shapes(widths, 512, 8),
        load_rosinality_stylegan2_discriminator: lambda: public.rosinality_discriminator_shapes(widths),
    }
    constants = ("resample_filter", "kernel", "noise_const", "w_avg")
    learned = {
        key: torch.empty(shape, device="meta").numel()
        for key, shape in by_load[load]().items()
        if not key.endswith(constants) and not key.startswith("noises.")
    }
    assert sum(learned.values()) == (30_370_060 if is_generator else 29_012_513)


@pytest.mark.parametrize("averaged", [True, False])
def test_the_average_or_what_was_trained(tmp_path, averaged):
    state = public.random_state(ADA_GENERATOR)
    moved = {key: value if key.endswith("filter") else value + 1 for key, value in state.items()}
    network = generator()
    file = saved(tmp_path, {"G": state, "D": {}, "G_ema": moved})
    load_stylegan2_ada_generator(network, file, averaged=averaged)
    assert torch.equal(network.mean_style, (moved if averaged else state)["mapping.w_avg"])


def test_a_training_checkpoint_of_rosinality(tmp_path):
    state = public.random_state(ROSINALITY_GENERATOR)
    moved = {key: value if key.endswith("kernel") else value + 1 for key, value in state.items()}
    judge = public.random_state(ROSINALITY_DISCRIMINATOR)
    content = {"g": state, "d": judge, "g_ema": moved, "g_optim": {"state": {}, "param_groups": [{"lr": 0.002}]}}
    # as its train.py saves them
    file = saved(tmp_path, {**content, "args": argparse.Namespace(size=32, latent=10), "ada_aug_p": 0})
    trained, average, network = generator(), generator(), discriminator()
    load_rosinality_stylegan2_generator(trained, file, averaged=False)
    load_rosinality_stylegan2_generator(average, file)
    load_rosinality_stylegan2_discriminator(network, file)
    assert torch.equal(trained.constant, state["input.input"])
    assert torch.equal(average.constant, moved["input.input"])
    assert torch.equal(network.output.weight, judge["final_linear.1.weight"])
    # without latent_avg the mean style is that of many latents
    styles = average.mapping(torch.randn(20_000, LATENT, generator=torch.Generator().manual_seed(5)))
    assert (average.mean_style - styles.mean(0)).abs().max() < 0.1 * styles.std()
    again = generator()
    load_rosinality_stylegan2_generator(again, file)
    assert torch.equal(again.mean_style, average.mean_style)


@CASES
def test_safetensors(tmp_path, make, load, shapes):
    state = public.random_state(shapes)
    save_file(state, tmp_path / "weights.safetensors")
    from_safetensors, from_torch = make(), make()
    load(from_safetensors, tmp_path / "weights.safetensors")
    load(from_torch, saved(tmp_path, state))
    assert values(from_safetensors.state_dict()) == values(from_torch.state_dict())


def test_files_of_torch_before_1_6(tmp_path):
    state = public.random_state(ROSINALITY_GENERATOR)
    torch.save({"g_ema": state}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    network = generator()
    load_rosinality_stylegan2_generator(network, tmp_path / "old.pt")
    assert torch.equal(network.constant, state["input.input"])


def test_networks_saved_whole_are_refused(tmp_path):
    with pytest.raises(ValueError, match="pickle of whole networks"):
        load_stylegan2_ada_generator(generator(), saved(tmp_path, {"G_ema": generator()}))


def test_a_generator_without_noise(tmp_path):
    without = {key: value for key, value in public.random_state(ADA_GENERATOR).items() if "noise" not in key}
    network = generator(noise=False)
    load_stylegan2_ada_generator(network, saved(tmp_path, without))
    assert torch.equal(network.constant[0], without["synthesis.b4.const"])
    with pytest.raises(ValueError, match=r"synthesis\.b4\.conv1\.noise_const is missing"):
        load_stylegan2_ada_generator(generator(), saved(tmp_path, without))


class Network:
    """What NVlabs pickles."""


@CASES
@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"G_ema": Network()}, protocol=2),
        pickle.dumps({"G_ema": Network()}, protocol=4),
        b"",
        b"\x80\x02",
        b"PK, not a checkpoint",
        b"not a checkpoint",
    ],
    ids=["protocol 2", "protocol 4", "empty", "cut short", "no zip", "text"],
)
def test_pickles_are_refused(tmp_path, make, load, shapes, content):
    file = tmp_path / "ffhq.pkl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"ffhq\.pkl is a pickle .* turn it into state dicts in your own checkout of"):
        load(make(), file)


def test_the_line_that_makes_a_state_dict(tmp_path):
    file = tmp_path / "ffhq.pkl"
    file.write_bytes(pickle.dumps({"G_ema": Network()}))
    with pytest.raises(ValueError, match="pickle") as refusal:
        load_stylegan2_ada_generator(generator(), file)
    line = str(refusal.value).split('python -c "')[1].split('"')[0]
    compile(line, "line", "exec")
    assert "open('ffhq.pkl', 'rb')" in line
    assert "'ffhq.pt'" in line


@CASES
def test_a_missing_file(tmp_path, make, load, shapes):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt is not there"):
        load(make(), tmp_path / "nothing.pt")


@CASES
def test_a_file_without_the_network(tmp_path, make, load, shapes):
    with pytest.raises(ValueError, match="holds epoch, but no state dict"):
        load(make(), saved(tmp_path, {"epoch": 3}))
    with pytest.raises(ValueError, match="holds a list"):
        load(make(), saved(tmp_path, [1]))


@CASES
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channel_multiplier": 0.5}, r" is \(.*\), \(.*\) is needed"),
        ({"size": 64}, "is missing"),
        ({"size": 16}, "has no place|is missing"),
    ],
)
def test_another_architecture_is_refused(tmp_path, make, load, shapes, arguments, message):
    network = make(**arguments)
    before = values(network.state_dict())
    file = saved(tmp_path, public.random_state(shapes))
    with pytest.raises(ValueError, match=message) as refusal:
        load(network, file)
    assert str(refusal.value).startswith(f"{file} does not fit this StyleGAN2")
    assert "Build the network with the checkpoint's size" in str(refusal.value)
    assert values(network.state_dict()) == before


def test_both_shapes_are_named(tmp_path):
    file = saved(tmp_path, public.random_state(ADA_GENERATOR))
    with pytest.raises(ValueError, match=r"b4\.conv1\.weight is \(12, 12, 3, 3\), \(6, 12, 3, 3\) is needed; .* more"):
        load_stylegan2_ada_generator(generator(channel_multiplier=0.5), file)


def test_classes_are_refused(tmp_path):
    state = public.random_state(ADA_GENERATOR) | {"mapping.embed.weight": torch.zeros(LATENT, 5)}
    with pytest.raises(ValueError, match=r"mapping\.embed\.weight has no place.*networks with classes"):
        load_stylegan2_ada_generator(generator(), saved(tmp_path, state))


@CASES
def test_another_filter_is_refused(tmp_path, make, load, shapes):
    state = public.random_state(shapes)
    name = next(key for key in state if key.endswith(("resample_filter", "kernel")))
    state[name] = torch.full((4, 4), 1 / 16)
    with pytest.raises(ValueError, match=r"another filter than \(1, 3, 3, 1\) in " + name.replace(".", r"\.")):
        load(make(), saved(tmp_path, state))
