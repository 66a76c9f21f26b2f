"""A diffusion network from scratch, with and without crops."""

import copy

import pytest
import torch
import yaml
from checkpoints import assert_same, state, weights
from diffusers import UNet2DModel
from jsonargparse import ArgumentParser
from tiny import CONFIGS, TINY_CONFIGS
from tiny_dit import make_class_folders, make_pipeline
from two_ranks import fit_on_two_ranks

from lightning_modules import DiffusionTraining
from pocketgan.class_pipeline import load_class_pipeline
from pocketgan.cli import main
from pocketgan.losses import DiffusionLoss
from pocketgan.patch_diffusion import PatchCrop, coordinates


def module(patch_crop=None, channels=5, **options):
    torch.manual_seed(0)
    settings = {"block_out_channels": (4, 8), "norm_num_groups": 2, "layers_per_block": 1, "num_class_embeds": 3}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    network = UNet2DModel(in_channels=channels, out_channels=3, **settings, **blocks)
    return DiffusionTraining(network, DiffusionLoss(), torch.optim.Adam, patch_crop, **options)


def fit(images, run, *arguments):
    config = TINY_CONFIGS / "diffusion_training" / "patch_diffusion.yaml"
    main(["fit", f"-c={config}", f"--data.root={images}", f"--trainer.default_root_dir={run}", *arguments])
    return run


def test_runs_end_to_end_and_resumes_bit_for_bit(tmp_path):
    images = make_class_folders(tmp_path / "images")
    interval = "--trainer.val_check_interval=2"
    whole = fit(images, tmp_path / "whole", interval)
    parts = fit(images, tmp_path / "parts", interval, "--budget.images=8")
    assert weights(parts)["images_seen"] == 8  # crops do not count
    fit(images, parts, interval, "--ckpt_path=last")
    assert_same(state(parts), state(whole))
    main(["test", f"-c={whole / 'config.yaml'}"])
    stored = load_class_pipeline(whole / "pipeline")
    assert (stored.config.classes, stored.image_size) == (["china", "flower", "third"], 32)
    average = [value for name, value in weights(whole)["state_dict"].items() if name.startswith("average.")]
    assert all(torch.equal(*pair) for pair in zip(stored.unet.parameters(), average, strict=True))


def test_a_pipeline_draws_none_of_the_trainings_numbers():
    model = module(channels=3)
    before = torch.get_rng_state()
    model.pipeline(["a", "b", "c"], 32)
    assert torch.equal(torch.get_rng_state(), before)


def test_fsdp_is_ddp_up_to_the_order_of_sums(tmp_path):
    words = [
        "fit", f"-c={TINY_CONFIGS / 'diffusion_training' / 'patch_diffusion.yaml'}", "--budget.images=8",
        f"--data.root={make_class_folders(tmp_path / 'images')}",
    ]  # fmt: skip
    for strategy in ("ddp", "fsdp2"):
        run = f"--trainer.default_root_dir={tmp_path / strategy}"
        fit_on_two_ranks(tmp_path, [*words, run], "model.images_seen", strategy=strategy)
    expected, found = (weights(tmp_path / strategy)["state_dict"] for strategy in ("ddp", "fsdp2"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert load_class_pipeline(tmp_path / "fsdp2" / "pipeline").config.classes == ["china", "flower", "third"]


def test_latents_come_with_their_autoencoder(tmp_path):
    pipeline = make_pipeline(tmp_path / "dit")
    images = make_class_folders(tmp_path / "images")
    channels = ("--model.network.in_channels=6", "--model.network.out_channels=4")
    # latents are 4x4: half of that is the smallest crop that the two blocks take
    crops = "--model.patch_crop.init_args.shares={1: 0.5, 2: 0.5}"
    run = fit(images, tmp_path / "run", *channels, crops, f"--data.vae={pipeline}")
    stored = load_class_pipeline(run / "pipeline")
    assert (stored.image_size, stored.unet.config.sample_size, stored.scheduler.config.clip_sample) == (32, 4, False)
    assert stored([0], num_inference_steps=2).shape == (1, 3, 32, 32)


def test_the_shipped_model_takes_its_data_on_the_meta_device():
    words = yaml.safe_load((CONFIGS / "diffusion_training" / "patch_diffusion.yaml").read_text())
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DiffusionTraining, "model", instantiate=False)
    with torch.device("meta"):
        arguments = parser.instantiate(parser.parse_object({"model": words["model"]["init_args"]})).model
        model = DiffusionTraining(**vars(arguments))
        size = words["data"]["init_args"]["size"]
        model.check((3, size, size), 100)
        (group,) = model.configure_optimizers().param_groups
        for divisor in model.patch_crop.shares:
            batch = {"latents": torch.zeros(2, 3, size // divisor, size // divisor), "label": torch.zeros(2, dtype=int)}
            batch["coordinates"] = torch.zeros(2, 2, size // divisor, size // divisor)
            noisy = batch["latents"]
            batch["timesteps"] = torch.zeros(2, dtype=int)
            assert model.predict(noisy, batch, model.denoiser).shape == noisy.shape
    assert group["lr"] == 2e-4


def test_the_network_sees_where_a_crop_was(monkeypatch):
    model = module(PatchCrop({1: 1e-12, 2: 1 - 1e-12}))
    seen = {}
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    monkeypatch.setattr(model, "_trainer", type("Clock", (), {"world_size": 1})())
    model.network.register_forward_pre_hook(lambda _, given, options: seen.update(input=given[0], **options), with_kwargs=True)  # fmt: skip # noqa: E501
    pictures = torch.randn(4, 3, 16, 16)
    loss = model.training_step({"latents": pictures, "label": torch.tensor([0, 1, 2, 0])}, 0)
    loss.backward()
    assert seen["input"].shape == (8, 5, 8, 8)
    assert seen["class_labels"].tolist() == [0, 1, 2, 0] * 2
    grid = coordinates(16, 16)
    for one in seen["input"][:, 3:]:
        left, top = (int(value) for value in ((one[:, 0, 0] + 1) / 2 * 15).round())
        assert torch.equal(one, grid[:, top : top + 8, left : left + 8])
    assert model._images_of_step == 4
    # whole pictures have the whole grid
    model.deterministic_objective(model.frozen({"latents": pictures, "label": torch.tensor([0, 1, 2, 0])}))
    assert torch.equal(seen["input"][0, 3:], grid)


def test_without_crops_no_coordinates():
    model = module(channels=3)
    frozen = model.frozen({"latents": torch.randn(2, 3, 16, 16), "label": torch.tensor([0, 1])})
    noisy = model.scheduler.add_noise(frozen["latents"], frozen["noise"], frozen["timesteps"])
    with torch.no_grad():
        predicted = model.network(noisy, frozen["timesteps"], class_labels=frozen["label"]).sample
        expected = (predicted - frozen["noise"]).square().mean((1, 2, 3))
        torch.testing.assert_close(model.objective(frozen), expected)


def test_validation_uses_the_average():
    model = module(channels=3)
    frozen = model.frozen({"latents": torch.randn(2, 3, 16, 16), "label": torch.tensor([0, 1])})
    with torch.no_grad():
        before = model.objective(frozen).clone()
        start = copy.deepcopy(model.network.state_dict())
        for parameter in model.network.parameters():
            parameter.add_(0.2)
        assert not torch.allclose(model.objective(frozen), before)
        torch.testing.assert_close(model.objective(frozen, averaged=True), before)
    assert not torch.equal(model.network.conv_in.weight, start["conv_in.weight"])


def test_refusals():
    with pytest.raises(ValueError, match=r"takes 5 channels and gives 3; these data need in_channels 3 and"):
        module().check((3, 16, 16), 3)
    with pytest.raises(ValueError, match=r"need in_channels 5 \(two are coordinates\) and out_channels 3"):
        module(PatchCrop(), channels=3).check((3, 16, 16), 3)
    with pytest.raises(ValueError, match="latents of 12x12 are not divisible by 8, the network's factor of 2 times"):
        module(PatchCrop()).check((3, 12, 12), 3)
    with pytest.raises(ValueError, match="the network knows 3 classes, the data hold 4; set num_class_embeds"):
        module(channels=3).check((3, 16, 16), 4)
    with pytest.raises(ValueError, match="ema_rampup_ratio is 0"):
        module(ema_rampup_ratio=0)
