"""What every run leaves in its folder: config.yaml and metrics.csv."""

from pathlib import Path

import yaml
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.console import say
from callbacks.trainer_state import write_into_run
from lightning_modules import PairedGAN, UnpairedGAN


class SaveRunConfig(SaveConfigCallback):
    """Saves the whole config into the run folder and to the loggers once a ``fit`` has begun.

    Raises:
        FileExistsError: The folder holds a run already and this one does not resume it.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Refuse to run into another run's folder."""
        folder = Path(trainer.default_root_dir)
        taken = trainer.is_global_zero and (folder / self.config_filename).exists()
        if stage == "fit" and trainer.strategy.broadcast(taken) and self.config.get("ckpt_path") is None:
            raise FileExistsError(
                f"{folder} holds a run already; resume it with --ckpt_path last, choose another "
                "--trainer.default_root_dir, or delete it"
            )

        if stage == "fit" and self.config.get("ckpt_path") == "last" and trainer.is_global_zero:
            checkpoints = folder / "checkpoints"
            if taken and not any(checkpoints.glob("last*.ckpt")):
                rank_zero_warn(
                    f"{folder} has no checkpoint yet, the first comes with the first validation; it starts over"
                )
                (folder / "metrics.csv").unlink(missing_ok=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Save the config; a checkpoint that does not fit it was refused by now."""
        if not trainer.is_global_zero:
            return
        config = self.config.clone()
        config.ckpt_path = None  # where this start came from, not what the run is
        dumped = self.parser.dump(config, skip_none=False)
        write_into_run(trainer, self.config_filename, dumped)
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(dumped))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what there is now and what can follow."""
        if trainer.is_global_zero:
            folder, images = trainer.default_root_dir, getattr(pl_module, "images_seen", 0)
            use = ""
            if isinstance(pl_module, PairedGAN | UnpairedGAN):
                use = f" Measure it with `pocketgan test -c {folder}/config.yaml`"
            if isinstance(pl_module, PairedGAN):
                concept = f" --concept {pl_module.concepts[0]}" if len(pl_module.concepts) > 1 else ""
                use += f", use it with `pocketgan edit PHOTOS --model {folder}{concept} --out edited`"
            use += "." if use else ""
            say(f"{folder} is trained on {images} images.{use}")


class _AppendingWriter(ExperimentWriter):
    """Goes on in an existing metrics.csv, where Lightning's own deletes it."""

    def _check_log_dir_exists(self) -> None:
        file = Path(self.metrics_file_path)
        if file.is_file():
            with file.open() as lines:
                self.metrics_keys = sorted(next(lines, "").strip().split(","))


class MetricsCSV(CSVLogger):
    """``metrics.csv`` in the run folder itself; a resumed run adds to it.

    Args:
        run: The run folder.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(save_dir=run, name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> _AppendingWriter:
        """Lightning's writer, made to append."""
        if self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment: _AppendingWriter | None = _AppendingWriter(log_dir=self.log_dir)
        return self._experiment
