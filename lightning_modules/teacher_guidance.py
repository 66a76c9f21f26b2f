"""What DGL-GAN adds to an adversarial module: a teacher discriminator, and a second stage."""

import math
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_modules.run_state import finished_state, refuse_other_weights
from pocketgan.compression import TeacherDiscriminator
from pocketgan.losses import AdversarialLoss

_TEACHER = "teacher_discriminator"


class TeacherGuidance(LightningModule):
    """The part of a GAN's module that holds its teacher discriminator and where it starts.

    It stands before a GAN's class among the bases. What a run starts from is read when a ``fit`` begins and not before:
    a trained student is loaded and measured without its teacher.
    """

    adversarial_loss: AdversarialLoss
    discriminator_optimizer: OptimizerCallable
    images_seen: int
    earlier_images: int
    teacher_discriminator: TeacherDiscriminator | None
    # networks that the second stage takes over, and what it takes where both stages have it
    stage_parts: tuple[str, ...]
    optional_stage_parts: tuple[str, ...] = ()

    def keep_guidance(
        self,
        teacher: Path | None,
        start: Path | None,
        teacher_weight: float,
        update_teacher: bool,
        random_teacher: bool,
    ) -> None:
        """Take the options, which the classes' arguments describe.

        Raises:
            ValueError: They make no sense.
        """
        if not (math.isfinite(teacher_weight) and teacher_weight >= 0):
            raise ValueError(f"teacher_weight is {teacher_weight}; give 0 or more, the paper's is 0.1")
        if update_teacher and random_teacher:
            raise ValueError("random_teacher is a control whose weights stay random; set update_teacher to false")
        self.teacher, self.start = teacher, start
        self.teacher_weight = teacher_weight
        self.update_teacher, self.random_teacher = update_teacher, random_teacher
        self.teacher_discriminator = None
        self._has_begun = False

    @abstractmethod
    def read_teacher(self) -> nn.Module | None:
        """The teacher's discriminator, checked against the student and the data; None if there is none."""

    @abstractmethod
    def check_start(self, state: dict[str, Any]) -> None:
        """Refuse the checkpoint of a run that this one cannot go on from."""

    def setup(self, stage: str) -> None:
        """Take the first stage's networks and the teacher.

        Raises:
            FileNotFoundError: A run is not there.
            ValueError: A run is unfinished, or does not fit the student or the data.
        """
        super().setup(stage)
        if stage != "fit" or self._has_begun:
            return
        # neither may move the training's random numbers: λ = 0 is the plain GAN bit for bit
        with torch.random.fork_rng(devices=[]):
            if self.start is not None:
                self._take_start(self.start)
            # of the run's seed alone, so that a resumed run has the same random teacher
            torch.default_generator.manual_seed(torch.initial_seed() + 1)
            if self.teacher is not None:
                finished_state(self.teacher)
            discriminator = self.read_teacher()
        if discriminator is not None:
            self.teacher_discriminator = TeacherDiscriminator(discriminator, self.update_teacher)
        elif self.update_teacher or self.random_teacher:
            raise ValueError("update_teacher and random_teacher are about a teacher; name its run as model.teacher")
        self._has_begun = True

    def _take_start(self, start: Path) -> None:
        state = finished_state(start)
        self.check_start(state)
        stored, own = state["state_dict"], self.state_dict()
        found, expected = (
            {name: value for name, value in weights.items() if name.split(".")[0] in self.stage_parts}
            for weights in (stored, own)
        )
        try:
            refuse_other_weights(found, expected)
        except ValueError as error:
            raise ValueError(f"the student cannot start from {start}: {error}, or another start") from error
        found |= {
            name: stored[name]
            for name in own.keys() & stored.keys()
            if name.split(".")[0] in self.optional_stage_parts and stored[name].shape == own[name].shape
        }
        self.load_state_dict(found, strict=False)
        self.earlier_images = state["images_seen"] + state.get("earlier_images", 0)

    def guided(self, own: Tensor, *judged: Tensor | None) -> Tensor:
        """The generator's adversarial loss with the teacher's term.

        Args:
            own: M(G, D) of the student's discriminator, a scalar.
            judged: What the teacher judges: the generator's images, with all else that a discriminator takes.

        Returns:
            M(G, D) + λ M(G, D_teacher), a scalar.
        """
        if self.teacher_discriminator is None:
            return own
        taught = self.teacher_discriminator.generator_loss(self.adversarial_loss, *judged)
        self.log("train/teacher_adversarial", taught.detach())
        return own + self.teacher_weight * taught

    def configure_optimizers(self) -> list[Optimizer]:
        """The GAN's two, and where the teacher learns a third of the discriminator's kind."""
        optimizers: list[Optimizer] = super().configure_optimizers()  # type: ignore[assignment]
        if self.teacher_discriminator is not None and self.teacher_discriminator.learns:
            optimizers.append(self.discriminator_optimizer(self.teacher_discriminator.parameters()))
        return optimizers

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store also what tells the teacher that the run began with."""
        super().on_save_checkpoint(checkpoint)
        teacher = self.teacher_discriminator
        checkpoint["teacher_sha256"] = None if teacher is None else teacher.sha256

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with another teacher; leave a learned one out where nothing trains.

        Raises:
            ValueError: The run began with another teacher, or the weights are of another architecture.
        """
        if self._has_begun:
            teacher = self.teacher_discriminator
            here = None if teacher is None else teacher.sha256
            if checkpoint.get("teacher_sha256") != here:
                raise ValueError(
                    f"the run began with {_named(checkpoint.get('teacher_sha256'))} and would go on with "
                    f"{_named(here)}; set model.teacher to the run that it began with, unchanged"
                )
        else:
            for name in [name for name in checkpoint["state_dict"] if name.startswith(f"{_TEACHER}.")]:
                del checkpoint["state_dict"][name]
        super().on_load_checkpoint(checkpoint)


def _named(sha256: str | None) -> str:
    return "no teacher" if sha256 is None else f"a teacher of weights {sha256[:12]}…"
