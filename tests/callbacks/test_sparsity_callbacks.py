"""Both sparsity callbacks in runs: what is zero when, resume, what is deployed, teachers, refusals."""

import copy
import csv
from functools import partial

import pytest
import torch
import yaml
from checkpoints import assert_same, state, weights
from diffusers import DiTTransformer2DModel
from lightning.pytorch import LightningModule, Trainer
from tiny import TINY_CONFIGS, real_photos, tiny_paired_gan
from tiny_dit import fit_dit, make_class_folders, make_pipeline
from torch import nn
from two_ranks import fit_on_two_ranks

from callbacks import NToMSparsity, ProgressiveSparsity
from datamodules import PairedImages
from lightning_modules import BaseGAN, load_base, load_run
from pocketgan.adapters import load_diffusion_adapter
from pocketgan.class_pipeline import load_class_pipeline
from pocketgan.cli import main
from pocketgan.compression import CubicSparsity, NToMStage, find_masks, is_n_to_m, kept_count, weight_layers
from pocketgan.exporters import OnnxExporter

INTERVAL = "--trainer.val_check_interval=1"
TWO_TO_FOUR = [NToMStage(0, 2, 4)]
DENSE = {"stem.0", "head.0"}
LADDER = '[{"start_images": 0, "kept": 2, "group_size": 4}]'
PRUNING = (
    "--trainer.callbacks+=ProgressiveSparsity", "--trainer.callbacks.final_sparsity=0.8",
    "--trainer.callbacks.start_images=4", "--trainer.callbacks.end_images=16", "--trainer.callbacks.every_images=4",
)  # fmt: skip
CLIMBING = ("--trainer.callbacks+=NToMSparsity", f"--trainer.callbacks.ladder={LADDER}")


def fit(config, pairs, run, *arguments):
    words = [f"-c={TINY_CONFIGS / config}.yaml", f"--data.root={pairs}", f"--trainer.default_root_dir={run}"]
    main(["fit", *words, *arguments])
    return run


module = partial(tiny_paired_gan, BaseGAN)


def fit_in_python(pairs, model, *callbacks, batches=4):
    trainer = Trainer(
        accelerator="cpu", max_epochs=-1, limit_train_batches=batches, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[*callbacks],
        max_steps=2 * batches,
    )  # fmt: skip
    trainer.fit(model, PairedImages(pairs, size=32, batch_size=4))
    return trainer


@pytest.mark.parametrize("config", ["sparsity/progressive", "sparsity/two_to_four"])
def test_a_schedule_beyond_the_budget_is_told(pair_set, tmp_path, config):
    with pytest.warns(UserWarning, match=r"the run ends at 8 images, \w+Sparsity reaches its end at 16"):
        fit(config, pair_set, tmp_path / "run", "--budget.images=8")


def metrics(folder):
    with (folder / "metrics.csv").open() as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def masks(network):
    return {name: mask.mask.clone() for name, mask in find_masks(network).items()}


class Watch(ProgressiveSparsity):
    """Notes the masks, the momentum of pruned weights and the averaged weights after each batch."""

    def on_train_start(self, trainer, pl_module):
        self.seen = {}
        super().on_train_start(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *rest):
        super().on_train_batch_end(trainer, pl_module, *rest)
        self.seen[pl_module.images_seen] = masks(pl_module.generator)
        layers, averages = weight_layers(pl_module.generator), weight_layers(pl_module.generator_ema)
        memory = trainer.optimizers[0].state
        for name, mask in self.seen[pl_module.images_seen].items():
            original = layers[name].layer.parametrizations.weight.original
            assert memory[original]["exp_avg"][mask].any()
            for key in ("exp_avg", "exp_avg_sq"):
                assert not memory[original][key][~mask].any()
            for network in (layers, averages):
                assert not network[name].layer.weight[~mask].any()


@pytest.mark.parametrize("every_images", [4, 8])
def test_pruning_follows_its_schedule(pair_set, every_images):
    model = module()
    watch = Watch(final_sparsity=0.8, start_images=4, end_images=20, every_images=every_images)
    fit_in_python(pair_set, model, watch, batches=6)
    assert set(watch.seen) == {4, 8, 12, 16, 20, 24}
    schedule = CubicSparsity(0.0, 0.8, 4, 20, every_images)
    before = {}
    for images, found in watch.seen.items():
        total = sum(mask.numel() for mask in found.values())
        assert sum(int(mask.sum()) for mask in found.values()) == kept_count(total, schedule(images))
        for name, mask in before.items():
            assert not (found[name] & ~mask).any()
        before = found
    assert set(before) == set(weight_layers(model.generator)) - DENSE
    # one threshold for all layers: their shares differ
    assert len({round(float(mask.float().mean()), 2) for mask in before.values()}) > 3


def test_one_shot_is_before_the_first_step(pair_set):
    start = module()
    chosen = [layer.weight for name, (layer, _) in weight_layers(start.generator).items() if name not in DENSE]
    threshold = torch.cat([weight.abs().flatten() for weight in chosen]).sort().values

    watch = Watch(final_sparsity=0.75, start_images=0, end_images=1, every_images=1, initial_sparsity=0.75)
    fit_in_python(pair_set, copy.deepcopy(start), watch, batches=1)
    kept = kept_count(len(threshold), 0.75)
    for (name, mask), weight in zip(watch.seen[4].items(), chosen, strict=True):
        assert torch.equal(mask, weight.abs() >= threshold[-kept]), name


def test_sgds_momentum_is_cleared(pair_set):
    model = module(generator_optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9))
    callback = ProgressiveSparsity(0.5, start_images=8, end_images=12, every_images=4)
    trainer = fit_in_python(pair_set, model, callback, batches=3)
    for name, mask in masks(model.generator).items():
        original = weight_layers(model.generator)[name].layer.parametrizations.weight.original
        memory = trainer.optimizers[0].state[original]["momentum_buffer"]
        assert memory.any()
        assert not memory[~mask].any()


def test_the_ladder_is_climbed(pair_set):
    stages = [NToMStage(4, 15, 16), NToMStage(8, 7, 8), NToMStage(12, 3, 4), NToMStage(16, 2, 4)]

    class Climb(NToMSparsity):
        def on_train_start(self, trainer, pl_module):
            super().on_train_start(trainer, pl_module)
            self.seen = {0: self.patterns(pl_module)}

        def on_train_batch_end(self, trainer, pl_module, *rest):
            super().on_train_batch_end(trainer, pl_module, *rest)
            self.seen[pl_module.images_seen] = self.patterns(pl_module)

        def patterns(self, pl_module):
            found = [{n: mask.pattern for n, mask in find_masks(net).items()} for net in self.networks(pl_module)]
            assert found[0] == found[1]
            return found[0]

    climb, model = Climb(stages), module()
    fit_in_python(pair_set, model, climb, batches=5)
    wide = "transformer.feed_forward.1"  # 128 inputs
    assert [climb.seen[images][wide] for images in (0, 4, 8, 12, 16, 20)] == [
        [4, 4], [15, 16], [7, 8], [3, 4], [2, 4], [2, 4],
    ]  # fmt: skip
    narrow = "down.0.0"  # 8 inputs, which 16 does not divide
    assert [climb.seen[images][narrow] for images in (0, 4, 8, 12)] == [[4, 4], [4, 4], [7, 8], [3, 4]]
    for name, (layer, _) in weight_layers(model.generator_ema).items():
        assert is_n_to_m(layer.weight, 2, 4) == (name not in DENSE)


@pytest.mark.extended
@pytest.mark.filterwarnings("ignore:the run ends at")  # its first part
@pytest.mark.parametrize(("config", "images"), [("progressive", 8), ("two_to_four", 12)])
def test_resumed_equals_uninterrupted(pair_set, tmp_path, config, images):
    words = (f"sparsity/{config}", pair_set)
    whole = fit(*words, tmp_path / "whole", INTERVAL)
    parts = fit(*words, tmp_path / "parts", INTERVAL, f"--budget.images={images}")
    fit(*words, parts, INTERVAL, "--ckpt_path=last")
    assert_same(state(parts), state(whole))
    assert weights(parts)["sparsity"] == weights(whole)["sparsity"]
    shares = [[row["train/sparsity"] for row in metrics(run) if "train/sparsity" in row] for run in (whole, parts)]
    assert shares[0] == shares[1]
    assert len(shares[0]) == 6
    assert float(shares[0][-1]) == pytest.approx(0.8 if config == "progressive" else 0.5, abs=1e-4)


@pytest.mark.extended
def test_resumed_adapter_equals_uninterrupted(trained, tmp_path):
    words = ("sparsity/adapter_two_to_four", trained["pairs"])
    more = (INTERVAL, f"--model.base={trained['base']}", "--data.concepts=[sepia]")
    whole = fit(*words, tmp_path / "whole", *more)
    parts = fit(*words, tmp_path / "parts", *more, "--budget.images=12")
    fit(*words, parts, *more, "--ckpt_path=last")
    assert_same(state(parts), state(whole))


@pytest.fixture(scope="module")
def sparse(trained, tmp_path_factory):
    """A 2:4 and a pruned base, and a 2:4 adapter on the first; not to be written to."""
    folder = tmp_path_factory.mktemp("sparse")
    base = fit("sparsity/two_to_four", trained["pairs"], folder / "base", "--data.concepts=[inverted]")
    pruned = fit("sparsity/progressive", trained["pairs"], folder / "pruned", "--data.concepts=[inverted]")
    adapter = fit(
        "sparsity/adapter_two_to_four", trained["pairs"], folder / "adapter", "--data.concepts=[sepia]",
        f"--model.base={base}",
    )  # fmt: skip
    return {"base": base, "pruned": pruned, "adapter": adapter}


@pytest.mark.extended
@pytest.mark.parametrize("name", ["base", "pruned", "adapter"])
def test_what_is_deployed_is_what_was_measured(sparse, trained, name, tmp_path):
    run = load_run(sparse[name])
    photo, concept = torch.stack(real_photos(2, 32)), run.concepts[0]
    with torch.no_grad():
        expected = run(photo, [concept])
        network = run.deployed(concept)
        torch.testing.assert_close(network(photo), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(run(photo, [concept]), expected)  # the run is as it was
    if name != "pruned":
        for layer_name, (layer, _) in weight_layers(network).items():
            if not layer_name.endswith(("stem.0", "head.0")) and "cross_attention" not in layer_name:
                assert is_n_to_m(layer.weight, 2, 4), layer_name
    # folding the prompt leaves plain layers of the dense network's shapes
    dense = load_run(trained["base"]).deployed("inverted").state_dict()
    assert {key: value.shape for key, value in network.state_dict().items()} == {
        key: value.shape for key, value in dense.items()
    }
    if name == "adapter":  # tests/pocketgan/test_cli.py exports each
        OnnxExporter().export(network, tmp_path / "x.onnx", {"concept": concept}, 32, 8)
        torch.testing.assert_close(OnnxExporter().load(tmp_path / "x.onnx")(photo), expected, atol=1e-3, rtol=0)


def test_a_run_is_loaded_without_its_callback(sparse, tmp_path):
    config = yaml.safe_load((sparse["pruned"] / "config.yaml").read_text())
    config["trainer"]["callbacks"] = None
    (tmp_path / "config.yaml").write_text(f"# x\n{yaml.safe_dump(config)}")
    main(["validate", f"-c={tmp_path / 'config.yaml'}"])
    rows = metrics(sparse["pruned"])
    figures = [row["val/reconstruction"] for row in rows if "val/reconstruction" in row]
    assert figures[-1] == figures[-2]  # of the fit and of this validate


def test_a_base_is_plain_and_sparse_for_what_builds_on_it(sparse):
    base = load_base(sparse["base"])
    assert not find_masks(base.generator_ema)
    for name, (layer, _) in weight_layers(base.generator_ema).items():
        assert is_n_to_m(layer.weight, 2, 4) == (name not in DENSE)
    # frozen layers of the adapter are the base's, zeros and all
    adapter = load_run(sparse["adapter"])
    for name, (layer, lora) in weight_layers(adapter.generator_ema).items():
        if lora is None:
            assert torch.equal(layer.weight, weight_layers(base.generator_ema)[name].layer.weight)


def test_a_sparse_base_is_fine_tuned_in_full(sparse, trained, tmp_path):
    run = fit(
        "full_fine_tuning/e2gan", trained["pairs"], tmp_path / "run", "--data.concepts=[sepia]",
        f"--model.base={sparse['base']}", *PRUNING,
    )  # fmt: skip
    found = masks(load_run(run).generator_ema)
    total = sum(mask.numel() for mask in found.values())
    assert sum(int(mask.sum()) for mask in found.values()) == kept_count(total, 0.8)


def test_teacher_pulls_the_edits(trained, pair_set, tmp_path):
    """The term's value by hand, in the loss that the generator steps on."""
    callback = NToMSparsity(TWO_TO_FOUR, teacher=trained["base"], distillation_weight=0.5)
    model = module()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[callback])
    trainer.datamodule = PairedImages(pair_set, ["inverted"], size=32, batch_size=4)
    trainer.datamodule.setup("fit")
    callback.setup(trainer, model, "fit")
    (term,) = model.extra_terms
    photo = torch.stack(real_photos(2, 32))
    edits = torch.zeros_like(photo, requires_grad=True)
    value = term({"photo": photo, "concept": ["inverted", "inverted"]}, edits)
    with torch.no_grad():
        wanted = load_run(trained["base"])(photo, ["inverted"])
    torch.testing.assert_close(value, 0.5 * wanted.abs().mean())
    value.backward()
    assert edits.grad.any()


def test_teacher_takes_part_in_a_run(trained, tmp_path):
    words = ("sparsity/two_to_four", trained["pairs"])
    more = ("--data.concepts=[inverted]", "--trainer.callbacks.distillation_weight=50")
    with_teacher = fit(*words, tmp_path / "a", *more, f"--trainer.callbacks.teacher={trained['base']}")
    without = fit(*words, tmp_path / "b", *more)
    found, other = weights(with_teacher)["state_dict"], weights(without)["state_dict"]
    assert found.keys() == other.keys()
    assert any(not torch.equal(found[name], other[name]) for name in found)
    with pytest.raises(ValueError, match="does not know sepia, only inverted"):
        fit(*words, tmp_path / "c", f"--trainer.callbacks.teacher={trained['base']}")


def test_ranks_stay_equal(pair_set, tmp_path):
    words = ["fit", f"-c={TINY_CONFIGS / 'sparsity' / 'progressive.yaml'}", f"--data.root={pair_set}"]
    words.append(f"--trainer.default_root_dir={tmp_path / 'run'}")
    first, second = fit_on_two_ranks(tmp_path, words, strategy="ddp_find_unused_parameters_true")
    assert_same(first, second)
    kept = [value for name, value in first.items() if name.startswith("generator.") and name.endswith(".mask")]
    assert sum(int(mask.sum()) for mask in kept) == kept_count(sum(mask.numel() for mask in kept), 0.8)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_class_folders(tmp_path_factory.mktemp("images"))


@pytest.mark.extended
@pytest.mark.filterwarnings("ignore:the run ends at")  # its first part
@pytest.mark.parametrize("callback", [PRUNING, CLIMBING], ids=["pruning", "climbing"])
def test_diffusion_from_scratch(images, tmp_path, callback):
    def fitted(run, *arguments):
        return fit("diffusion_training/patch_diffusion", images, run, INTERVAL, *callback, *arguments)

    whole, parts = fitted(tmp_path / "whole"), fitted(tmp_path / "parts", "--budget.images=12")
    fitted(parts, "--ckpt_path=last")
    assert_same(state(parts), state(whole))
    main(["test", f"-c={whole / 'config.yaml'}"])
    pipeline = load_class_pipeline(whole / "pipeline")
    layers = [layer for name, (layer, _) in weight_layers(pipeline.unet).items() if name not in {"conv_in", "conv_out"}]
    if callback is CLIMBING:
        fitting = [layer for layer in layers if layer.weight.shape[1] % 4 == 0]
        assert fitting
        assert all(is_n_to_m(layer.weight, 2, 4) for layer in fitting)
    else:
        total = sum(layer.weight.numel() for layer in layers)
        assert sum(int((layer.weight != 0).sum()) for layer in layers) <= kept_count(total, 0.8)


@pytest.mark.filterwarnings("ignore:the run ends at")  # its first part
@pytest.mark.parametrize("callback", [PRUNING, CLIMBING], ids=["pruning", "climbing"])
def test_diffusion_transformer(images, tmp_path, callback):
    base = make_pipeline(tmp_path / "latent")
    words = (INTERVAL, "--model.adapter=AllWeights", *callback)
    whole = fit_dit(images, base, tmp_path / "whole", *words)
    parts = fit_dit(images, base, tmp_path / "parts", *words, "--budget.images=12")
    fit_dit(images, base, parts, *words, "--ckpt_path=last")
    assert_same(state(parts), state(whole))
    main(["test", f"-c={whole / 'config.yaml'}"])
    plain = DiTTransformer2DModel.from_pretrained(base, subfolder="transformer")
    load_diffusion_adapter(plain, whole / "adapter")
    weight = plain.transformer_blocks[1].ff.net[2].weight
    if callback is CLIMBING:
        assert is_n_to_m(weight, 2, 4)
        assert not is_n_to_m(plain.proj_out_2.weight, 2, 4)
    else:
        assert (weight == 0).any()


def test_diffusion_teachers(images, tmp_path):
    base = make_pipeline(tmp_path / "latent")
    teacher = f"--trainer.callbacks.teacher={base}"
    words = (INTERVAL, "--model.adapter=AllWeights", *CLIMBING, teacher, "--budget.images=8")
    with pytest.raises(ValueError, match="knows nothing of new classes"):
        fit_dit(images, base, tmp_path / "a", *words)
    other = fit("diffusion_training/patch_diffusion", images, tmp_path / "dense")
    run = fit(
        "diffusion_training/patch_diffusion", images, tmp_path / "b", *CLIMBING,
        f"--trainer.callbacks.teacher={other / 'pipeline'}",
    )  # fmt: skip
    assert weights(run)["images_seen"] == 24
    with pytest.raises(ValueError, match="has in_channels 5, the network here 3"):
        fit(
            "diffusion_training/patch_diffusion", images, tmp_path / "c", *CLIMBING, "--model.patch_crop=null",
            "--model.network.in_channels=3", f"--trainer.callbacks.teacher={other / 'pipeline'}",
        )  # fmt: skip


def test_a_diffusion_teacher_sees_the_same_input():
    from callbacks.n_to_m_sparsity import _PredictionTerm

    class Doubling(nn.Module):
        def forward(self, noisy, timestep):
            return type("Output", (), {"sample": noisy * timestep})

    network, teacher = Doubling(), Doubling()
    term = _PredictionTerm(network, teacher, 0.1)
    noisy = torch.randn(2, 4, 2, 2)
    network(noisy, timestep=3)
    prediction = torch.zeros(2, 4, 2, 2)
    value = term({"latents": noisy[:, :2]}, prediction)
    torch.testing.assert_close(value, 0.1 * (3 * noisy[:, :2]).square().mean())


@pytest.mark.parametrize(
    ("ladder", "message"),
    [
        ([], "the ladder has no stage"),
        ([NToMStage(8, 3, 4), NToMStage(8, 2, 4)], "from 3:4 at 8 images to 2:4 at 8"),
        ([NToMStage(8, 3, 4), NToMStage(4, 2, 4)], "each stage must come later"),
        ([NToMStage(0, 2, 4), NToMStage(4, 4, 8)], "be sparser than the one before"),
    ],
)
def test_ladders_that_do_not_ascend(ladder, message):
    with pytest.raises(ValueError, match=message):
        NToMSparsity(ladder)


def test_further_refusals(pair_set):
    with pytest.raises(ValueError, match="distillation_weight -1"):
        NToMSparsity(TWO_TO_FOUR, distillation_weight=-1)
    with pytest.raises(ValueError, match="give shares of zeros"):
        ProgressiveSparsity(1.0, 0, 10, 1)
    with pytest.raises(TypeError, match=r"NToMSparsity serves BaseGAN, .* this run trains a LightningModule"):
        NToMSparsity(TWO_TO_FOUR).networks(LightningModule())
    pruning = ProgressiveSparsity(0.5, 0, 10, 1)
    with pytest.raises(ValueError, match="is parametrised already; give one sparsity callback"):
        fit_in_python(pair_set, module(), NToMSparsity(TWO_TO_FOUR), pruning)
    with pytest.raises(ValueError, match="no convolution or linear layer of E2GANGenerator can be masked"):
        fit_in_python(pair_set, module(), NToMSparsity([NToMStage(0, 2, 64 * 7)]))


def test_an_adapter_of_frozen_weights(images, tmp_path):
    base = make_pipeline(tmp_path / "latent")
    with pytest.raises(ValueError, match="DiffFit freezes them and stores an adapter for the dense base"):
        fit_dit(images, base, tmp_path / "run", *CLIMBING)


def test_a_rank_search_is_refused(trained, tmp_path):
    with pytest.raises(ValueError, match="search ranks first"):
        fit(
            "lora_adaptation/rank_search", trained["pairs"], tmp_path / "run", "--data.concepts=[sepia]",
            f"--model.base={trained['base']}", *CLIMBING,
        )  # fmt: skip


def test_a_resumed_run_keeps_its_layers(sparse, trained, tmp_path):
    checkpoint = sparse["pruned"] / "checkpoints" / "last.ckpt"
    more = ("--data.concepts=[inverted]", f"--ckpt_path={checkpoint}")
    with pytest.raises(ValueError, match="of another kind or on other layers"):
        fit("sparsity/two_to_four", trained["pairs"], tmp_path / "a", *more)
    with pytest.raises(ValueError, match="of another kind or on other layers"):
        fit("sparsity/progressive", trained["pairs"], tmp_path / "b", *more, '--trainer.callbacks.dense_layers=["up"]')
