"""Adapting a diffusion transformer: what changes and what does not, average, resume, files, refusals."""

import csv
import json
import re
import shutil

import pytest
import torch
import yaml
from checkpoints import assert_same, state, weights
from diffusers import DDPMScheduler, DiTPipeline, DiTTransformer2DModel
from diffusers.models.embeddings import PatchEmbed
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import CONFIGS, TINY_CONFIGS
from tiny_dit import fit_dit, make_class_folders, make_dit, make_pipeline
from two_ranks import fit_on_two_ranks

from callbacks import DiffusionAdapterWriter
from datamodules import LabelledLatents
from lightning_modules import DiffusionAdaptation
from lightning_modules.fully_sharded_strategy import FullyShardedStrategy
from pocketgan.adapters import AllWeights, BitFit, DiffFit, DiffusionLoRA, load_diffusion_adapter
from pocketgan.cli import main
from pocketgan.losses import DiffusionLoss, MinSNRWeighting

INTERVAL = "--trainer.val_check_interval=1"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Images, a latent and a pixel pipeline; not to be written to."""
    folder = tmp_path_factory.mktemp("world")
    return {
        "images": make_class_folders(folder / "images"),
        "latent": make_pipeline(folder / "latent"),
        "pixel": make_pipeline(folder / "pixel", pixels=True),
    }


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """DiffFit's tiny run."""
    return fit_dit(world["images"], world["latent"], tmp_path_factory.mktemp("runs") / "run")


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def module(**arguments):
    settings = {"transformer": make_dit(), "adapter": DiffFit(), "loss": DiffusionLoss(), "optimizer": sgd}
    return DiffusionAdaptation(**{**settings, **arguments})


def batch(count=4, side=4):
    generator = torch.Generator().manual_seed(3)
    return {"latents": torch.randn(count, 4, side, side, generator=generator), "label": torch.arange(count) % 3}


def metrics(folder):
    with (folder / "metrics.csv").open() as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.parametrize("config", ["difffit", "lora"])
def test_tiny_config_runs_end_to_end(world, tmp_path, config):
    pipeline = world["latent" if config == "difffit" else "pixel"]
    folder = fit_dit(world["images"], pipeline, tmp_path / "run", config=config)
    for command in ("validate", "test"):
        main([command, f"-c={folder / 'config.yaml'}"])
    logged = {name for row in metrics(folder) for name in row}
    assert {"images", "train/objective", "val/objective", "test/objective"} <= logged
    assert weights(folder)["images_seen"] == 24
    assert (folder / "adapter" / "adapter.safetensors").is_file()


@pytest.mark.parametrize("adapter", [DiffFit(), BitFit(), DiffusionLoRA(2)], ids=lambda one: type(one).__name__)
def test_frozen_weights_stay_to_the_last_bit(world, adapter):
    torch.manual_seed(0)
    model = module(adapter=adapter, optimizer=lambda parameters: torch.optim.AdamW(parameters, 1e-2, weight_decay=0))
    data = LabelledLatents(world["images"], str(world["latent"]), size=32, batch_size=4)
    seen = {}

    class Start(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.update({name: value.clone() for name, value in pl_module.transformer.named_parameters()})

    trainer = Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=4, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[Start()],
    )  # fmt: skip
    trainer.fit(model, data)
    assert model.images_seen == 16
    for name, value in model.transformer.named_parameters():
        moved = not torch.equal(value, seen[name])
        # a shift of the keys cancels in the softmax
        if not name.endswith(("to_k.bias", "to_k.base_layer.bias")):
            assert moved == (name in model.trained), name
    base = make_dit().state_dict()
    for name, value in model.transformer.state_dict().items():
        plain = name.replace("base_layer.", "")
        if plain in base and "embedder" not in plain and not plain.endswith(".bias"):
            assert torch.equal(value, base[plain]), name


def test_checkpoint_and_adapter_hold_only_what_trains(run, world):
    checkpoint = weights(run)
    stored = load_file(run / "adapter" / "adapter.safetensors")
    trained = {
        name.removeprefix("transformer.") for name in checkpoint["state_dict"] if name.startswith("transformer.")
    }
    assert trained == set(stored)
    assert all(name.endswith((".bias", "ia3_l.default", "embedding_table.weight")) for name in trained)
    assert set(checkpoint["state_dict"]) - {f"transformer.{name}" for name in trained} == {
        f"average.{place}" for place in range(len(trained))
    }
    with safe_open(run / "adapter" / "adapter.safetensors", "pt") as opened:
        about = opened.metadata()
    assert json.loads(about["classes"]) == ["china", "flower", "third"]
    assert (run / "adapter" / "adapter.safetensors").stat().st_size < 60_000


def test_the_stored_adapter_is_the_runs_average(run, world):
    transformer = DiTTransformer2DModel.from_pretrained(world["latent"], subfolder="transformer")
    assert load_diffusion_adapter(transformer, run / "adapter") == ["china", "flower", "third"]
    model = module(transformer=str(world["latent"]), loss=DiffusionLoss(MinSNRWeighting()))
    data = LabelledLatents(world["images"], str(world["latent"]), size=32, batch_size=4, split=(0.6, 0.2, 0.2))
    data.setup("fit")
    figures = []
    for number, stored in enumerate(data.val_dataloader()):
        frozen = model.drawn(data.on_after_batch_transfer(stored, 0), torch.Generator().manual_seed(number))
        with torch.no_grad():
            model.transformer = transformer
            figures.append(model.objective(frozen))
    logged = float([row["val/objective"] for row in metrics(run) if "val/objective" in row][-1])
    assert torch.cat(figures).mean().item() == pytest.approx(logged, rel=1e-5)


@pytest.mark.extended
def test_resumed_equals_uninterrupted(world, tmp_path):
    """Stopped inside the first pass (18 training images, 4 batches) and at its end."""
    whole = fit_dit(world["images"], world["latent"], tmp_path / "whole", INTERVAL, "--budget.images=24")
    for images in (8, 16):
        parts = tmp_path / f"parts{images}"
        fit_dit(world["images"], world["latent"], parts, INTERVAL, f"--budget.images={images}")
        assert weights(parts)["images_seen"] == images
        fit_dit(world["images"], world["latent"], parts, INTERVAL, "--budget.images=24", "--ckpt_path=last")
        assert_same(state(parts), state(whole))


def test_average_by_hand():
    model = module(ema_halflife_images=8, ema_rampup_ratio=float("inf"))
    model.add_classes(["a", "b", "c"])
    before = {name: value.clone() for name, value in model.averaged.items()}
    with torch.no_grad():
        for parameter in model.trained.values():
            parameter.add_(1)
    model.images_seen = 16
    model.update_average(batch_images=16)  # two half-lives: a quarter of the old remains
    for name, value in model.averaged.items():
        torch.testing.assert_close(value, before[name] + 0.75)
    assert not any(value.requires_grad for value in model.average)


def test_forward_uses_the_average_and_leaves_the_weights():
    model = module().eval()
    model.add_classes(["a", "b", "c"])
    with torch.no_grad():
        for parameter in model.trained.values():
            parameter.add_(0.3)
        given = {"timestep": torch.tensor([10]), "class_labels": torch.tensor([1])}
        latents = torch.randn(1, 4, 4, 4)
        current, averaged = (network(latents, **given).sample for network in (model.transformer, model))
    assert not torch.allclose(current, averaged, atol=1e-3)
    with torch.no_grad():
        for name, value in model.averaged.items():
            model.trained[name].copy_(value)
        torch.testing.assert_close(model.transformer(latents, **given).sample, averaged)


def test_objective_by_hand():
    """The paper's loss with its weight, seen by the frozen objective too."""
    model = module(loss=DiffusionLoss(MinSNRWeighting(5.0))).eval()
    model.add_classes(["a", "b", "c"])
    torch.manual_seed(0)
    frozen = model.frozen(batch())
    scheduler = DDPMScheduler()
    kept = scheduler.alphas_cumprod[frozen["timesteps"]]
    noisy = kept.sqrt()[:, None, None, None] * frozen["latents"]
    noisy += (1 - kept).sqrt()[:, None, None, None] * frozen["noise"]
    with torch.no_grad():
        predicted = model.transformer(noisy, timestep=frozen["timesteps"], class_labels=frozen["label"]).sample[:, :4]
        ratio = kept / (1 - kept)
        expected = (predicted - frozen["noise"]).square().mean((1, 2, 3)) * ratio.clamp(max=5) / ratio
        torch.testing.assert_close(model.deterministic_objective(frozen), expected.mean())


def test_labels_are_dropped_once_for_all_blocks(monkeypatch):
    model = module(label_dropout=0.5)
    model.add_classes(["a", "b", "c"])
    shown = []
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    monkeypatch.setattr(model, "_trainer", type("Clock", (), {"world_size": 1})())
    for block in model.transformer.transformer_blocks:
        table = block.norm1.emb.class_embedder
        if not table.embedding_table._forward_hooks:
            table.embedding_table.register_forward_hook(lambda _, given, __: shown.append(given[0]))
    torch.manual_seed(0)
    model.train().training_step(batch(400), 0)
    assert len(shown) == 5  # four blocks, and the output's own use of the first
    assert all(torch.equal(labels, shown[0]) for labels in shown)
    dropped = shown[0] == 3
    assert 0.4 < dropped.float().mean() < 0.6
    assert torch.equal(shown[0][~dropped], batch(400)["label"][~dropped])


@pytest.mark.extended
def test_loss_tracking_stops_it_and_disturbs_nothing(world, tmp_path):
    def tracked(folder, **options):
        words = {"class_path": "LossTrackingEarlyStopping", "init_args": {"images": 4, **options}}
        return fit_dit(world["images"], world["latent"], folder, f"--early_stopping={json.dumps(words)}", INTERVAL)

    plain = fit_dit(world["images"], world["latent"], tmp_path / "plain", INTERVAL)
    followed = tracked(tmp_path / "followed", window=2, threshold=0.0)
    assert_same(state(followed), state(plain))
    curve = json.loads((followed / "loss_tracking.json").read_text())
    assert len(set(curve["objective"])) == 6
    stopped = tracked(tmp_path / "stopped", window=2, threshold=0.99)
    assert weights(stopped)["images_seen"] < 24


def test_larger_pictures_of_the_same_classes(world, tmp_path, monkeypatch):
    """High-resolution adaptation: the model as it is, larger latents, the base's classes."""
    images = make_class_folders(tmp_path / "images", tuple("abcdefghij"), each=3)
    words = ("--model.new_classes=false", "--data.size=32", "--data.split=[0.34,0.33,0.33]")
    pipeline = shutil.copytree(world["pixel"], tmp_path / "pipeline")
    config = pipeline / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": 16}))
    seen = []
    embed = PatchEmbed.forward

    def noted(self, latent):
        embedded = embed(self, latent)
        tokens = self.proj(latent).flatten(2).transpose(1, 2)
        seen.append((embedded - tokens)[0].detach().reshape(latent.shape[-1] // 8, latent.shape[-1] // 8, -1))
        return embedded

    monkeypatch.setattr(PatchEmbed, "forward", noted)
    folder = fit_dit(images, pipeline, tmp_path / "run", *words, config="lora")
    assert weights(folder)["state_dict"]["transformer." + TABLE].shape == (11, 16)
    small = DiTPipeline.from_pretrained(pipeline).transformer
    assert small.config.sample_size == 16
    coarse = small.pos_embed.pos_embed.reshape(2, 2, -1)
    assert len(seen) > 6
    for fine in seen:  # each step, validation too: 4x4 tokens, where the model has 2x2
        assert fine.shape[:2] == (4, 4)
        torch.testing.assert_close(fine[::2, ::2], coarse, atol=1e-4, rtol=1e-4)


TABLE = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"


def test_a_repo_that_cannot_be_reached(monkeypatch, world):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"no repo that can be reached; download the repo .* and give FOLDER"):
        module(transformer="facebook/DiT-XL-2-256")
    with pytest.raises(FileNotFoundError, match=r"holds neither transformer/config\.json nor a config\.json"):
        module(transformer=str(world["images"]))


def test_the_writer_serves_this_module_alone():
    with pytest.raises(TypeError, match="serves DiffusionAdaptation, this run trains a LightningModule"):
        DiffusionAdapterWriter().setup(Trainer(accelerator="cpu", logger=False), LightningModule(), "fit")


def test_refusals(world, run, tmp_path):
    with pytest.raises(ValueError, match=r"weight_decay is 0\.01; it pulls the biases and scale factors that DiffFit"):
        module(optimizer=torch.optim.AdamW)
    assert module(optimizer=torch.optim.AdamW, adapter=AllWeights()).adapter.decays
    with pytest.raises(ValueError, match="label_dropout is 1"):
        module(label_dropout=1)
    with pytest.raises(ValueError, match="ema_halflife_images is 0"):
        module(ema_halflife_images=0)
    with pytest.raises(ValueError, match=r"the data have 3 channels, the transformer takes 4; set data\.vae"):
        module().check_latents((3, 4, 4))
    with pytest.raises(ValueError, match=r"latents of 2x2 are smaller than the 4x4 .* give images 2 times as large"):
        module().check_latents((4, 2, 2))
    with pytest.raises(ValueError, match="latents of 5x5 are no square that 2 divides"):
        module().check_latents((4, 5, 5))
    copied = shutil.copytree(run, tmp_path / "copied")
    with pytest.raises(ValueError, match="trained on the classes china, flower, third, the data hold one, two"):
        fit_dit(make_class_folders(tmp_path / "o", ("one", "two")), world["latent"], copied, "--ckpt_path=last")
    with pytest.raises(ValueError, match="the tensors are not of this adapter"):
        fit_dit(world["images"], world["latent"], copied, "--model.adapter=BitFit", "--ckpt_path=last")
    other = tmp_path / "other"
    DiTPipeline.from_pretrained(world["latent"], transformer=make_dit(seed=1)).save_pretrained(other)
    with pytest.raises(ValueError, match="the checkpoint was trained on another base"):
        fit_dit(world["images"], other, copied, "--ckpt_path=last", f"--data.vae={world['latent']}")


@pytest.mark.parametrize(
    "config", sorted((CONFIGS / "diffusion_adaptation").glob("*.yaml")), ids=lambda file: file.stem
)
def test_shipped_model_loads_on_the_meta_device(config):
    """DiT-XL/2 with the published numbers of parameters, from the YAML's own words."""
    words = yaml.safe_load(config.read_text())
    assert words["data"]["init_args"]["vae"] == "${model.init_args.transformer}"
    with torch.device("meta"):
        transformer = DiTTransformer2DModel(in_channels=4, out_channels=8)
    arguments = {name: value for name, value in words["model"]["init_args"].items() if name != "transformer"}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DiffusionAdaptation, "model", skip={"transformer"}, instantiate=False)
    parsed = parser.instantiate(parser.parse_object({"model": arguments})).model
    model = DiffusionAdaptation(transformer=transformer, **vars(parsed))
    model.check_latents((4, words["data"]["init_args"]["size"] // 8, words["data"]["init_args"]["size"] // 8))
    model.add_classes([f"{number:03d}" for number in range(101 if model.new_classes else 1000)])
    (group,) = model.configure_optimizers().param_groups
    expected = {
        "difffit_dit_xl": 685_472,
        "difffit_dit_xl_512": 685_472 + (1001 - 102) * 1152,
        "bitfit_dit_xl": 604_832,
        "lora_dit_xl": 1_149_696,
        "full_dit_xl": 717_655_712,
    }
    assert sum(map(torch.numel, group["params"])) == expected[config.stem]
    assert group["weight_decay"] == 0
    assert group["lr"] == (1e-4 if config.stem == "full_dit_xl" else 1e-3)
    # 0.9999 a step of 256 images; 24,000 steps, or 25 epochs of ImageNet
    assert 0.5 ** (256 / model.moving_average.halflife_images) == pytest.approx(0.9999, abs=1e-8)
    assert words["data"]["init_args"]["batch_size"] == 256
    images = 24_000 * words["data"]["init_args"]["batch_size"] if model.new_classes else 25 * 1_281_167
    assert words["budget"]["images"] == images


def test_two_processes_end_with_equal_weights_and_draws_of_their_own(world, tmp_path):
    before = (
        "from lightning_modules import DiffusionAdaptation\n"
        "drawn, seen = DiffusionAdaptation.drawn, []\n"
        "def noted(self, batch, generator=None):\n"
        "    found = drawn(self, batch, generator)\n"
        "    if generator is None and torch.is_grad_enabled():\n"
        "        seen.append(found['noise'])\n"
        "    return found\n"
        "DiffusionAdaptation.drawn = noted\n"
    )
    words = [
        "fit", f"-c={TINY_CONFIGS / 'diffusion_adaptation' / 'difffit.yaml'}", f"--data.root={world['images']}",
        f"--model.transformer={world['latent']}", "--budget.images=8",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    kept = "(model.state_dict(), model.images_seen, seen[0])"
    (first, images, noise), (second, _, other) = fit_on_two_ranks(tmp_path, words, kept, before)
    assert_same(first, second)
    assert images == 8
    assert not torch.equal(noise, other)


def test_a_run_goes_on_with_another_number_of_processes(world, tmp_path):
    folder = fit_dit(world["images"], world["latent"], tmp_path / "run", INTERVAL, "--budget.images=8")
    words = [
        "fit", f"-c={TINY_CONFIGS / 'diffusion_adaptation' / 'difffit.yaml'}", f"--data.root={world['images']}",
        f"--model.transformer={world['latent']}", "--budget.images=16", f"--trainer.default_root_dir={folder}",
        f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}",
    ]  # fmt: skip
    kept = "(model.state_dict(), model.images_seen, [int(s['step']) for s in self.optimizers[0].state.values()])"
    (first, images, steps), (second, _, _) = fit_on_two_ranks(tmp_path, words, kept)
    assert_same(first, second)
    assert images == 16
    assert set(steps) == {4}  # two of the run alone, two of the run on both


def test_batches_of_one_step_are_drawn_apart(world, tmp_path, monkeypatch):
    """With accumulate_grad_batches no two batches share the draws that follow the clock."""
    clocks, generator = [], LabelledLatents.generator

    def noted(self):
        clocks.append(self.images_seen)
        return generator(self)

    monkeypatch.setattr(LabelledLatents, "generator", noted)
    accumulated = "--trainer.accumulate_grad_batches=2"
    folder = fit_dit(world["images"], world["latent"], tmp_path / "run", accumulated, "--budget.images=16")
    assert clocks == [0, 4, 8, 12]
    assert weights(folder)["images_seen"] == 16
    assert {int(value["step"]) for value in weights(folder)["optimizer_states"][0]["state"].values()} == {2}


def sharded_words(world, run, *words):
    return [
        "fit", f"-c={TINY_CONFIGS / 'diffusion_adaptation' / 'difffit.yaml'}", f"--data.root={world['images']}",
        f"--model.transformer={world['latent']}", INTERVAL, f"--trainer.default_root_dir={run}", *words,
    ]  # fmt: skip


@pytest.mark.extended
@pytest.mark.parametrize("adapter", ["DiffFit", "AllWeights"])
def test_fsdp_is_ddp_with_less_memory(world, tmp_path, adapter):
    """Bit for bit, also when it goes on from its checkpoint, which any other strategy can go on from."""
    shared = (f"--model.adapter={adapter}", "--budget.images=16")
    (expected, images), _ = fit_on_two_ranks(
        tmp_path, sharded_words(world, tmp_path / "ddp", *shared), "(model.state_dict(), model.images_seen)"
    )
    held = "sum(value.to_local().numel() for value in model.trained.values())"
    half = sharded_words(world, tmp_path / "fsdp2", *shared, "--budget.images=8")
    parts = fit_on_two_ranks(tmp_path, half, held, strategy="fsdp2")
    run = tmp_path / "fsdp2"
    tensors = weights(run)["state_dict"]
    assert sum(parts) == sum(value.numel() for name, value in tensors.items() if not name.startswith("average."))
    assert max(parts) < 0.7 * sum(parts)
    elsewhere = shutil.copytree(run, tmp_path / "elsewhere")
    whole_run = sharded_words(world, run, *shared, "--ckpt_path=last")
    fit_on_two_ranks(tmp_path, whole_run, "model.images_seen", strategy="fsdp2")
    found = weights(run)
    assert (found["images_seen"], images) == (16, 16)
    assert_same(found["state_dict"], expected)
    fit_on_two_ranks(tmp_path, sharded_words(world, elsewhere, *shared, "--ckpt_path=last"), "model.images_seen")
    assert_same(weights(elsewhere)["state_dict"], expected)
    assert_same(
        load_file(run / "adapter" / "adapter.safetensors"),
        load_file(tmp_path / "ddp" / "adapter" / "adapter.safetensors"),
    )


def test_weights_that_are_no_numbers_end_the_run(world, tmp_path, monkeypatch):
    step = DiffusionAdaptation.training_step

    def broken(self, *arguments):
        next(iter(self.trained.values())).data.fill_(float("nan"))
        return step(self, *arguments)

    monkeypatch.setattr(DiffusionAdaptation, "training_step", broken)
    with pytest.raises(RuntimeError, match=r"alarm at 4 images: transformer.* is not a number; it is kept as"):
        fit_dit(world["images"], world["latent"], tmp_path / "run", INTERVAL, "--budget.images=8")
    assert (tmp_path / "run" / "checkpoints" / "alarm.ckpt").is_file()
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_a_dry_run_counts_operations(world, tmp_path, capsys):
    with pytest.raises(SystemExit):
        fit_dit(world["images"], world["latent"], tmp_path / "run", "--dry-run", "--budget.images=400")
    assert re.search(r"DiTTransformer2DModel: 0\.00\d GMACs a pass of one image", capsys.readouterr().out)


def test_what_fsdp_does_not_take(world, tmp_path):
    strategy = FullyShardedStrategy()
    strategy.connect(LightningModule())
    with pytest.raises(
        TypeError, match="fsdp2 shards DiffusionAdaptation and DiffusionTraining, this run trains a Light"
    ):
        strategy.setup(Trainer(logger=False))
    run = fit_dit(world["images"], world["latent"], tmp_path / "run", "--budget.images=4")
    with pytest.raises(ValueError, match=r"last.ckpt was not written by fsdp2"):
        strategy.load_checkpoint(run / "checkpoints" / "last.ckpt")
