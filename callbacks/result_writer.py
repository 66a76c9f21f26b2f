"""What a run is for, as files of its own beside its checkpoints."""

from abc import ABC, abstractmethod
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.trainer_state import is_validating_a_fit
from lightning_modules.diffusion_module import DiffusionModule


class ResultWriter(Callback, ABC):
    """Writes at each validation of a ``fit``, the last one included, on rank 0.

    Attributes:
        serves: The module whose result it writes.
    """

    serves: ClassVar[type[LightningModule]]

    @abstractmethod
    def write(self, module: Any, run: Path) -> None:
        """Write what is trained so far into the run folder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Look at the module before anything is trained.

        Raises:
            TypeError: The run trains another module.
        """
        if not isinstance(pl_module, self.serves):
            raise TypeError(
                f"{type(self).__name__} serves {self.serves.__name__}, this run trains a {type(pl_module).__name__}"
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, but for Lightning's sanity check of untrained weights."""
        if not is_validating_a_fit(trainer):
            return
        with pl_module.whole_average() if isinstance(pl_module, DiffusionModule) else nullcontext():
            if trainer.is_global_zero:
                self.write(pl_module, Path(trainer.default_root_dir))
