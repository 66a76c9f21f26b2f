"""A narrow student of a paired GAN, guided by a trained discriminator: DGL-GAN."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_modules.paired_gan import PairedGAN
from lightning_modules.run import fresh_discriminator, load_module
from lightning_modules.run_state import trained_data_of
from lightning_modules.teacher_guidance import TeacherGuidance


class DGLCompression(TeacherGuidance, PairedGAN):
    """DGL-GAN (arXiv 2112.06502) for paired GANs: the generator minimises ``M(G, D) + λ M(G, D_teacher)``.

    The teacher is the discriminator of a base or an adapter; its generator is not used, and the student
    discriminator's loss never sees it. The paper's two stages are two runs: a plain one of the narrow networks (no
    teacher), then one with ``start`` and ``teacher``, which takes generator, discriminator, prompt tokens and the
    averages from the first, with optimizers of its own. The averages' ramp-up goes on from the first stage's images,
    or they would be forgotten at once; ``images`` counts this stage alone.

    Deviations: the paper has no paired GAN. The reconstruction term stays, outside of both M; ``adversarial_weight``
    weighs their sum.

    Args:
        teacher: Run folder of a base or adapter that was trained at this size and on the student's concepts; None for
            a plain GAN.
        start: Run folder of the first stage, finished and of the same networks and concepts; None to start from
            scratch.
        teacher_weight: λ; 0.1 in the paper. With 0 the run is the plain GAN bit for bit.
        update_teacher: Let the teacher learn from the student's edits, with the discriminator's loss and an optimizer
            of its own like the discriminator's; off in the paper.
        random_teacher: A control for measurements: a teacher of the same class and sizes whose weights are random.
        **options: Of ``PairedGAN``.

    Raises:
        FileNotFoundError: Later, in ``fit``: a run is not there.
        ValueError: An option makes no sense; later, in ``fit``: the start is unfinished, or a run does not fit.
    """

    stage_parts = ("generator", "generator_ema", "discriminator", "text_encoder", "text_encoder_ema")

    def __init__(
        self,
        teacher: Path | None = None,
        start: Path | None = None,
        teacher_weight: float = 0.1,
        update_teacher: bool = False,
        random_teacher: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.keep_guidance(teacher, start, teacher_weight, update_teacher, random_teacher)

    def read_teacher(self) -> nn.Module | None:
        """The teacher's discriminator.

        Raises:
            FileNotFoundError: The run is not there.
            ValueError: It is of another kind, image size or other concepts.
        """
        if self.teacher is None:
            return None
        module = load_module(self.teacher)
        if not isinstance(module, PairedGAN):
            raise ValueError(
                f"teacher {self.teacher} holds a {type(module).__name__}, which judges single images; an edit is "
                "judged beside its photo: give the run of a base or an adapter"
            )
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        size = trained_data_of(self.teacher)["size"]
        if size != data.size:
            raise ValueError(
                f"teacher {self.teacher} was trained at {size} px, the student trains at {data.size}; "
                f"set data.size to {size} or give a teacher of {data.size} px"
            )
        unseen = sorted(set(data.prompts) - set(module.prompts))
        if unseen:
            raise ValueError(
                f"teacher {self.teacher} never saw {', '.join(unseen)}; it was trained on "
                f"{', '.join(module.concepts)}: choose among these with data.concepts, or give another teacher"
            )
        return fresh_discriminator(self.teacher) if self.random_teacher else module.discriminator

    def check_start(self, state: dict[str, Any]) -> None:
        """Refuse a run of another kind, image size, other concepts or another text encoder.

        Raises:
            ValueError: It is.
        """
        if "prompts" not in state:
            raise ValueError(
                f"start {self.start} is no paired GAN's run; give the first stage of this student, such as a run of "
                "configs/dgl_compression/paired_stage1.yaml"
            )
        if sorted(state["prompts"]) != self.concepts:
            raise ValueError(
                f"start {self.start} was trained on {', '.join(sorted(state['prompts']))}, the data hold "
                f"{', '.join(self.concepts)}; set data.concepts to the same in both stages"
            )
        assert self.start is not None
        size, own_size = trained_data_of(self.start)["size"], self.trainer.datamodule.size  # type: ignore[attr-defined]
        if size != own_size:
            raise ValueError(
                f"start {self.start} was trained at {size} px, the data are of {own_size}; train both stages at "
                "one size"
            )
        trained_with = state.get("encoded_prompts", {}).get("identity", self.text_encoder.identity)
        if trained_with != self.text_encoder.identity:
            raise ValueError(
                f"start {self.start} was trained with {trained_with}, the config names {self.text_encoder.identity}; "
                "set model.text_encoder to the former"
            )

    def generator_adversarial(self, photo: Tensor, fake: Tensor) -> Tensor:
        """M(G, D) + λ M(G, D_teacher), a scalar before ``adversarial_weight``."""
        return self.guided(super().generator_adversarial(photo, fake), photo, fake)

    def train_discriminators(self, photo: Tensor, edit: Tensor, fake: Tensor) -> None:
        """Let the student's discriminator learn, and the teacher if it is to."""
        super().train_discriminators(photo, edit, fake)
        if self.teacher_discriminator is not None and self.teacher_discriminator.learns:
            self.log("train/teacher", self.discriminator_step(self.teacher_discriminator, 2, photo, edit, fake))
