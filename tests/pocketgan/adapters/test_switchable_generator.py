"""Concepts switched on one base: the weights that each should have, whatever came before."""

import copy
import shutil

import pytest
import torch
from tiny import fit_base

from lightning_modules import load_concepts, load_run
from pocketgan.adapters import SwitchableGenerator, add_lora, save_adapter
from pocketgan.digest import weights_digest
from pocketgan.networks import E2GANGenerator, GroupNorm

PHOTO = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def saved(base, folder, concept, ranks, full, seed):
    """An adapter as if trained, and what it makes of PHOTO."""
    torch.manual_seed(seed)
    adapted = add_lora(copy.deepcopy(base), ranks, full).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
        tokens = torch.randn(2, 16)
        output = adapted(PHOTO, tokens.expand(2, -1, -1))
    save_adapter(adapted, tokens, folder, concept, {"base_sha256": weights_digest(base), "text_encoder": "tiny"})
    return output


@pytest.fixture
def base():
    torch.manual_seed(0)
    return E2GANGenerator(8, 16, norm=GroupNorm()).eval()


@pytest.mark.parametrize("order", [("a", "b", "own", "a"), ("own", "b", "a", "b"), ("b", "own", "b", "a")])
@torch.no_grad()
def test_output_does_not_depend_on_what_was_used_before(base, tmp_path, order):
    own = torch.randn(2, 16)
    expected = {
        "own": base(PHOTO, own.expand(2, -1, -1)),
        "a": saved(base, tmp_path / "a", "a", {"up": 4, "transformer": 2}, ["stem", "head"], 1),
        "b": saved(base, tmp_path / "b", "b", {"down": 1, "up.0": 2}, ["head"], 2),
    }
    model = SwitchableGenerator(base, {"own": own}, "tiny")
    assert model.add(tmp_path / "a") == "a"
    assert model.add(tmp_path / "b") == "b"
    assert model.concepts == ["a", "b", "own"]
    for concept in order:
        model.use(concept)
        torch.testing.assert_close(model(PHOTO), expected[concept], atol=1e-5, rtol=0)
    model.use("own")
    weights = model.generator.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in base.state_dict().items())


def test_run_folders_switch(trained):
    model = load_concepts(trained["base"], [trained["adapter"]])
    run = load_run(trained["adapter"])
    assert model.concepts == ["inverted", "sepia"]
    model.use("sepia")
    with torch.no_grad():
        torch.testing.assert_close(model(PHOTO), run(PHOTO, ["sepia"] * 2), atol=1e-5, rtol=0)
        model.use("inverted")
        expected = load_run(trained["base"])(PHOTO, ["inverted"] * 2)
        torch.testing.assert_close(model(PHOTO), expected, atol=1e-5, rtol=0)


def test_adapter_of_another_base_is_refused(trained, tmp_path):
    other = fit_base(trained["pairs"], tmp_path / "other", "--data.concepts=[inverted]", "--seed_everything=5")
    with pytest.raises(ValueError, match=r"was trained on another base .*put it on its own base"):
        load_concepts(other, [trained["adapter"]])


def test_adapter_run_of_another_base_is_refused(trained, tmp_path):
    other = fit_base(trained["pairs"], tmp_path / "base", "--data.concepts=[inverted]", "--seed_everything=5")
    moved = tmp_path / "moved"
    shutil.copytree(trained["adapter"], moved)
    config = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(config.replace(str(trained["base"]), str(other)))
    with pytest.raises(ValueError, match="trained on another base"):
        load_run(moved)


def test_adapter_of_another_text_encoder_is_refused(base, tmp_path):
    saved(base, tmp_path / "a", "a", {"up": 1}, [], 1)
    with pytest.raises(ValueError, match="trained with the text encoder tiny, this base with CLIPTextEncoder"):
        SwitchableGenerator(base, {}, "CLIPTextEncoder of 16 features").add(tmp_path / "a")


def test_misuse_is_explained(base, tmp_path):
    saved(base, tmp_path / "a", "a", {"up": 1}, [], 1)
    model = SwitchableGenerator(base)
    with pytest.raises(ValueError, match="no concept is in use"):
        model(PHOTO)
    with pytest.raises(FileNotFoundError, match="holds no adapter"):
        model.add(tmp_path)
    model.add(tmp_path / "a")
    with pytest.raises(ValueError, match="for a, which is here already"):
        model.add(tmp_path / "a")
    with pytest.raises(ValueError, match="unknown concept night; added so far: a"):
        model.use("night")
