"""A diffusion transformer's adapter as a file of its own."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lightning_modules import DiffusionAdaptation
from pocketgan.adapters import save_diffusion_adapter


class DiffusionAdapterWriter(Callback):
    """Writes ``RUN/adapter/adapter.safetensors`` at each validation: the averaged tensors that train, nothing else.

    ``pocketgan.adapters.load_diffusion_adapter`` puts it on its base.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write on rank 0.

        Raises:
            TypeError: The run trains another module.
        """
        if not isinstance(pl_module, DiffusionAdaptation):
            raise TypeError(
                f"DiffusionAdapterWriter serves DiffusionAdaptation, this run trains a {type(pl_module).__name__}"
            )
        if trainer.state.fn == TrainerFn.FITTING and trainer.is_global_zero and not trainer.sanity_checking:
            save_diffusion_adapter(
                Path(trainer.default_root_dir) / "adapter",
                pl_module.adapter,
                pl_module.averaged,
                pl_module.classes,
                pl_module.new_classes,
                pl_module.base_sha256,
            )
