"""The adapter as files of its own."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lightning_modules import LoRAAdaptation
from pocketgan.adapters import save_adapter


class AdapterWriter(Callback):
    """Writes ``RUN/adapter/`` at each validation, the last one included: PEFT's files and the concept's prompt tokens.

    It is all that a concept needs beside its base; the discriminator stays behind in the checkpoint.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the averaged adapter on rank 0."""
        if not isinstance(pl_module, LoRAAdaptation):
            raise TypeError(f"AdapterWriter serves LoRAAdaptation, this run trains a {type(pl_module).__name__}")
        if trainer.state.fn == TrainerFn.FITTING and trainer.is_global_zero:
            tokens = pl_module.text_encoder_ema([pl_module.concept], [pl_module.prompts[pl_module.concept]])[0]
            folder = Path(trainer.default_root_dir) / "adapter"
            save_adapter(pl_module.adapter, tokens, folder, pl_module.concept, pl_module.base_identity)
