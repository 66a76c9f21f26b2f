"""The personalization as files of its own."""

from pathlib import Path
from tempfile import TemporaryDirectory

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lightning_modules import Personalization

FOLDER = "personalization"


class PersonalizationWriter(Callback):
    """Writes ``RUN/personalization/`` at each validation: what diffusers loads, each file whole.

    A run that its budget or early stopping ends is validated, and so stored, as it ended.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is trained so far.

        Raises:
            TypeError: The run trains another module.
        """
        if not isinstance(pl_module, Personalization):
            raise TypeError(
                f"PersonalizationWriter serves Personalization, this run trains a {type(pl_module).__name__}"
            )
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{FOLDER}.", dir=folder.parent) as whole:
            pl_module.method.save(Path(whole))
            for file in Path(whole).iterdir():
                file.replace(folder / file.name)
