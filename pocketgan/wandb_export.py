"""An exported model beside its run at Weights & Biases."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pocketgan.device_bundle import CARD_FILE_NAME, DIGESTS_FILE_NAME, figures_file
from pocketgan.run_folder import wandb_result_name, wandb_run_of

if TYPE_CHECKING:
    from pocketgan.device_export import Exported


def record_export(run: Path, exported: Sequence["Exported"]) -> None:
    """Log exported models as an artifact of their run, where that was logged online; a failure is a warning.

    Args:
        run: Run folder; of a pack, the base's.
        exported: A model, or the concepts of a pack.
    """
    found = wandb_run_of(run)
    if found is None or found["mode"] != "online":
        return
    import wandb

    try:
        with wandb.init(
            id=found["id"], project=found["project"], entity=found["entity"], resume="allow", dir=str(run)
        ) as logged:
            logged.use_artifact(f"{wandb_result_name(found['id'])}:latest")
            figures = {model.file.name: model.figures for model in exported}
            metadata = figures if exported[0].parts else exported[0].figures
            artifact = wandb.Artifact(f"export-{found['id']}", "export", metadata=metadata)
            models = [model.file for model in exported]
            beside = [models[0].with_name(name) for name in (CARD_FILE_NAME, DIGESTS_FILE_NAME)]
            for file in [*exported[0].parts, *models, *map(figures_file, models), *beside]:
                (artifact.add_dir if file.is_dir() else artifact.add_file)(str(file), name=file.name)
            logged.log_artifact(artifact)
    except (wandb.Error, OSError, TypeError, ValueError) as error:
        warnings.warn(f"{exported[0].file} is exported, but not recorded at Weights & Biases: {error}", stacklevel=2)
