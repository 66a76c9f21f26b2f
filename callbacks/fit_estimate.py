"""What a training would take, by a timed sample of it."""

import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.flop_counter import FlopCounterMode

from callbacks.console import say
from callbacks.image_budget import budget_of
from callbacks.trainer_state import batch_images
from lightning_modules import PairedGAN, UnpairedGAN
from lightning_modules.diffusion_module import DiffusionModule
from pocketgan.compression import layer_macs

WARM_UP_BATCHES, TIMED_BATCHES = 3, 8


class FitEstimate(Callback):
    """Trains a few batches, says what the whole would take, and leaves; nothing is written.

    Parameters and operations are counted; seconds and memory are this machine's, of training steps alone, without
    validations.
    """

    def __init__(self) -> None:
        self._batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose how many batches to time: no more than the budget has."""
        budget = budget_of(trainer)
        assert budget is not None, "the command line adds one"
        self._budget = budget
        whole = -(-budget // batch_images(trainer))
        self._warm_up = min(WARM_UP_BATCHES, whole - 1)
        self._last = min(self._warm_up + TIMED_BATCHES, whole)
        self._mark(pl_module)

    def _mark(self, module: LightningModule) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        self._begun, self._images = time.perf_counter(), getattr(module, "images_seen", 0)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Count, and end.

        Raises:
            SystemExit: With 0, once enough batches are timed.
        """
        self._batches += 1
        if self._batches == self._warm_up:
            self._mark(pl_module)
        if self._batches < self._last:
            return
        begun, images = self._begun, self._images
        self._mark(pl_module)
        size = self._checkpoint_bytes(trainer)
        if trainer.is_global_zero:
            self._tell(trainer, pl_module, (self._images - images) / (self._begun - begun), size)
        raise SystemExit(0)

    @staticmethod
    def _checkpoint_bytes(trainer: Trainer) -> int:
        with TemporaryDirectory() as folder:  # every rank takes part, the first one writes
            file = Path(trainer.strategy.broadcast(folder)) / "sample.ckpt"
            trainer.save_checkpoint(file)
            return file.stat().st_size if trainer.is_global_zero else 0

    def _tell(self, trainer: Trainer, module: LightningModule, speed: float, checkpoint_bytes: int) -> None:
        for name, part in module.named_children():
            count = sum(weight.numel() for weight in part.parameters())
            trained = sum(weight.numel() for weight in part.parameters() if weight.requires_grad)
            if count:
                say(f"{name}: {count:,} parameters, {trained:,} of them trained")
        if (macs := _generator_macs(trainer, module)) is not None:
            say(f"generator: {macs / 1e9:.3f} GMACs an image at {trainer.datamodule.size} px")  # type: ignore[attr-defined]
        if isinstance(module, DiffusionModule):
            macs = _denoiser_macs(trainer, module)
            say(f"{type(module.denoiser).__name__}: {macs / 1e9:.3f} GMACs a pass of one image")
        device = trainer.strategy.root_device
        if device.type == "cuda":
            say(f"memory: {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB of the GPU in a step")
        else:
            say(f"memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB of this process")
        batch_size, timed = trainer.datamodule.batch_size, self._last - self._warm_up  # type: ignore[attr-defined]
        say(f"images: {self._budget:,} in batches of {batch_size} on {trainer.world_size} processes")
        if speed:
            seconds = self._budget / speed
            say(
                f"time: {seconds:,.0f} s ({seconds / 3600:.2f} h) of training steps, {speed:.1f} images a second over "
                f"{timed} batches; validations come on top"
            )
        folder = Path(trainer.default_root_dir)
        say(f"{folder} would get config.yaml, environment.json, metrics.csv, samples/, and checkpoints/ of")
        say(f"{checkpoint_bytes / 2**20:.1f} MiB each; nothing was written")


@torch.no_grad()
def _denoiser_macs(trainer: Trainer, module: DiffusionModule) -> int:
    batch = next(iter(trainer.datamodule.train_dataloader()))  # type: ignore[attr-defined]
    batch = module.drawn({name: value[:1] for name, value in trainer.strategy.batch_to_device(batch).items()})
    with FlopCounterMode(display=False) as counter:
        module.predict(batch["latents"], batch, module.denoiser)
    return counter.get_total_flops() // 2


def _generator_macs(trainer: Trainer, module: LightningModule) -> int | None:
    if isinstance(module, PairedGAN):
        size: int = trainer.datamodule.size  # type: ignore[attr-defined]
        photo = torch.zeros(1, 3, size, size, device=module.device)
        concept = module.concepts[0]
        tokens = module.text_encoder_ema([concept], [module.prompts[concept]]).to(module.device)
        return layer_macs(module.generator_ema, (photo, tokens))[""]
    if isinstance(module, UnpairedGAN):
        latents = torch.zeros(1, module.generator.latent_size, device=module.device)
        labels = torch.zeros(1, dtype=torch.long, device=module.device) if module.generator.classes else None
        return layer_macs(module.generator_ema, (latents, labels))[""]  # type: ignore[arg-type]
    return None
