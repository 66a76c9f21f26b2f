"""A run folder's run at Weights & Biases."""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from callbacks.unstopping_logger import UnstoppingLogger
from pocketgan.files import write_whole
from pocketgan.run_folder import WANDB_FILE, wandb_run_of


class WandbRunLogger(UnstoppingLogger, WandbLogger):
    """Weights & Biases, one run for a run folder however often it is started.

    Where the service cannot be reached the run is written offline into the folder, for ``wandb sync``.

    Args:
        run: Run folder.
        mode: ``offline`` or ``online``.
        settings: Of ``wandb.init``: project, entity, group, name, tags.
    """

    def __init__(self, run: Path, mode: Literal["offline", "online"], settings: dict[str, Any]) -> None:
        self.mode = mode
        super().__init__(save_dir=run, mode=mode, **settings)
        self._wandb_init.pop("anonymous")  # which W&B warns of, whatever it is

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run; one that takes everything and keeps nothing where even a local one cannot be begun."""
        if self._experiment is None:
            folder = Path(str(self.save_dir))
            folder.mkdir(parents=True, exist_ok=True)
            # not before: a mirror may have brought the folder with its id
            self._id = self._wandb_init["id"] = run_id(folder)
            modes = ("online", "offline", "disabled")
            for mode in modes[modes.index(self.mode) :]:
                self._wandb_init["mode"] = mode
                begun = self.attempt(f"start {mode}", self._begin)
                if begun is not None:
                    break
            if mode == "offline" and self.mode == "online":
                rank_zero_warn(f"logging offline into {folder}/wandb; send it later with `wandb sync {folder}/wandb/*`")
            if begun is not None and mode != "disabled":
                self._note(folder, begun, mode)
        return self._experiment

    def _begin(self) -> Any:
        import wandb

        if wandb.run is not None:  # Lightning would go on in it, whoever began it
            self._experiment = wandb.init(**self._wandb_init, reinit="create_new")
        run = super().experiment
        # curves over images seen, the clock of everything here
        run.define_metric("images")
        run.define_metric("*", step_metric="images")
        return run

    @staticmethod
    def _note(folder: Path, run: Any, mode: str) -> None:
        noted = {"id": run.id, "project": run.project, "entity": run.entity or None, "mode": mode}
        write_whole(folder / WANDB_FILE, json.dumps(noted, indent=2).encode())

    def finalize(self, status: str) -> None:
        """End the run, so that another may begin in this process; a later start of the folder goes on with it."""
        super().finalize(status)
        if self._experiment is not None:
            self.attempt("finish", self._experiment.finish)
            self._experiment = None

    def _log_pictures(self, key: str, pictures: Mapping[str, Image.Image], images: int) -> None:
        import wandb

        shown = [wandb.Image(picture, caption=caption) for caption, picture in pictures.items()]
        self.experiment.log({key: shown, "images": images})


def run_id(run: Path) -> str:
    """The id of a run folder at Weights & Biases: its sweep's agent's, the folder's own, or a new one."""
    if given := os.environ.get("WANDB_RUN_ID"):
        return given
    noted = wandb_run_of(run)
    return secrets.token_hex(4) if noted is None else str(noted["id"])
