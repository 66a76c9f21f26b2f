"""What a run left: its config, its last checkpoint, whether it came to its end, whether its weights fit."""

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor


def read_config(run: Path) -> dict[str, Any]:
    """The whole config of a run.

    Raises:
        FileNotFoundError: The folder is no run.
    """
    file = run / "config.yaml"
    if not file.is_file():
        found = "holds no config.yaml" if run.is_dir() else "does not exist, or no longer stands where it stood"
        raise FileNotFoundError(f"{run} is not a run folder: it {found}; give the folder of a `pocketgan fit`")
    config: dict[str, Any] = yaml.safe_load(file.read_text())
    return config


def trained_data_of(run: Path) -> dict[str, Any]:
    """Arguments of the datamodule that a run was trained with.

    Raises:
        FileNotFoundError: The folder is no run.
    """
    arguments: dict[str, Any] = read_config(run)["data"]["init_args"]
    return arguments


def read_checkpoint(run: Path, checkpoint: str = "last.ckpt") -> dict[str, Any]:
    """A checkpoint of a run, on the CPU.

    Raises:
        FileNotFoundError: The run has no such checkpoint yet.
    """
    file = run / "checkpoints" / checkpoint
    if not file.is_file():
        found = ", ".join(sorted(file.name for file in file.parent.glob("*.ckpt"))) or "none"
        raise FileNotFoundError(f"run {run} has no checkpoint {checkpoint} (found: {found}); let its `fit` reach one")
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def finished_state(run: Path) -> dict[str, Any]:
    """The last checkpoint of a run that came to its end: its budget of images, or what its early stopping ended it at.

    Raises:
        FileNotFoundError: The folder is no run, or the run has no checkpoint.
        ValueError: It has images to go, or its checkpoint counts none.
    """
    config, state = read_config(run), read_checkpoint(run)
    if "images_seen" not in state:
        raise ValueError(f"run {run} is no GAN's: its checkpoint has no images_seen; give the run of a GAN")
    seen, budget = state["images_seen"], config["budget"]["images"]
    if seen < budget and not _was_stopped_early(config, state):
        raise ValueError(
            f"run {run} is unfinished: it has seen {seen} of {budget} images; finish it with "
            f"`pocketgan fit -c {run}/config.yaml --ckpt_path last`"
        )
    return state


def _was_stopped_early(config: dict[str, Any], state: dict[str, Any]) -> bool:
    for name, kept in state.get("callbacks", {}).items():
        # Lightning's, which may be given several times, has its settings in the name
        if name.startswith("EarlyStopping") and kept["wait_count"] >= kept["patience"]:
            return True
        if name == "LossTrackingEarlyStopping":
            from callbacks import LossTrackingEarlyStopping  # which itself needs the modules

            listed = config["trainer"].get("callbacks") or []
            given = [config.get("early_stopping"), *(listed if isinstance(listed, list) else [listed])]
            for each in given:
                if each and each["class_path"].endswith(name):
                    tracking = LossTrackingEarlyStopping(**each.get("init_args", {}))
                    tracking.load_state_dict(kept)
                    return tracking.has_converged
    return False


def refuse_other_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Refuse weights of another architecture.

    Args:
        found: A checkpoint's.
        expected: The module's own.

    Raises:
        ValueError: A weight is missing, unexpected or of another shape.
    """
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is unknown here" for name in found if name not in expected]
    problems += [
        f"{name} is {tuple(found[name].shape)} there and {tuple(tensor.shape)} here"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if problems:
        raise ValueError(
            f"the checkpoint is of another architecture: {'; '.join(problems[:3])}"
            f"{f' and {len(problems) - 3} more' if len(problems) > 3 else ''}. "
            "Use the config.yaml that stands beside the checkpoint's folder"
        )
