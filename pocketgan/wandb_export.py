"""An exported model beside its run at Weights & Biases."""

import json
import warnings
from pathlib import Path

from pocketgan.device_bundle import figures_file
from pocketgan.run_folder import wandb_result_name, wandb_run_of


def record_export(run: Path, file: Path) -> None:
    """Log an exported model as an artifact of its run, where that was logged online; a failure is a warning.

    Args:
        run: Run folder.
        file: The model; its figures stand beside it in a JSON file.
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
            figures = figures_file(file)
            exported = wandb.Artifact(f"export-{found['id']}", "export", metadata=json.loads(figures.read_text()))
            (exported.add_dir if file.is_dir() else exported.add_file)(str(file))
            exported.add_file(str(figures))
            logged.log_artifact(exported)
    except (wandb.Error, OSError, TypeError, ValueError) as error:
        warnings.warn(f"{file} is exported, but not recorded at Weights & Biases: {error}", stacklevel=2)
