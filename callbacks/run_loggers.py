"""Where a run's figures go beside its own metrics.csv: Weights & Biases and TensorBoard."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from PIL import Image

from callbacks.metrics_csv import MetricsCSV
from callbacks.unstopping_logger import UnstoppingLogger
from callbacks.wandb_run_logger import WandbRunLogger


class TensorBoardRunLogger(UnstoppingLogger, TensorBoardLogger):
    """TensorBoard's files in ``RUN/tensorboard``.

    Args:
        run: Run folder.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(save_dir=run, name="tensorboard", version="")

    def _log_pictures(self, key: str, pictures: Mapping[str, Image.Image], images: int) -> None:
        for caption, picture in pictures.items():
            self.experiment.add_image(f"{key}/{caption}", np.asarray(picture), images, dataformats="HWC")


class RunLoggers:
    """Where a run's figures go. ``metrics.csv`` in the run folder is always written.

    Args:
        wandb: ``offline`` writes Weights & Biases' files into ``RUN/wandb`` with no account, ``online`` sends them as
            well. A sweep's agent makes it online, and WANDB_MODE offline again.
        tensorboard: Write ``RUN/tensorboard``.
        project: Of Weights & Biases.
        entity: Its user or team; the account's own if None.
        group: Its group of runs.
        name: Its name of the run; the run folder's if None.
        tags: Its tags.
        artifacts: Record pair set, base and result of a run as its artifacts, with what was made from what.
    """

    def __init__(
        self,
        wandb: Literal["off", "offline", "online"] = "off",
        tensorboard: bool = False,
        project: str = "pocketgan",
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
        tags: list[str] | None = None,
        artifacts: bool = True,
    ) -> None:
        self.wandb: Literal["off", "offline", "online"] = "online" if os.environ.get("WANDB_SWEEP_ID") else wandb
        if self.wandb == "online" and os.environ.get("WANDB_MODE") in {"offline", "disabled"}:
            self.wandb = "offline"
        self.tensorboard, self.artifacts, self.name = tensorboard, artifacts, name
        self.settings = {"project": project, "entity": entity, "group": group, "tags": tags}

    def check(self) -> None:
        """Look before any training whether it can be done.

        Raises:
            ValueError: Online is asked for and this machine has no key of Weights & Biases.
            ModuleNotFoundError: TensorBoard is not installed.
        """
        if self.tensorboard and find_spec("tensorboard") is None:
            raise ModuleNotFoundError("--logging.tensorboard needs `pip install tensorboard`")
        if self.wandb == "online":
            import wandb

            if not wandb.login(prompt=False, verify=False):
                raise ValueError(
                    "--logging.wandb online finds no key of Weights & Biases: run `wandb login`, set WANDB_API_KEY, or "
                    "log without an account by --logging.wandb offline and `wandb sync` later"
                )

    def loggers(self, run: Path) -> list[Logger]:
        """Loggers of a run folder, ``metrics.csv`` first, whose folder config.yaml and checkpoints follow."""
        made: list[Logger] = [MetricsCSV(run)]
        if self.wandb != "off":
            settings = {**self.settings, "name": self.name or run.name}
            made.append(WandbRunLogger(run, self.wandb, settings))
        if self.tensorboard:
            made.append(TensorBoardRunLogger(run))
        return made
