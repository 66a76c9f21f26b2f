"""What a run leaves in its folder, read back without Lightning."""

import csv
import json
from pathlib import Path
from typing import Any

RANKS_FILE, TRACE_FILE = "ranks.yaml", "rank_search.json"  # of a rank search
COMPRESSION_FILE = "compression.json"  # of a condensation
ENVIRONMENT_FILE = "environment.json"  # code, packages, hardware, pair set
TRACKING_FILE = "loss_tracking.json"  # of early stopping: the loss that it followed
ENDED_FILE = "ended.json"  # why and when its last fit ended; not there while one goes on
WANDB_FILE = "wandb.json"  # id of its run at Weights & Biases


def wandb_run_of(run: Path) -> dict[str, Any] | None:
    """A run folder's ``id``, ``project``, ``entity`` and ``mode`` at Weights & Biases; None if it has none."""
    file = run / WANDB_FILE
    found: dict[str, Any] | None = json.loads(file.read_text()) if file.is_file() else None
    return found


def wandb_result_name(identity: str) -> str:
    """Name of the artifact that holds what a run made."""
    return f"run-{identity}"


def last_figures(run: Path, stage: str) -> dict[str, float]:
    """The last figures that a stage left in ``metrics.csv``.

    Args:
        run: Run folder.
        stage: ``val`` or ``test``.

    Returns:
        Figures by name without the stage, and ``images``, the images seen by then.

    Raises:
        ValueError: The run has no figures of this stage.
    """
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if any(name.startswith(f"{stage}/") and row[name] for name in row)]
    if not rows:
        raise ValueError(f"{run}/metrics.csv holds no {stage} figures; measure it with `pocketgan {stage}`")
    prefix = f"{stage}/"
    return {
        name.removeprefix(prefix): float(value)
        for name, value in rows[-1].items()
        if value and (name.startswith(prefix) or name == "images")
    }


def adapter_bytes(run: Path) -> int:
    """What an adapter's weights and prompt tokens take on disk."""
    return sum(file.stat().st_size for file in (run / "adapter").glob("*.safetensors"))
