"""Random numbers that go on after a resume as if nothing had happened."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn


class RandomState(Callback):
    """Keeps each rank's random state of torch in the checkpoint; Lightning keeps none.

    A run resumed on another number of ranks starts from its seed instead.
    """

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Gather the states; every rank takes part."""
        state = torch.get_rng_state()
        if torch.cuda.is_available():
            state = torch.cat((state, torch.cuda.get_rng_state(trainer.strategy.root_device)))
        states = trainer.strategy.all_gather(state.to(trainer.strategy.root_device))
        checkpoint["random_states"] = states.reshape(trainer.world_size, -1).cpu()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Take the rank's state back."""
        self._states: torch.Tensor | None = checkpoint.get("random_states")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Set it once all that draws numbers on the way here has run."""
        states = getattr(self, "_states", None)
        if states is None:
            return
        if len(states) != trainer.world_size:
            rank_zero_warn(
                f"this run was on {len(states)} ranks and goes on on {trainer.world_size}: batches and schedules are "
                "the same, random numbers drawn inside the networks start anew from the seed"
            )
            return
        state = states[trainer.global_rank]
        length = len(torch.get_rng_state())
        torch.set_rng_state(state[:length].clone())
        if torch.cuda.is_available() and len(state) > length:
            torch.cuda.set_rng_state(state[length:].clone(), trainer.strategy.root_device)
