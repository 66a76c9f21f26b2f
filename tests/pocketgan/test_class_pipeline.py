"""Sampling from a class-conditional U-Net: schedule, coordinates, latents, what is stored."""

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from tiny_dit import make_pipeline

from pocketgan.class_pipeline import ClassPipeline, load_class_pipeline
from pocketgan.dit_pipeline import load_autoencoder
from pocketgan.patch_diffusion import coordinates


def make_unet(channels=3, coordinates=True, classes=2):
    torch.manual_seed(0)
    settings = {"block_out_channels": (4, 8), "norm_num_groups": 2, "layers_per_block": 1, "num_class_embeds": classes}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(in_channels=channels + 2 * coordinates, out_channels=channels, **settings, **blocks).eval()


def make(vae=None, side=16, **options):
    unet = make_unet(4 if vae else 3, **options)
    unet.register_to_config(sample_size=side)
    scheduler = DDIMScheduler(clip_sample=vae is None, timestep_spacing="trailing")
    made = ClassPipeline(unet, scheduler, vae, ["cat", "dog"], options.get("coordinates", True))
    made.set_progress_bar_config(disable=True)
    return made


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_whole_pictures_are_sampled_with_the_whole_grid():
    pipeline, seen = make(), []
    pipeline.unet.register_forward_pre_hook(lambda _, given, options: seen.append((given, options)), with_kwargs=True)
    pictures = pipeline([1, 0], num_inference_steps=5, generator=seeded(0, 1))
    assert pictures.shape == (2, 3, 16, 16)
    assert pictures.abs().max() <= 1
    assert [int(given[1]) for given, _ in seen] == [999, 799, 599, 399, 199]
    for (sample, _), options in seen:
        assert torch.equal(sample[1, 3:], coordinates(16, 16))
        assert options["class_labels"].tolist() == [1, 0]


def test_a_model_that_knows_the_noise_finds_the_picture_again(monkeypatch):
    """By hand: with the true noise predicted at every level, DDIM ends at the picture that it began from."""
    pipeline = make(coordinates=False)
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 1.8 - 0.9
    levels = pipeline.scheduler.alphas_cumprod

    class Oracle:
        config, dtype = pipeline.unet.config, torch.float32

        def __call__(self, sample, timestep, **_):
            level = levels[timestep]
            noise = (sample - level.sqrt() * picture) / (1 - level).sqrt()
            return type("Output", (), {"sample": noise})

    monkeypatch.setattr(pipeline, "unet", Oracle())
    sampled = pipeline([0], num_inference_steps=10, generator=seeded(5))
    torch.testing.assert_close(sampled, picture, atol=1e-4, rtol=0)
    edited = pipeline([0], image=torch.zeros(1, 3, 16, 16), strength=0.5, num_inference_steps=10, generator=seeded(5))
    torch.testing.assert_close(edited, picture, atol=1e-4, rtol=0)


def test_strength_says_how_much_of_the_picture_is_kept():
    pipeline, steps = make(), []
    picture = torch.full((1, 3, 16, 16), 0.3)
    pipeline.unet.register_forward_pre_hook(lambda _, given: steps.append(int(given[1])))
    weak = pipeline([0], image=picture, strength=0.1, num_inference_steps=10, generator=seeded(0))
    assert len(steps) == 1
    strong = pipeline([0], image=picture, strength=1.0, num_inference_steps=10, generator=seeded(0))
    assert len(steps) == 11
    assert (weak - picture).abs().mean() < (strong - picture).abs().mean()


@pytest.mark.parametrize("latent", [False, True])
def test_stored_and_opened_again_it_makes_the_same_pictures(tmp_path, latent):
    vae = load_autoencoder(str(make_pipeline(tmp_path / "dit"))) if latent else None
    pipeline = make(vae=vae, side=4 if latent else 16)
    assert pipeline.image_size == (32 if latent else 16)
    pipeline.save_pretrained(tmp_path / "pipeline")
    opened = load_class_pipeline(tmp_path / "pipeline")
    assert opened.config.classes == ["cat", "dog"]
    assert (opened.vae is None) != latent
    image = torch.rand(1, 3, pipeline.image_size, pipeline.image_size) * 2 - 1
    for words in ({}, {"image": image, "strength": 0.5}):
        made = [one([1], num_inference_steps=4, generator=seeded(7), **words) for one in (pipeline, opened)]
        assert made[0].shape == image.shape
        torch.testing.assert_close(*made, atol=1e-4, rtol=0)  # kernels depend on where weights lie in memory


def test_latents_are_scaled_and_not_clipped(tmp_path):
    vae = load_autoencoder(str(make_pipeline(tmp_path / "dit")))
    pipeline = make(vae=vae, side=4)
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        mean = vae.encode(image).latent_dist.mean * vae.config.scaling_factor
        torch.testing.assert_close(pipeline._encoded(image), mean)
        torch.testing.assert_close(pipeline._decoded(mean), vae.decode(mean / vae.config.scaling_factor).sample)
    assert not pipeline.scheduler.config.clip_sample


def test_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no model_index\.json; give RUN/pipeline"):
        load_class_pipeline(tmp_path)
    pipeline = make()
    with pytest.raises(ValueError, match=r"labels \[2\] go beyond the 2 classes"):
        pipeline([2])
    for labels, image in (([0], torch.zeros(2, 3, 16, 16)), ([0, 1], torch.zeros(1, 3, 16, 16)), ([], None)):
        with pytest.raises(ValueError, match=r"labels came with .* image.*; give one label for each picture"):
            pipeline(labels, image)
    with pytest.raises(ValueError, match="images are 8×8 px, this pipeline learned 16×16"):
        pipeline([0], image=torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"strength is 0\.1 of 4 steps"):
        pipeline([0], image=torch.zeros(1, 3, 16, 16), strength=0.1, num_inference_steps=4)
