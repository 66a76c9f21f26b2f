"""A narrow student of a GAN on single images, guided by a trained discriminator: DGL-GAN."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_modules.run import fresh_discriminator, load_module
from lightning_modules.run_state import trained_data_of
from lightning_modules.teacher_guidance import TeacherGuidance
from lightning_modules.unpaired_gan import UnpairedGAN
from pocketgan.compression import PublicDiscriminator
from pocketgan.networks import ImageDiscriminator


class UnpairedDGLCompression(TeacherGuidance, UnpairedGAN):
    """DGL-GAN (arXiv 2112.06502) for StyleGAN2 and BigGAN: the generator minimises ``M(G, D) + λ M(G, D_teacher)``.

    No teacher generator is used, the student discriminator's loss never sees the teacher, and regularisation has no
    teacher's term. The two stages are two runs: a plain one of the narrow networks (no teacher), then one with
    ``start`` and ``teacher``, which takes generator, discriminator and the average from the first, with optimizers of
    its own. ``images`` counts this stage alone.

    Deviations: the average's ramp-up, where there is one, goes on from the first stage's images, or the average would
    be forgotten at once; path length's mean is taken over, too, since from 0 it would first pull the generator flat.

    Args:
        teacher: Run folder of an ``UnpairedGAN`` or a student that was trained at this size and with these classes;
            None for a plain GAN.
        teacher_checkpoint: A public checkpoint's discriminator as the teacher instead.
        start: Run folder of the first stage, finished and of the same networks; None to start from scratch.
        teacher_weight: λ; 0.1 in the paper. With 0 the run is the plain GAN bit for bit.
        update_teacher: Let the teacher learn from the student's images, with the adversarial loss and an optimizer of
            its own like the discriminator's; off in the paper.
        random_teacher: A control for measurements: a teacher of the same class and sizes whose weights are random.
        **options: Of ``UnpairedGAN``.

    Raises:
        FileNotFoundError: Later, in ``fit``: a run or file is not there.
        ValueError: An option makes no sense; later, in ``fit``: the start is unfinished, or a run does not fit.
    """

    stage_parts = ("generator", "generator_ema", "discriminator")
    optional_stage_parts = ("generator_regularization",)

    def __init__(
        self,
        teacher: Path | None = None,
        teacher_checkpoint: PublicDiscriminator | None = None,
        start: Path | None = None,
        teacher_weight: float = 0.1,
        update_teacher: bool = False,
        random_teacher: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if teacher is not None and teacher_checkpoint is not None:
            raise ValueError("both teacher and teacher_checkpoint are given; set one of them to null")
        self.keep_guidance(teacher, start, teacher_weight, update_teacher, random_teacher)
        self.teacher_checkpoint = teacher_checkpoint

    def read_teacher(self) -> nn.Module | None:
        """The teacher's discriminator.

        Raises:
            FileNotFoundError: The run or the file is not there.
            ValueError: It is of another kind, image size, number of channels or of classes.
        """
        discriminator: ImageDiscriminator | None = None
        if self.teacher is not None:
            discriminator = self._of_run(self.teacher)
        elif self.teacher_checkpoint is not None:
            public = self.teacher_checkpoint
            discriminator = public.random() if self.random_teacher else public.load()
        if discriminator is not None:
            self._check_teacher(discriminator)
        return discriminator

    def _of_run(self, teacher: Path) -> ImageDiscriminator:
        module = load_module(teacher)
        if not isinstance(module, UnpairedGAN):
            raise ValueError(
                f"teacher {teacher} holds a {type(module).__name__}, whose discriminator judges no single images; "
                "give the run of an UnpairedGAN"
            )
        self._check_classes(f"teacher {teacher}", module.trained_classes)
        discriminator = fresh_discriminator(teacher) if self.random_teacher else module.discriminator
        assert isinstance(discriminator, ImageDiscriminator)
        return discriminator

    def _check_teacher(self, discriminator: ImageDiscriminator) -> None:
        student, named = self.generator, f"teacher {self.teacher or 'of the checkpoint'}"
        if discriminator.size != student.size:
            raise ValueError(
                f"{named} was trained at {discriminator.size} px, the student makes {student.size}; set the student's "
                "size to the teacher's or give another teacher"
            )
        if discriminator.image_channels != student.image_channels:
            raise ValueError(
                f"{named} judges images of {discriminator.image_channels} channels, the student makes "
                f"{student.image_channels}; give a teacher of {student.image_channels}"
            )
        if discriminator.classes != student.classes:
            raise ValueError(
                f"{named} was trained with {discriminator.classes or 'no'} classes, the student with "
                f"{student.classes or 'none'}; set the student's classes to the teacher's or give another teacher"
            )

    def _check_classes(self, named: str, classes: list[str]) -> None:
        own = list(self.data.classes)
        different = [f"{label} is {name}" for label, name in enumerate(classes) if name not in own[label : label + 1]]
        # another number of them is told apart from other names
        if different and len(classes) == len(own):
            raise ValueError(
                f"{named} was trained with other classes: {'; '.join(different[:3])}, where the data have "
                f"{', '.join(own)}; give folders of the same names, in which labels are numbered"
            )

    def check_start(self, state: dict[str, Any]) -> None:
        """Refuse a run of another kind, image size or of other classes.

        Raises:
            ValueError: It is.
        """
        if "latent_seed" not in state:
            raise ValueError(
                f"start {self.start} is no run of a GAN on single images; give the first stage of this student, such "
                "as a run of configs/dgl_compression/stylegan2_stage1.yaml"
            )
        assert self.start is not None
        size = trained_data_of(self.start)["size"]
        if size != self.generator.size:
            raise ValueError(
                f"start {self.start} was trained at {size} px, this student makes {self.generator.size}; train both "
                "stages at one size"
            )
        self._check_classes(f"start {self.start}", state.get("classes", []))

    def generator_adversarial(self, fake: Tensor, labels: Tensor | None) -> Tensor:
        """M(G, D) + λ M(G, D_teacher), a scalar."""
        return self.guided(super().generator_adversarial(fake, labels), fake, labels)

    def train_discriminators(self, image: Tensor, fake: Tensor, labels: Tensor | None, step: int) -> None:
        """Let the student's discriminator learn, and the teacher if it is to."""
        super().train_discriminators(image, fake, labels, step)
        if self.teacher_discriminator is not None and self.teacher_discriminator.learns:
            self.log("train/teacher", self.discriminator_step(self.teacher_discriminator, 2, image, fake, labels, None))
