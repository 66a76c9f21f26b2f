"""Our training step against the public pix2pix step, on pix2pix's own generators at equal size and batch.

python -m benchmarks.training_step

Sides take turns within one run, so that a change of the machine's speed meets all of them. Random pictures: this is
speed; the loss curves come from a short training on the photos of scikit-learn's package.
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.pix2pix import ResNet9, UNet, make_step, patch_discriminator
from benchmarks.runs import command_block, commit, mean_and_spread
from callbacks import ImageBudget, MetricsCSV, RandomState
from lightning_modules import BaseGAN
from pocketgan.losses import L1Loss, NonSaturatingLoss
from pocketgan.metrics import EditQuality
from pocketgan.networks import Generator, PatchDiscriminator
from pocketgan.text import ConceptTokens

RATE, TURNS, STEPS = 2e-4, 6, 4


class Unprompted(Generator):
    """pix2pix's generator in the slot of ours."""

    size_divisor, token_size = 4, 8

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, photo: Tensor, prompt_tokens: Tensor) -> Tensor:  # noqa: ARG002
        """Edit photos."""
        return self.network(photo)

    def fold_prompt(self, prompt_tokens: Tensor) -> nn.Module:  # noqa: ARG002
        """It has no prompt."""
        return self.network


class Batches(LightningDataModule):
    """The same batch again and again, or batches from a list in turn."""

    prompts = {"concept": "a concept"}  # noqa: RUF012

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.batches, self.size = batches, batches[0][0].shape[-1]

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Batches as PairedImages gives them."""
        names = {"concept": ["concept"], "prompt": ["a concept"]}
        items: Any = [{"photo": photo, "edit": edit, **names} for photo, edit in self.batches]
        return DataLoader(items, batch_size=None)


def our_module(generator: nn.Module, discriminator_width: int, **options: Any) -> BaseGAN:
    """Our module with pix2pix's loss and optimizers."""
    adam = partial(torch.optim.Adam, lr=RATE, betas=(0.5, 0.999), fused=True)
    return BaseGAN(
        Unprompted(generator),
        PatchDiscriminator(discriminator_width),
        ConceptTokens(8),
        NonSaturatingLoss(),
        L1Loss(),
        EditQuality(lpips=False),
        adam,
        adam,
        ema_halflife_images=1000,
        **options,
    )


def lightning_steps(
    module: BaseGAN, batches: list[tuple[Tensor, Tensor]], precision: str, as_a_run: bool = False
) -> tuple[float, list[float]]:
    """Train on the batches by ``Trainer.fit``; seconds a step without the first, and the L1 terms.

    With ``as_a_run`` the logger and the callbacks that a run of the small YAMLs has are there, too.
    """
    times, losses = [], []
    bar = RichProgressBar(console_kwargs={"stderr": True})  # what is printed is the page
    callbacks: list[Callback] = [ImageBudget(10**9), RandomState(), bar] if as_a_run else []
    step = module.training_step

    def marked(_: BaseGAN, batch: dict[str, Any], batch_index: int) -> None:
        times.append(time.perf_counter())
        step(batch, batch_index)

    log = module.log_dict

    def kept(figures: dict[str, Tensor], **options: Any) -> None:
        losses.append(figures["train/reconstruction"].detach())
        log(figures, **options)

    # a bound method, since Lightning counts the arguments of one
    module.training_step, module.log_dict = MethodType(marked, module), kept  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a loader of tensors, no logger, no validation: meant
        module.images_seen = 0
        trainer = Trainer(
            max_epochs=1,
            precision=precision,
            logger=MetricsCSV(Path(folder)) if as_a_run else False,
            callbacks=callbacks,
            log_every_n_steps=10,
            enable_checkpointing=False,
            enable_progress_bar=as_a_run,
            enable_model_summary=False,
            default_root_dir=folder,
            accelerator="cpu",
        )
        trainer.fit(module, datamodule=Batches(batches))
    del module.training_step, module.log_dict
    return (times[-1] - times[1]) / (len(times) - 2), [loss.item() for loss in losses]


def bare_steps(module: BaseGAN, batches: list[tuple[Tensor, Tensor]]) -> float:
    """The same work in a loop without Lightning, as short as it can be written; seconds a step without the first."""
    times = []
    of_generator, of_discriminator = module.configure_optimizers()
    for photo, edit in batches:
        times.append(time.perf_counter())
        module.discriminator.requires_grad_(False)
        fake = module.generator(photo, module.prompt_tokens({"concept": ["concept"], "prompt": [""]}))
        adversarial = module.adversarial_loss.generator(module.discriminator(photo, fake))
        (adversarial + module.reconstruction_weight * module.reconstruction_loss(fake, edit)).backward()
        of_generator.step()
        of_generator.zero_grad()
        module.update_average(len(photo))
        module.discriminator.requires_grad_(True)
        logits = module.discriminator(torch.cat((photo, photo)), torch.cat((edit, fake.detach())))
        module.adversarial_loss.discriminator(*logits.chunk(2)).backward()
        of_discriminator.step()
        of_discriminator.zero_grad()
    return (times[-1] - times[1]) / (len(times) - 2)


def public_steps(
    step: Callable[[Tensor, Tensor], Tensor], batches: list[tuple[Tensor, Tensor]]
) -> tuple[float, list[float]]:
    """pix2pix's step on the batches; seconds a step without the first, and the L1 terms."""
    times, losses = [], []
    for photo, edit in batches:
        times.append(time.perf_counter())
        losses.append(step(photo, edit))
    return (times[-1] - times[1]) / (len(times) - 2), [loss.item() for loss in losses]


def measure(make: Callable[[], nn.Module], size: int, batch: int, levers: dict[str, tuple[str, bool]]) -> list[str]:
    """Time the public step and ours by turns; a table's lines."""
    torch.manual_seed(0)
    photo, edit = (torch.rand(batch, 3, size, size) * 2 - 1 for _ in range(2))
    batches = [(photo, edit)] * (STEPS + 2)
    public = make_step(make(), patch_discriminator(), RATE)
    ours = {name: our_module(make(), 64, channels_last=last) for name, (_, last) in levers.items()}
    seconds: dict[str, list[float]] = {"public pix2pix, fp32": []} | {name: [] for name in ours}
    for _ in range(TURNS):
        seconds["public pix2pix, fp32"].append(public_steps(public, batches)[0])
        for name, module in ours.items():
            seconds[name].append(lightning_steps(module, batches, levers[name][0])[0])
    reference = seconds["public pix2pix, fp32"]
    lines = []
    for name, values in seconds.items():
        ratios = [theirs / own for theirs, own in zip(reference, values, strict=True)]
        lines.append(
            f"| {make.__name__} | {name} | {1e3 * statistics.median(values):.0f} | {statistics.median(ratios):.2f}× "
            f"({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    return lines


def profiled(make: Callable[[], nn.Module], size: int, batch: int) -> str:
    """Where the time of our step goes in float32: shares of the operators' own time."""
    torch.manual_seed(0)
    photo, edit = (torch.rand(batch, 3, size, size) * 2 - 1 for _ in range(2))
    module = our_module(make(), 64)
    lightning_steps(module, [(photo, edit)] * 3, "32-true")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        lightning_steps(module, [(photo, edit)] * 3, "32-true")
    own = {event.key: event.self_cpu_time_total for event in profile.key_averages() if event.key.startswith("aten::")}
    groups = {"convolutions": ("conv",), "norms": ("norm",), "optimizers and average": ("adam", "lerp")}
    shares = {
        group: sum(time for name, time in own.items() if any(word in name for word in words)) / sum(own.values())
        for group, words in groups.items()
    }
    shares["the rest"] = 1 - sum(shares.values())
    return f"{make.__name__} " + ", ".join(f"{group} {share:.0%}" for group, share in shares.items())


def lightning_cost(size: int, batch: int) -> str:
    """What ``Trainer.fit`` adds to a bare loop over the same batches, by turns."""
    from pocketgan.networks import E2GANGenerator, GroupNorm

    torch.manual_seed(0)
    photo, edit = (torch.rand(batch, 3, size, size) * 2 - 1 for _ in range(2))
    batches = [(photo, edit)] * 22
    module = our_module(ResNet9(16), 16)
    module.generator = E2GANGenerator(16, 8, norm=GroupNorm())
    module.generator_ema = E2GANGenerator(16, 8, norm=GroupNorm()).eval().requires_grad_(False)
    module.add_concepts(Batches.prompts)
    shares = []
    for _ in range(TURNS):
        bare = bare_steps(module, batches)
        shares.append(lightning_steps(module, batches, "32-true", as_a_run=True)[0] / bare - 1)
    return (
        f"`Trainer.fit` with the logger and callbacks of a run over a bare loop, E2GAN at width 16, {size} px, batch "
        f"{batch}, float32, {TURNS} turns of 20 steps: median {statistics.median(shares):+.1%} "
        f"({min(shares):+.1%} to {max(shares):+.1%})."
    )


def photo_batches(seed: int, steps: int) -> list[tuple[Tensor, Tensor]]:
    """Crops of scikit-learn's two photos at 64 px with an analytic edit."""
    from sklearn.datasets import load_sample_images

    photos = [torch.from_numpy(photo).permute(2, 0, 1) / 127.5 - 1 for photo in load_sample_images().images]
    draw = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(steps):
        crops = []
        for index in range(4):
            photo = photos[index % 2]
            top, left = (int(torch.randint(side - 64, (), generator=draw)) for side in photo.shape[1:])
            crops.append(photo[:, top : top + 64, left : left + 64])
        photo = torch.stack(crops)
        batches.append((photo, -photo.roll(1, 1)))
    return batches


def curves(seeds: int, steps: int) -> list[str]:
    """L1 at the end of a short training of both sides: ours must lie inside the seeds' spread."""
    ends: dict[str, list[float]] = {"public pix2pix, fp32": [], "ours, fp32": [], "ours, bf16-mixed": []}
    for seed in range(seeds):
        batches = photo_batches(seed, steps)
        for name, values in ends.items():
            torch.manual_seed(seed)
            if name.startswith("public"):
                losses = public_steps(make_step(ResNet9(16), patch_discriminator(16), RATE), batches)[1]
            else:
                precision = "32-true" if name.endswith("fp32") else "bf16-mixed"
                losses = lightning_steps(our_module(ResNet9(16), 16), batches, precision)[1]
            values.append(statistics.mean(losses[-20:]))
    return [f"| {name} | {mean_and_spread(values)} |" for name, values in ends.items()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--curve_steps", type=int, default=150)
    options = parser.parse_args()
    levers = {
        "ours, fp32": ("32-true", False),
        "ours, fp32, channels_last": ("32-true", True),
        "ours, bf16-mixed *": ("bf16-mixed", False),
        "ours, bf16-mixed, channels_last": ("bf16-mixed", True),
    }
    lines = [
        *measure(ResNet9, options.size, options.batch, levers),
        *measure(UNet, options.size, options.batch, levers),
    ]
    print(
        f"# Is our training step faster than pix2pix's public one?\n\n{command_block(__doc__)}\n\n"
        "Both sides train pix2pix's own generator with a 70-pixel PatchGAN of width 64, cross-entropy and L1. "
        "The public discriminator has batch norm; ours has instance norm, which lets real and generated pairs pass in "
        "one batch. Rows marked * are what the small configs choose: bf16-mixed, channels_last off.\n\n"
        f"{options.size} px, batch {options.batch}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, {TURNS} turns of {STEPS} steps each, commit {commit()}.\n\n"
        "| generator | step | median ms | faster than the public step, median (least to most) |\n|---|---|---|---|\n"
        + "\n".join(lines)
        + "\n\nWhere the time of our float32 step goes, by torch's profiler: "
        + "; ".join(profiled(make, options.size, options.batch) for make in (ResNet9, UNet))
        + f". Both sides run the same convolutions, which bounds what float32 can gain.\n\n{lightning_cost(128, 4)}\n\n"
        f"L1 over the last 20 of {options.curve_steps} steps, ResNet-9 at width 16, 64 px, batch 4, {options.seeds} "
        "seeds, mean ± standard deviation:\n\n| step | L1 |\n|---|---|\n"
        + "\n".join(curves(options.seeds, options.curve_steps))
    )
