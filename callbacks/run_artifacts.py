"""What a run was made of and what it made, at Weights & Biases."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.trainer_state import checkpoint_folder
from callbacks.wandb_run_logger import WandbRunLogger
from lightning_modules.run_state import read_config
from pocketgan.pair_set import MANIFEST_FILE_NAME
from pocketgan.run_folder import wandb_result_name, wandb_run_of

RUN_ROLES = ("base", "teacher", "start")  # arguments of modules that name other runs


class RunArtifacts(Callback):
    """Records pair set, base and result of a ``fit`` as artifacts: pair set → base → adapter → export.

    A pair set is known by its hash, which names the artifact that holds its manifest; a run's result by the run's id:
    ``adapter/`` where there is one, else the last checkpoint, with ``config.yaml``. Lineage needs the service: offline,
    ``made_from`` in the result's metadata says the same. Failures are warnings.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record, on rank 0."""
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, WandbRunLogger):
                    logger.attempt("artifacts", lambda one=logger: self._record(one, trainer, pl_module))  # type: ignore[misc]

    def _record(self, logger: WandbRunLogger, trainer: Trainer, module: LightningModule) -> None:
        import wandb

        run, folder = logger.experiment, Path(trainer.default_root_dir)
        made_from = []
        pairs = _pair_set(trainer.datamodule)  # type: ignore[attr-defined]
        if pairs is not None:
            made_from.append(pairs.name)
            (run.log_artifact if run.offline else run.use_artifact)(pairs)
        arguments = read_config(folder)["model"]["init_args"]
        for other in filter(None, (arguments.get(role) for role in RUN_ROLES)):
            found = wandb_run_of(Path(other))
            if found is None:
                continue
            made_from.append(wandb_result_name(found["id"]))
            if not run.offline and found["mode"] == "online":
                path = "/".join(filter(None, (found["entity"], found["project"], wandb_result_name(found["id"]))))
                run.use_artifact(f"{path}:latest")
        images = getattr(module, "images_seen", 0)
        kind = "adapter" if (folder / "adapter").is_dir() else "model"
        result = wandb.Artifact(wandb_result_name(run.id), kind, metadata={"made_from": made_from, "images": images})
        result.add_file(str(folder / "config.yaml"))
        if kind == "adapter":
            result.add_dir(str(folder / "adapter"), name="adapter")
        else:
            result.add_file(str(checkpoint_folder(trainer) / "last.ckpt"))
        run.log_artifact(result)


def _pair_set(data: Any) -> Any:
    """Artifact of a pair set's manifest; None for other data."""
    import wandb

    manifest = Path(str(getattr(data, "root", ""))) / MANIFEST_FILE_NAME
    digest = getattr(data, "set_hash", None)
    if digest is None or not manifest.is_file():
        return None
    pairs = wandb.Artifact(f"pairs-{digest[:16]}", "pair_set", metadata={"hash": digest})
    pairs.add_file(str(manifest))
    return pairs
