"""A look at a GAN before each of its checkpoints: has it broken?"""

from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from callbacks.trainer_state import checkpoint_folder, is_validating_a_fit, validation_precision
from lightning_modules import AdversarialModule
from lightning_modules.run_state import refuse_other_weights
from pocketgan.losses import AdversarialLoss

ALARM_FILE, LOST_PICTURES = "alarm.ckpt", "pictures are not numbers"
SMALLEST_REFERENCE_SPREAD = 0.05  # of the reference pictures, on [-1, 1]: below it one colour may be right


@runtime_checkable
class RollsBack(Protocol):
    """A callback that knows of the weights' past, which a roll back changes."""

    def roll_back(self, state: dict[str, Any]) -> None:
        """Take back its ``state_dict`` of the checkpoint; the clock goes on."""
        ...


class TrainingAlarm(Callback):
    """Looks for broken networks when a validation begins, which is before ``last.ckpt`` is replaced.

    * *not a number* among the weights that train, of any module, or in a GAN's pictures,
    * *one colour*: pictures that hardly vary where those they should be like do,
    * *black*: pictures at -1 where those they should be like are not,
    * *discriminator*: for ``discriminator_images`` its loss stays at 0, where it is always right, or above what saying
      the same of every picture would cost, where it is fooled: nothing is to be learned from it in either case.

    What broke is kept as ``checkpoints/alarm.ckpt``. ``roll_back`` puts a GAN's weights and optimizers of ``last.ckpt``
    back and goes on with a lower learning rate; the clock of images goes on, so that data and schedules do.

    Args:
        action: ``warn`` says so and goes on, but for what is not a number, which ends the run; ``stop`` ends it;
            ``roll_back`` as above, and ends it where there is no checkpoint yet or after ``rollbacks``.
        rollbacks: How often to roll back in a run.
        rate_factor: Of all learning rates at each time.
        discriminator_images: See above.
        discriminator_floor: Losses of the discriminator up to this count as 0.
        discriminator_ceiling: Losses above so many times that of the best constant answer count as fooled.
        untrained_images: Images, of earlier stages too, until which pictures may be black or of one colour.

    Raises:
        ValueError: A number makes no sense.
    """

    def __init__(
        self,
        action: Literal["warn", "stop", "roll_back"] = "warn",
        rollbacks: int = 3,
        rate_factor: float = 0.5,
        discriminator_images: int = 20_000,
        discriminator_floor: float = 1e-4,
        discriminator_ceiling: float = 1.5,
        untrained_images: int = 2_000,
    ) -> None:
        if not 0 < rate_factor <= 1:
            raise ValueError(f"rate_factor is {rate_factor:g}; give a factor above 0 and up to 1")
        if rollbacks < 0 or discriminator_images < 1:
            raise ValueError(
                f"rollbacks is {rollbacks}, discriminator_images {discriminator_images}; give 0 or more, and 1 or more"
            )
        self.action, self.rollbacks, self.rate_factor = action, rollbacks, rate_factor
        if discriminator_ceiling < 1:
            raise ValueError(
                f"discriminator_ceiling is {discriminator_ceiling:g}; give 1, what knowing nothing costs, or more"
            )
        self.discriminator_images = discriminator_images
        self.discriminator_floor, self.discriminator_ceiling = discriminator_floor, discriminator_ceiling
        self.untrained_images = untrained_images
        self.alarms: list[dict[str, Any]] = []
        self._stuck: tuple[str, int] | None = None  # how, and since how many images

    def state_dict(self) -> dict[str, Any]:
        """What happened so far."""
        return {"alarms": self.alarms, "stuck": self._stuck}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from it."""
        self.alarms, self._stuck = state_dict["alarms"], state_dict.get("stuck")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, and act on what any rank found.

        Raises:
            RuntimeError: The run ends here.
        """
        if not is_validating_a_fit(trainer):
            return
        loss = trainer.callback_metrics.get("train/discriminator")
        mean_loss = None if loss is None else float(trainer.strategy.reduce(loss.clone(), reduce_op="mean"))
        lost = self._lost(pl_module)
        found = lost
        if lost is None and isinstance(pl_module, AdversarialModule):
            found = self._found(trainer, pl_module, mean_loss)
        # all ranks act alike, on what the first of those that found something says
        is_lost = lost is not None or found == LOST_PICTURES
        every = [trainer.strategy.broadcast((found, is_lost), rank) for rank in range(trainer.world_size)]
        reason, is_lost = next((each for each in every if each[0] is not None), (None, False))
        if reason is not None:
            self.act(trainer, pl_module, reason, is_lost)

    def _lost(self, module: LightningModule) -> str | None:
        return next(
            (
                f"{name} is not a number"
                for name, weight in module.named_parameters()
                if (weight.requires_grad or isinstance(module, AdversarialModule)) and not weight.isfinite().all()
            ),
            None,
        )

    def _found(self, trainer: Trainer, module: AdversarialModule, loss: float | None) -> str | None:
        pictures = self._pictures(trainer, module)
        if pictures is None:
            return None
        made, reference = pictures
        if not made.isfinite().all():
            return LOST_PICTURES
        is_trained = module.earlier_images + module.images_seen >= self.untrained_images
        if is_trained and made.amax() < -0.98 < reference.mean():
            return "every picture is black"
        spread, expected = (_spread(each) for each in (made, reference))
        if is_trained and expected > SMALLEST_REFERENCE_SPREAD and spread < expected / 10:
            return f"pictures are of one colour (a standard deviation of {spread:.3f}, where {expected:.3f} is right)"
        return self._stuck_discriminator(loss, module)

    def _stuck_discriminator(self, loss: float | None, module: AdversarialModule) -> str | None:
        how = None if loss is None else self._judged(loss, module.adversarial_loss)
        if how is None:
            self._stuck = None
            return None
        if self._stuck is None or self._stuck[0] != how:
            self._stuck = how, module.images_seen
        images = module.images_seen - self._stuck[1]
        if images < self.discriminator_images:
            return None
        return f"the discriminator {how} for {images:,} images (its loss is {loss:.1e}): it teaches nothing"

    def _judged(self, loss: float, adversarial_loss: AdversarialLoss) -> str | None:
        if loss <= self.discriminator_floor:
            return "has told all apart"
        answers = torch.linspace(-1, 1, 21)  # between what the losses here ask for fakes and for real pictures
        constant = min(float(adversarial_loss.discriminator(answer, answer)) for answer in answers)
        # a loss that has no such scale, as Wasserstein's, cannot tell
        return "has been fooled" if loss > self.discriminator_ceiling * constant > 0 else None

    @torch.no_grad()
    def _pictures(self, trainer: Trainer, module: AdversarialModule) -> tuple[Tensor, Tensor] | None:
        batch = next(iter(trainer.datamodule.val_dataloader()), None)  # type: ignore[attr-defined]
        if batch is None:  # more ranks than validation pictures
            return None
        with validation_precision(trainer):
            *_, reference, made = module.pictures(trainer.strategy.batch_to_device(batch)).values()
        return made.float(), reference.float()

    def act(self, trainer: Trainer, module: LightningModule, reason: str, is_lost: bool) -> None:
        """Do what ``action`` says; on all ranks alike.

        Args:
            trainer: The run's.
            module: What it trains.
            reason: What is wrong with it.
            is_lost: Whether it is beyond going on, which a warning would.

        Raises:
            RuntimeError: The run ends here.
        """
        self._stuck = None
        images: int = getattr(module, "images_seen", 0)
        self.alarms.append({"images": images, "reason": reason})
        folder = checkpoint_folder(trainer)
        trainer.save_checkpoint(folder / ALARM_FILE)
        told = f"alarm at {images:,} images: {reason}"
        if self.action == "warn" and not is_lost:
            rank_zero_warn(f"{told}; it is kept as {folder / ALARM_FILE}, the training goes on")
            return
        can_roll_back = trainer.strategy.broadcast((folder / "last.ckpt").is_file())
        is_asked = self.action == "roll_back" and isinstance(module, AdversarialModule)
        if is_asked and can_roll_back and len(self.alarms) <= self.rollbacks:
            try:
                self._roll_back(trainer, module, folder / "last.ckpt")
            except ValueError as error:  # a network that was narrowed since
                raise RuntimeError(f"{told}; {folder / 'last.ckpt'} cannot be gone back to: {error}") from error
            rank_zero_warn(f"{told}; back to {folder / 'last.ckpt'} with {self.rate_factor:g} times the learning rates")
            return
        raise RuntimeError(
            f"{told}; it is kept as {folder / ALARM_FILE}. Start a new run with lower learning rates: one that goes on "
            "from the last good checkpoint by --ckpt_path last keeps its optimizers' rates. For GANs --alarm.action "
            "roll_back goes back and lowers them by itself"
        )

    def _roll_back(self, trainer: Trainer, module: LightningModule, file: Path) -> None:
        read: dict[str, Any] = {}
        if trainer.is_global_zero:
            read = torch.load(file, map_location="cpu", weights_only=True)
        state = trainer.strategy.broadcast(read)
        refuse_other_weights(state["state_dict"], module.state_dict())
        module.load_state_dict(state["state_dict"])
        for optimizer, kept in zip(trainer.optimizers, state["optimizer_states"], strict=True):
            # a decay multiplies initial_lr; both come from the groups as they are, lowered by every roll back so far
            rates: list[dict[str, Any]] = [
                {name: group[name] * self.rate_factor for name in ("lr", "initial_lr") if name in group}
                for group in optimizer.param_groups
            ]
            optimizer.load_state_dict(kept)
            for group, lowered in zip(optimizer.param_groups, rates, strict=True):
                group.update(lowered)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            kept = state["callbacks"].get(callback.state_key)
            if kept is not None and isinstance(callback, RollsBack):
                callback.roll_back(kept)


def _spread(pictures: Tensor) -> Tensor:
    """Standard deviation over each picture's pixels, the mean of (B, 3, H, W) over pictures and channels."""
    return pictures.std(dim=(2, 3)).mean()
