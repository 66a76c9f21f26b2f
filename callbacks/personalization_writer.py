"""The personalization as files of its own."""

from pathlib import Path
from tempfile import TemporaryDirectory

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lightning_modules import Personalization

FOLDER = "personalization"


class PersonalizationWriter(Callback):
    """Writes ``RUN/personalization/`` at each validation and at the end: what diffusers loads, each file whole.

    A run that ends between two validations, by its budget or by early stopping, is stored as it ended.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is trained so far."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last weights."""
        self._write(trainer, pl_module)

    @staticmethod
    def _write(trainer: Trainer, module: LightningModule) -> None:
        if not isinstance(module, Personalization):
            raise TypeError(f"PersonalizationWriter serves Personalization, this run trains a {type(module).__name__}")
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{FOLDER}.", dir=folder.parent) as whole:
            module.method.save(Path(whole))
            for file in Path(whole).iterdir():
                file.replace(folder / file.name)
