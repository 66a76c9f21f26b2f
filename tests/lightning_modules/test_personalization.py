"""The personalization step: what it changes, the frozen objective, resume, files, ranks."""

import json

import pytest
import torch
from checkpoints import assert_same, state, weights
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningArgumentParser
from safetensors.torch import load_file
from tiny import TINY_CONFIGS, config_of
from tiny_pipeline import make_photos, make_pipeline, open_pipeline, personalize, picture, shaken
from two_ranks import fit_on_two_ranks

from datamodules import ConceptImages
from lightning_modules import Personalization
from pocketgan.cli import main
from pocketgan.losses import DiffusionLoss, MinSNRWeighting
from pocketgan.personalization import CustomDiffusion, TextualInversion, load_personalization

METHODS = sorted(file.stem for file in (TINY_CONFIGS / "personalization").glob("*.yaml"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return make_pipeline(folder / "pipeline"), make_photos(folder / "photos")


def module(files, method=None, loss=None):
    model = Personalization(
        str(files[0]), method or TextualInversion("<ring>", "a"), loss or DiffusionLoss(), torch.optim.AdamW
    )
    model._trainer = type("Trainer", (), {"world_size": 1})()
    model.log = lambda *_, **__: None
    return model


def load_prepared(run):
    """The untrained module of a run's config."""
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    return parser.instantiate(parser.parse_object({"model": config_of(run)["model"]})).model


def drawn_batch(model, files, count=3):
    data = ConceptImages(files[1], "<ring>", size=32)
    data.setup("fit")
    data.provide_moments(model.encode, "vae", torch.device("cpu"))
    return data.on_after_batch_transfer(torch.arange(count), 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_what_diffusers_loads(files, tmp_path, method):
    run = personalize(method, *files, tmp_path / "run")
    checkpoint = weights(run)
    assert checkpoint["images_seen"] == 16
    # nothing of the pipeline
    trained = sum(value.numel() for value in checkpoint["state_dict"].values())
    stored = sum(value.numel() for file in (run / "personalization").iterdir() for value in load_file(file).values())
    assert trained == stored
    assert (run / "checkpoints" / "last.ckpt").stat().st_size < 400_000
    loaded = open_pipeline(files[0])
    load_personalization(loaded, run / "personalization")
    # the checkpoint's weights in a prepared pipeline, against the files in a fresh one
    with_weights = load_prepared(run)
    with_weights.load_state_dict(checkpoint["state_dict"], strict=False)
    torch.testing.assert_close(picture(with_weights.pipeline), picture(loaded), atol=1e-5, rtol=0)
    curve = json.loads((run / "loss_tracking.json").read_text())
    assert curve["batches"] == len(curve["objective"]) == 8
    main(["validate", f"-c={run / 'config.yaml'}"])
    assert "val/loss" in (run / "metrics.csv").read_text().splitlines()[0]


@pytest.mark.parametrize("method", METHODS)
def test_resumed_equals_uninterrupted(files, tmp_path, method):
    whole = personalize(method, *files, tmp_path / "whole")
    parts = personalize(method, *files, tmp_path / "parts", "--budget.images=8")
    personalize(method, *files, parts, "--ckpt_path=last")
    assert_same(state(parts), state(whole))
    assert config_of(parts)["budget"]["images"] == 16


def test_tracking_leaves_the_training_alone(files, tmp_path):
    tracked = personalize("textual_inversion", *files, tmp_path / "tracked")
    without = personalize("textual_inversion", *files, tmp_path / "without", "--early_stopping=null")
    assert_same(state(tracked), state(without))


def test_stopped_runs_store_their_last_weights(files, tmp_path):
    run = personalize(
        "textual_inversion", *files, tmp_path / "run", "--trainer.val_check_interval=1000", "--budget.images=6"
    )
    [embedding] = load_file(run / "personalization" / "learned_embeds.safetensors").values()
    whole = personalize(
        "textual_inversion", *files, tmp_path / "whole", "--trainer.val_check_interval=1", "--budget.images=6"
    )
    assert torch.equal(embedding, *weights(whole)["state_dict"].values())
    assert not list(run.glob(".personalization*"))


def test_frozen_objective_by_hand(files):
    model = module(files, loss=DiffusionLoss(MinSNRWeighting(5.0)))
    torch.manual_seed(0)
    frozen = model.frozen(drawn_batch(model, files))
    assert frozen["timesteps"].unique().numel() == 3
    tokens = model.pipeline.tokenizer(frozen["prompt"], padding="max_length", return_tensors="pt").input_ids
    alphas = model.scheduler.alphas_cumprod[frozen["timesteps"]].view(3, 1, 1, 1)
    noisy = alphas.sqrt() * frozen["latents"] + (1 - alphas).sqrt() * frozen["noise"]
    with torch.no_grad():
        predicted = model.unet(noisy, frozen["timesteps"], model.text_encoder(tokens)[0]).sample
        found = [model.deterministic_objective(frozen) for _ in range(2)]
    snr = (alphas / (1 - alphas)).view(3)
    error = (predicted - frozen["noise"]).square().mean((1, 2, 3))
    torch.testing.assert_close(found[0], (error * snr.clamp(max=5) / snr).mean())
    assert torch.equal(*found)
    shaken(model.method.trainable_parameters())
    assert model.deterministic_objective(frozen) != found[0]


def test_many_frozen_examples_use_every_timestep_once(files):
    model = module(files)
    model.scheduler.register_to_config(num_train_timesteps=4)
    batch = drawn_batch(model, files, 4)
    both = {"moments": batch["moments"].repeat(2, 1, 1, 1), "prompt": batch["prompt"] * 2}
    assert model.frozen(both)["timesteps"].bincount().tolist() == [2] * 4


def test_posterior_sample_is_kept_scaled(files):
    model = module(files)
    batch = drawn_batch(model, files)
    mean, logvar = batch["moments"].chunk(2, 1)
    torch.manual_seed(0)
    latents = model.frozen(batch)["latents"] / model.vae.config.scaling_factor
    standard = (latents - mean) / (0.5 * logvar).exp()
    assert standard.std() == pytest.approx(1, abs=0.1)


def test_prior_term_by_hand(files):
    model = module(files, CustomDiffusion("<ring>", "a", prior_weight=2.0))
    batch = drawn_batch(model, files, 2)
    both = {**batch, "class_moments": batch["moments"].flip(0), "class_prompt": ["a ring", "b"]}
    torch.manual_seed(3)
    loss = model.training_step(both, 0)
    torch.manual_seed(3)
    concept = model._drawn(batch)
    prior = model._drawn({"moments": both["class_moments"], "prompt": both["class_prompt"]})
    expected = model._losses(concept).mean() + 2 * model._losses(prior).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert model.images_seen == 2


def test_a_masked_loss_does_not_see_the_rest(files):
    """Where the mask is 0 the picture's border adds nothing; cells beside it are left out, too."""
    model = module(files)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 6:20, 0:20] = 1  # cells of 2 px: rows 3 to 9, columns 0 to 9
    cells = model._mask(mask)[0, 0]
    expected = torch.zeros(16, 16)
    expected[4:9, 0:9] = 1
    assert torch.equal(cells, expected)


def test_misfits_are_refused(files, tmp_path):
    with pytest.raises(ValueError, match=r"data\.phrase is 'sks', without the method's token '<ring>'"):
        personalize("textual_inversion", *files, tmp_path / "a", "--data.phrase=sks")
    with pytest.raises(ValueError, match="prior_weight is 1 and there are 0 class images"):
        personalize("custom_diffusion", *files, tmp_path / "b", "--data.class_root=null")
    with pytest.raises(ValueError, match="size 30 is not divisible by 4, the model's step; use 28 or 32"):
        personalize("textual_inversion", *files, tmp_path / "c", "--data.size=30")
    with pytest.raises(ValueError, match="is 40x40, below the 64 px"):
        personalize("textual_inversion", *files, tmp_path / "d", "--data.size=64")
    with pytest.raises(ValueError, match="size 20 is too small for rescale"):
        personalize("custom_diffusion", *files, tmp_path / "e", "--data.size=20")
    with pytest.raises(FileNotFoundError, match=r"is no local folder with a model_index\.json"):
        personalize("textual_inversion", tmp_path / "nothing", files[1], tmp_path / "f")


def test_a_checkpoint_of_another_method_is_refused(files, tmp_path):
    run = personalize("textual_inversion", *files, tmp_path / "run")
    checkpoint = run / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match=r"of another method or pipeline: .* is missing there and \(.*\) here"):
        personalize("dreambooth_lora", *files, tmp_path / "other", f"--ckpt_path={checkpoint}")


def test_two_processes_end_with_equal_weights_and_noise_of_their_own(files, tmp_path):
    before = (
        "from lightning_modules import Personalization\n"
        "losses, drawn = Personalization._losses, []\n"
        "def seen(self, batch):\n"
        "    if self.trainer.training and torch.is_grad_enabled():\n"
        "        drawn.append(batch['noise'])\n"
        "    return losses(self, batch)\n"
        "Personalization._losses = seen\n"
    )
    config = TINY_CONFIGS / "personalization" / "dreambooth_lora.yaml"
    words = [
        "fit", f"-c={config}", f"--model.pipeline={files[0]}", f"--data.root={files[1]}", "--budget.images=8",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    kept = "(model.state_dict(), model.images_seen, drawn[0])"
    (first, images, noise), (second, _, other) = fit_on_two_ranks(tmp_path, words, kept, before)
    assert_same(first, second)
    assert images == 8
    assert not torch.equal(noise, other)
    assert (tmp_path / "run" / "personalization" / "pytorch_lora_weights.safetensors").is_file()
