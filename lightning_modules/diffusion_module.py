"""The diffusion step that adaptation and training from scratch share."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DDPMScheduler
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.func import functional_call
from torch.optim import Optimizer

from datamodules import LabelledLatents
from lightning_modules.diffusion_draws import draw_by_rank, spread_timesteps
from lightning_modules.fully_sharded_strategy import FullyShardedStrategy, shard
from pocketgan.compression import restore_masks, sparsity_of
from pocketgan.losses import DiffusionLoss
from pocketgan.schedule import MovingAverage


class DiffusionModule(LightningModule):
    """A network that learns to predict noise of drawn levels, on ``latents`` with a ``label``.

    The clock is images seen over all ranks. What trains has a moving average, which validation and storing use.

    Args:
        loss: Compares prediction and target, with its weight for each noise level.
        optimizer: Made over what trains.
        scheduler: Noise levels.
        ema_halflife_images: Images after which a weight counts half in the moving average (EDM2's convention).
        ema_rampup_ratio: The half-life is at most this share of the images seen (StyleGAN2-ADA's convention).

    Attributes:
        extra_terms: A callback's hook into the training loss: each is called with the batch and the prediction, and its
            scalar is added.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        loss: DiffusionLoss,
        optimizer: OptimizerCallable,
        scheduler: DDPMScheduler,
        ema_halflife_images: float,
        ema_rampup_ratio: float,
    ) -> None:
        super().__init__()
        self.loss, self.optimizer, self.scheduler = loss, optimizer, scheduler
        self.moving_average = MovingAverage(ema_halflife_images, ema_rampup_ratio)
        self.average = nn.ParameterList()
        self.images_seen = 0
        self._images_of_step = 0
        self.extra_terms: list[Callable[[dict[str, Tensor], Tensor], Tensor]] = []
        self._whole: dict[str, Tensor] | None = None

    @property
    @abstractmethod
    def trained(self) -> dict[str, nn.Parameter]:
        """What trains, by its name in the network."""

    @property
    @abstractmethod
    def denoiser(self) -> nn.Module:
        """The network that predicts."""

    @abstractmethod
    def predict(self, noisy: Tensor, batch: dict[str, Tensor], denoiser: Callable[..., Any]) -> Tensor:
        """Run the network, given with its own weights or as ``averaged_denoiser``."""

    def labelled_data(self) -> LabelledLatents:
        """The datamodule.

        Raises:
            TypeError: It is of another kind.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, LabelledLatents):
            raise TypeError(
                f"{type(self).__name__} learns from LabelledLatents, data is {type(data).__name__}; set it so"
            )
        return data

    def start_average(self) -> None:
        """Begin the moving average at the weights."""
        self.average = nn.ParameterList(
            [nn.Parameter(value.detach().clone(), requires_grad=False) for value in self.trained.values()]
        )

    def store_masks(self, checkpoint: dict[str, Any]) -> None:
        """Say in a checkpoint where the network has masks."""
        if patterns := sparsity_of(self.denoiser):
            checkpoint["sparsity"] = patterns

    def restore_masks(self, checkpoint: dict[str, Any]) -> None:
        """Give the network the masks of a checkpoint, before its weights are loaded."""
        if "sparsity" in checkpoint:
            restore_masks(self.denoiser, checkpoint["sparsity"])
            self.start_average()  # in the order of the parameters, which masks change

    @property
    def averaged(self) -> dict[str, Tensor]:
        """The moving average of what trains, by the same names; of a sharded network the rank's part of it."""
        return self._whole or dict(zip(self.trained, self.average, strict=True))

    @contextmanager
    def whole_average(self) -> Iterator[None]:
        """Have ``averaged`` be whole tensors, on the CPU where they were sharded; entered on all ranks."""
        if isinstance(self.denoiser, FSDPModule):
            parts = self.averaged.items()
            self._whole = {name: part.full_tensor().cpu() for name, part in parts if isinstance(part, DTensor)}
        try:
            yield
        finally:
            self._whole = None

    def averaged_denoiser(self, *arguments: Any, **options: Any) -> Any:
        """Run the network with its average; arguments and result are the network's own."""
        if isinstance(self.denoiser, FSDPModule):
            with self._swapped():
                return self.denoiser(*arguments, **options)
        # a class table that blocks share is one module: told to tie weights, torch 2.14 would swap it once for each
        # block and leave the average in the weights' place
        return functional_call(self.denoiser, self.averaged, arguments, options, tie_weights=False)

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        weights = list(self.trained.values())
        with torch.no_grad():
            kept = [weight.detach().clone() for weight in weights]
            for weight, average in zip(weights, self.average, strict=True):
                weight.copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, value in zip(weights, kept, strict=True):
                    weight.copy_(value)

    def configure_model(self) -> None:
        """Shard the network where the strategy asks for it; Lightning's hook between ``setup`` and the optimizer.

        Raises:
            ValueError: The network has masks.
        """
        if not isinstance(self.trainer.strategy, FullyShardedStrategy) or isinstance(self.denoiser, FSDPModule):
            return
        if sparsity_of(self.denoiser):
            raise ValueError("fsdp2 cannot shard a network with masks of zeros; use --trainer.strategy ddp")
        shard(self.denoiser, self.device_mesh["data_parallel"])  # type: ignore[index]
        self.start_average()

    def on_fit_start(self) -> None:
        """Give each rank draws of its own, where all begin with one seed."""
        draw_by_rank(self.trainer)

    def configure_optimizers(self) -> Optimizer:
        """One optimizer over what trains."""
        return self.optimizer(list(self.trained.values()))

    def drawn(self, batch: dict[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw noise and timesteps for a batch.

        Args:
            batch: ``latents`` (B, C, H, W) and ``label`` (B,).
            generator: On the CPU; torch's own random numbers if None.

        Returns:
            The same with ``noise`` like the latents and ``timesteps`` (B,).
        """
        latents, steps = batch["latents"], self.scheduler.config.num_train_timesteps
        device = latents.device if generator is None else torch.device("cpu")
        noise = torch.randn(latents.shape, generator=generator, device=device, dtype=latents.dtype)
        timesteps = torch.randint(steps, (len(latents),), generator=generator, device=device)
        return {**batch, "noise": noise.to(latents.device), "timesteps": timesteps.to(latents.device)}

    def frozen(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draw once what a step draws: ``drawn``, but no timestep comes twice before all have come, as in DVAR."""
        steps, count = self.scheduler.config.num_train_timesteps, len(batch["latents"])
        timesteps = spread_timesteps(count, steps, batch["latents"].device)
        return {**self.drawn(batch), "timesteps": timesteps}

    def objective(self, batch: dict[str, Tensor], averaged: bool = False) -> Tensor:
        """Weighted loss of each example of a ``drawn`` batch, (B,)."""
        noisy = self.scheduler.add_noise(batch["latents"], batch["noise"], batch["timesteps"])
        prediction = self.predict(noisy, batch, self.averaged_denoiser if averaged else self.denoiser)
        loss = self.loss(prediction, batch["latents"], batch["noise"], batch["timesteps"], self.scheduler)
        # they are no part of what is measured
        return loss + sum(term(batch, prediction) for term in self.extra_terms) if torch.is_grad_enabled() else loss

    def deterministic_objective(self, batch: dict[str, Tensor]) -> Tensor:
        """The training loss on a ``frozen`` batch, with the weights in training, whole pictures and every label."""
        return self.objective(batch).mean()

    def learn(self, batch: dict[str, Tensor], images: int) -> Tensor:
        """Draw noise for a batch, log and return its loss.

        Args:
            batch: ``latents`` and ``label``.
            images: Images of the data that the batch was made of.
        """
        objective = self.objective(self.drawn(batch)).mean()
        self.images_seen += images * self.trainer.world_size
        self._images_of_step += images * self.trainer.world_size
        self.log("train/objective", objective)
        self.log("images", float(self.images_seen))
        return objective

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Step, then move the average, before any callback looks at it."""
        super().optimizer_step(*arguments, **options)
        self.update_average(self._images_of_step)
        self._images_of_step = 0

    @torch.no_grad()
    def update_average(self, batch_images: int) -> None:
        """Move the average towards the weights."""
        weights: list[Tensor] = list(self.trained.values())
        self.moving_average.update(list(self.average), weights, batch_images, self.images_seen)

    def _evaluate(self, batch: dict[str, Tensor], batch_index: int, name: str) -> None:
        # the same noise at each validation and for each run, whatever the device
        place = batch_index * self.trainer.world_size + self.trainer.global_rank
        objective = self.objective(self.drawn(batch, torch.Generator().manual_seed(place)), averaged=True).mean()
        self.log(name, objective, prog_bar=True, sync_dist=True, batch_size=len(batch["label"]))
        self.log("images", float(self.images_seen), sync_dist=True, batch_size=len(batch["label"]))

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Measure the averaged weights on frozen noise."""
        self._evaluate(batch, batch_index, "val/objective")

    def test_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Measure the averaged weights on frozen noise."""
        self._evaluate(batch, batch_index, "test/objective")
