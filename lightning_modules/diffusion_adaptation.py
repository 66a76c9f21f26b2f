"""A diffusion transformer on new data: DiffFit, its baselines, or all of it."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lightning_modules.diffusion_module import DiffusionModule
from pocketgan.adapters import DiffusionAdapter, load_trained, null_label, prepare_classes, trained_parameters
from pocketgan.compression import is_mask
from pocketgan.digest import weights_digest
from pocketgan.dit_pipeline import load_scheduler, load_transformer
from pocketgan.losses import DiffusionLoss


class DiffusionAdaptation(DiffusionModule):
    """Adapts a class-conditional diffusion transformer to new classes, or to larger pictures.

    The clock is images seen over all ranks. What trains has a moving average, which validation and the stored adapter
    use; the frozen rest is kept once, and neither it nor its average is in the checkpoint.

    For larger pictures give larger latents to the transformer as it is (``new_classes`` false where the classes stay):
    diffusers then places token (2i, 2j) of the twice as fine grid where (i, j) was, as DiffFit's section on high
    resolution asks for. A transformer made with a larger ``sample_size`` would lose that.

    The loss is on the prediction alone. DiT's own training has a variational term for the variances that it predicts,
    too; ``DiTPipeline`` does not use these variances, so neither do we.

    Args:
        transformer: Folder or repo id of a DiT pipeline or transformer of diffusers, or a transformer itself.
        adapter: What trains.
        loss: Compares prediction and target, with its weight for each noise level.
        optimizer: Made over what trains; DiffFit asks for 10 times the learning rate of pre-training, without weight
            decay.
        new_classes: Whether the data's classes replace the base's, or are the same in the same order.
        label_dropout: Share of the training images that are shown without their class, for guidance; DiT has 0.1.
        ema_halflife_images: Images after which a weight counts half in the moving average (EDM2's convention).
        ema_rampup_ratio: The half-life is at most this share of the images seen (StyleGAN2-ADA's convention), so that
            the average of a short run does not lag behind; infinity for none, as DiT and DiffFit have it.
        scheduler: Noise levels; the pipeline's own if None, or DiT's where there is no pipeline.

    Raises:
        FileNotFoundError: The transformer cannot be reached.
        ValueError: A number is out of range, or weights would decay that must not.
    """

    def __init__(
        self,
        transformer: str | DiTTransformer2DModel,
        adapter: DiffusionAdapter,
        loss: DiffusionLoss,
        optimizer: OptimizerCallable,
        new_classes: bool = True,
        label_dropout: float = 0.1,
        ema_halflife_images: float = 10_000.0,
        ema_rampup_ratio: float = 0.125,
        scheduler: DDPMScheduler | None = None,
    ) -> None:
        if not 0 <= label_dropout < 1:
            raise ValueError(f"label_dropout is {label_dropout}; give a share from 0 to below 1, DiT has 0.1")
        if not adapter.decays:
            _refuse_decay(optimizer, type(adapter).__name__)
        if isinstance(transformer, str):
            loaded, found = load_transformer(transformer), load_scheduler(transformer)
        else:
            loaded, found = transformer, DDPMScheduler()
        super().__init__(loss, optimizer, scheduler or found, ema_halflife_images, ema_rampup_ratio)
        self.transformer, self.adapter = loaded, adapter
        self.new_classes, self.label_dropout = new_classes, label_dropout
        self.classes: list[str] = []
        self.base_sha256 = ""
        # checkpoints hold what trains; load_state_dict checks that it is whole
        self.strict_loading = False

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Take classes and sizes from the data, before the optimizer and a checkpoint's weights come.

        Raises:
            ValueError: The transformer cannot take such latents or such classes.
        """
        data = self.labelled_data()
        self.check_latents(data.latent_shape)
        if not self.classes:
            self.base_sha256 = weights_digest(self.transformer)
            self.add_classes(data.classes)
        elif self.classes != data.classes:
            _refuse_classes(self.classes, data.classes)

    def check_latents(self, shape: tuple[int, int, int]) -> None:
        """Refuse latents (C, H, W) that the transformer cannot take.

        Raises:
            ValueError: Channels or sides do not fit.
        """
        config, (channels, height, width) = self.transformer.config, shape
        if channels != config.in_channels:
            raise ValueError(
                f"the data have {channels} channels, the transformer takes {config.in_channels}; set data.vae to the "
                "pipeline whose autoencoder the transformer was trained with"
            )
        if height != width or height % config.patch_size:
            raise ValueError(
                f"latents of {height}x{width} are no square that {config.patch_size} divides; change data.size"
            )
        if height < config.sample_size:
            raise ValueError(
                f"latents of {height}x{width} are smaller than the {config.sample_size}x{config.sample_size} that the "
                f"transformer learned; give images {config.sample_size / height:g} times as large (data.size)"
            )

    def add_classes(self, classes: list[str]) -> None:
        """Make the class table ready, add the adapter and start its average; once, before training.

        Args:
            classes: Names in the order of the labels.
        """
        prepare_classes(self.transformer, len(classes), self.new_classes)
        self.adapter.add(self.transformer)
        self.start_average()
        self.classes = list(classes)

    @property
    def denoiser(self) -> nn.Module:
        """The transformer."""
        return self.transformer

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """What trains, by its name in the transformer."""
        return trained_parameters(self.transformer)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Run the transformer with the averaged weights; arguments and result are the transformer's own."""
        return self.averaged_denoiser(*arguments, **options)

    def predict(self, noisy: Tensor, batch: dict[str, Tensor], denoiser: Callable[..., Any]) -> Tensor:
        """Run the transformer."""
        return denoiser(noisy, timestep=batch["timesteps"], class_labels=batch["label"]).sample

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:  # noqa: ARG002
        """Predict noise of drawn levels; some images without their class."""
        dropped = torch.rand(len(batch["label"]), device=batch["label"].device) < self.label_dropout
        label = torch.where(dropped, null_label(self.transformer), batch["label"])
        return self.learn({**batch, "label": label}, len(label))

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """What trains, its average and fixed masks; the frozen rest is the base's."""
        kept = {f"transformer.{name}" for name in self.trained}
        whole = super().state_dict(*arguments, **options)
        return {
            name: value for name, value in whole.items() if name in kept or name.startswith("average.") or is_mask(name)
        }

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True, assign: bool = False) -> Any:  # type: ignore[override]  # noqa: ARG002
        """Take back what ``state_dict`` gave.

        Raises:
            ValueError: It is of another adapter.
        """
        prefix = "transformer."
        tensors = {
            name.removeprefix(prefix): value
            for name, value in state_dict.items()
            if name.startswith(prefix) and not is_mask(name)
        }
        load_trained(self.transformer, tensors)
        return super().load_state_dict(state_dict, strict=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the clock, the classes, what tells the base, and where masks are."""
        checkpoint |= {"images_seen": self.images_seen, "classes": self.classes, "base_sha256": self.base_sha256}
        self.store_masks(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take clock and masks back; refuse another base or other classes.

        Raises:
            ValueError: The checkpoint is of something else.
        """
        if not {"images_seen", "classes", "base_sha256"} <= checkpoint.keys():
            raise ValueError("the checkpoint is of no DiffusionAdaptation: it has no classes and base_sha256")
        if checkpoint["classes"] != self.classes:
            _refuse_classes(checkpoint["classes"], self.classes)
        if checkpoint["base_sha256"] != self.base_sha256:
            raise ValueError(
                f"the checkpoint was trained on another base (weights {checkpoint['base_sha256'][:12]}…, here "
                f"{self.base_sha256[:12]}…); give the transformer that its config.yaml names"
            )
        self.images_seen = checkpoint["images_seen"]
        self.restore_masks(checkpoint)


def _refuse_classes(trained: list[str], found: list[str]) -> None:
    raise ValueError(
        f"this run was trained on the classes {', '.join(trained)}, the data hold {', '.join(found)}; give data of the "
        "same classes, or train a run of their own"
    )


def _refuse_decay(optimizer: OptimizerCallable, adapter: str) -> None:
    for group in optimizer([nn.Parameter(torch.zeros(1))]).param_groups:
        if group.get("weight_decay"):
            raise ValueError(
                f"the optimizer's weight_decay is {group['weight_decay']:g}; it pulls the biases and scale factors "
                f"that {adapter} trains towards 0, though they are right where they start. Set "
                "optimizer.weight_decay to 0 (AdamW's default is 0.01)"
            )
