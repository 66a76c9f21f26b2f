"""What every run leaves in its folder beside its figures: config.yaml and environment.json."""

import contextlib
import json
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.console import say
from callbacks.image_budget import budget_of, is_used_up
from callbacks.metrics_csv import MetricsCSV
from callbacks.trainer_state import checkpoint_folder, write_into_run
from lightning_modules import PairedGAN, UnpairedGAN
from pocketgan.environment import describe_environment
from pocketgan.run_config import flat
from pocketgan.run_folder import ENVIRONMENT_FILE


class SaveRunConfig(SaveConfigCallback):
    """Saves the whole config into the run folder and to the loggers once a ``fit`` has begun; the folder is its alone.

    Raises:
        FileExistsError: The folder holds a run already and this one does not resume it.
        RuntimeError: Another process trains in it.
        ValueError: Ranks see different pair sets.
    """

    def claim(self, trainer: Trainer) -> None:
        """Refuse to run into another run's folder, or beside another process; say what a resumed run does otherwise.

        Before a fit, on rank 0: loggers begin their runs before any callback is asked.

        Raises:
            FileExistsError: As above.
            RuntimeError: As above.
        """
        folder = Path(trainer.default_root_dir)
        taken, resumes = (folder / self.config_filename).exists(), self.config.get("ckpt_path") is not None
        if taken and not resumes:
            raise FileExistsError(
                f"{folder} holds a run already; resume it with --ckpt_path last, choose another "
                "--trainer.default_root_dir, or delete it"
            )
        if not self._locked(folder):
            raise RuntimeError(
                f"another process trains in {folder}; wait for it, stop it, or choose another "
                "--trainer.default_root_dir: two agents in one folder would spoil each other's checkpoints"
            )
        if self.config.get("ckpt_path") == "last" and taken:
            self._tell_differences(folder)
            if not any(checkpoint_folder(trainer).glob("last*.ckpt")):
                rank_zero_warn(
                    f"{folder} has no checkpoint yet, the first comes with the first validation; it starts over"
                )
                (folder / "metrics.csv").unlink(missing_ok=True)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing: the folder is claimed before."""

    def _locked(self, folder: Path) -> bool:
        self._made_folder = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def _tell_differences(self, folder: Path) -> None:
        before = flat(yaml.safe_load((folder / self.config_filename).read_text()))
        now = flat(yaml.safe_load(self.parser.dump(self.config, skip_none=False)))
        changed = [
            f"{key}: {before.get(key, 'not there')} -> {now.get(key, 'not there')}"
            for key in dict.fromkeys((*before, *now))
            if before.get(key, "not there") != now.get(key, "not there") and key not in {"ckpt_path", "dry_run"}
        ]
        if changed:
            say(f"resumed with other settings than {folder / self.config_filename}: {'; '.join(changed)}")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Refuse ranks that would learn from different pairs."""
        own = getattr(trainer.datamodule, "set_hash", None)  # type: ignore[attr-defined]
        first = trainer.strategy.broadcast(own)
        if not trainer.strategy.reduce_boolean_decision(own == first):
            raise ValueError(
                f"ranks see different pair sets: rank {trainer.global_rank} has {own}, rank 0 {first}; give all nodes "
                "one data.root, and wait until a synthesis or a copy is done"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Leave the folder to others."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Leave the folder to others."""
        self._release()

    def _release(self) -> None:
        if not hasattr(self, "_lock") or not self._lock.is_locked:
            return  # it is another process's folder
        file = Path(self._lock.lock_file)
        if not (file.parent / self.config_filename).exists():  # refused before it began: nothing stays behind
            file.unlink(missing_ok=True)
            if self._made_folder:
                with contextlib.suppress(OSError):  # it holds more by now
                    file.parent.rmdir()
        self._lock.release()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the config; a checkpoint that does not fit it was refused by now.

        Raises:
            ValueError: Ranks go on from different checkpoints.
        """
        own: Any = getattr(pl_module, "images_seen", 0)
        first = trainer.strategy.broadcast(own)
        if not trainer.strategy.reduce_boolean_decision(own == first):
            raise ValueError(
                f"ranks go on from different checkpoints: rank {trainer.global_rank} at {own:,} images, rank 0 at "
                f"{first:,}; give all nodes one run folder, or the newest checkpoints/last.ckpt to each"
            )
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.forget_after(own)
        if not trainer.is_global_zero:
            return
        if own and is_used_up(trainer, pl_module):
            say(f"the budget of {budget_of(trainer):,} images is used up: nothing is trained, and the config stays")
            return
        config = self.config.clone()
        config.ckpt_path = None  # where this start came from, not what the run is
        config.pop("dry_run", None)  # which other commands do not know
        dumped = self.parser.dump(config, skip_none=False)
        write_into_run(trainer, self.config_filename, dumped)
        pairs = getattr(trainer.datamodule, "set_hash", None)  # type: ignore[attr-defined]
        made_with = {"environment": describe_environment(), "pair_set": pairs}
        write_into_run(trainer, ENVIRONMENT_FILE, json.dumps(made_with, indent=2))
        for logger in trainer.loggers:
            logger.log_hyperparams({**yaml.safe_load(dumped), **made_with})

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
