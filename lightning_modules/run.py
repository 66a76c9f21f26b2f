"""A run folder turned back into its model."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningArgumentParser

if TYPE_CHECKING:
    from lightning_modules.paired_gan import PairedGAN


def load_run(run: Path, checkpoint: str = "last.ckpt") -> "PairedGAN":
    """Load a trained model: ``config.yaml`` says what it is, ``checkpoints/`` holds its weights.

    Args:
        run: Run folder of a ``fit``.
        checkpoint: File in ``checkpoints/``.

    Returns:
        The module in eval mode on the CPU.

    Raises:
        FileNotFoundError: The folder is no run, or the run has no such checkpoint yet.
        ValueError: The checkpoint is of another architecture than config.yaml says.
    """
    import lightning_modules as modules

    config_file, weights_file = run / "config.yaml", run / "checkpoints" / checkpoint
    if not config_file.is_file():
        raise FileNotFoundError(
            f"{run} is not a run folder: it holds no config.yaml; give the folder of a `pocketgan fit`"
        )
    if not weights_file.is_file():
        found = ", ".join(sorted(file.name for file in weights_file.parent.glob("*.ckpt"))) or "none"
        raise FileNotFoundError(f"run {run} has no checkpoint {checkpoint} (found: {found}); let its `fit` reach one")
    config = yaml.safe_load(config_file.read_text())
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    module = parser.instantiate_classes(parser.parse_object({"model": config["model"]})).model
    if not isinstance(module, modules.PairedGAN):
        raise ValueError(
            f"run {run} holds a {type(module).__name__}, which edits no photos; give a base or adapter run"
        )
    state = torch.load(weights_file, map_location="cpu", weights_only=True)
    module.on_load_checkpoint(state)
    module.load_state_dict(state["state_dict"])
    return module.eval()
