"""N of each M weights, as sparse tensor cores have it."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from callbacks.sparsity_callback import SparsityCallback
from lightning_modules import DiffusionAdaptation, DiffusionTraining, PairedGAN, load_run
from lightning_modules.diffusion_module import DiffusionModule
from lightning_modules.run_state import finished_state
from pocketgan.class_pipeline import load_class_pipeline
from pocketgan.compression import NToMMask, NToMStage, WeightMask, find_masks, masked_share, weight_layers
from pocketgan.compression.n_to_m_mask import DECAY
from pocketgan.dit_pipeline import load_transformer


class NToMSparsity(SparsityCallback):
    """Keeps N of each M weights along a layer's inputs, on a ladder of images (SparseDM, arXiv 2404.10445).

    See ``NToMMask`` for the forward and SR-STE's backward pass. SparseDM's ladder is 15:16, 7:8, 3:4, 2:4; one stage
    from 0 images on is its direct variant. Layers whose inputs the last stage's M does not divide stay dense; a stage
    whose M does not divide a layer's inputs passes that layer by.

    With a ``teacher``, the network is also drawn to the dense one's output, SparseDM's distillation: for paired GANs
    the L1 distance of the edits, for diffusion the mean squared error of the predictions.

    The zeros save memory where a format leaves them out, and time on NVIDIA's sparse tensor cores at large sizes only
    (``with_semi_structured_weights``). On CPUs and phones they save no time.

    Args:
        ladder: Stages by ascending images, sparser from one to the next; before the first all is dense.
        decay: SR-STE's λ, the pull on weights that are out; 0 is plain straight-through estimation.
        teacher: The dense network: a run folder of a paired GAN that knows the same concepts, ``RUN/pipeline`` of a
            DiffusionTraining, or folder or repo id of a DiT with the same classes for a DiffusionAdaptation that keeps
            its classes. None for no distillation.
        distillation_weight: Factor on that term; SparseDM's is 0.1.
        dense_layers: Parts that stay dense, see ``SparsityCallback``.

    Raises:
        ValueError: There is no stage, stages do not ascend in images or do not get sparser, or a factor is negative.
    """

    def __init__(
        self,
        ladder: list[NToMStage],
        decay: float = DECAY,
        teacher: Path | None = None,
        distillation_weight: float = 0.1,
        dense_layers: list[str] | None = None,
    ) -> None:
        super().__init__(dense_layers)
        if not ladder:
            raise ValueError("the ladder has no stage; give one or more, such as 2:4 from 0 images on")
        for lower, upper in pairwise(ladder):
            if (
                lower.start_images >= upper.start_images
                or lower.kept * upper.group_size <= upper.kept * lower.group_size
            ):
                raise ValueError(
                    f"the ladder goes from {lower.kept}:{lower.group_size} at {lower.start_images} images to "
                    f"{upper.kept}:{upper.group_size} at {upper.start_images}; each stage must come later and be "
                    "sparser than the one before"
                )
        if decay < 0 or distillation_weight < 0:
            raise ValueError(f"decay is {decay}, distillation_weight {distillation_weight}; give 0 or more for both")
        self.ladder, self.decay = ladder, decay
        self.teacher, self.distillation_weight = teacher, distillation_weight
        self._dense: nn.Module | None = None
        self._stages, self._share = -1, 0.0

    @property
    def group_size(self) -> int:
        """The last stage's M."""
        return self.ladder[-1].group_size

    @property
    def last_images(self) -> int:
        """Where the last stage begins."""
        return self.ladder[-1].start_images

    def make_mask(self, weight: Tensor) -> WeightMask:  # noqa: ARG002
        """A mask that keeps all."""
        return NToMMask(self.group_size, self.group_size, self.decay)

    def update(self, trainer: Trainer, module: LightningModule) -> float:  # noqa: ARG002
        """Go to the stage that is due."""
        due = [stage for stage in self.ladder if stage.start_images <= module.images_seen]  # type: ignore[operator]
        if len(due) != self._stages:
            self._stages = len(due)
            self._climb(module, due)
        return self._share

    def _climb(self, module: LightningModule, due: list[NToMStage]) -> None:
        for network in self.networks(module):
            layers = weight_layers(network)
            for name, mask in find_masks(network).items():
                inputs = layers[name].layer.weight.shape[1]
                fitting = [stage for stage in due if inputs % stage.group_size == 0]
                if fitting and isinstance(mask, NToMMask):
                    mask.kept, mask.group_size = fitting[-1].kept, fitting[-1].group_size
        self._share = masked_share(self.networks(module)[0])

    def before_masks(self, trainer: Trainer, module: LightningModule) -> None:
        """Load the teacher and hook its term into the module's loss.

        Raises:
            FileNotFoundError: There is no such teacher.
            ValueError: The teacher is unfinished, does not know what the run trains, or gives another output.
        """
        if self.teacher is None:
            return
        if isinstance(module, PairedGAN):
            finished_state(self.teacher)
            self._dense = load_run(self.teacher)
            unknown = sorted(set(trainer.datamodule.prompts) - set(self._dense.concepts))  # type: ignore[attr-defined]
            if unknown:
                raise ValueError(
                    f"the teacher {self.teacher} does not know {', '.join(unknown)}, only "
                    f"{', '.join(self._dense.concepts)}; give a dense run of the same concepts"
                )
            module.extra_terms.append(self._edit_term)
        elif isinstance(module, DiffusionModule):
            self._dense = self._diffusion_teacher(module)
            module.extra_terms.append(_PredictionTerm(module.denoiser, self._dense, self.distillation_weight))
        assert self._dense is not None, "no other module is let through"
        self._dense.requires_grad_(False).eval()

    def _diffusion_teacher(self, module: DiffusionModule) -> nn.Module:
        if isinstance(module, DiffusionAdaptation):
            if module.new_classes:
                raise ValueError(
                    "a pretrained transformer knows nothing of new classes; leave teacher out, or set new_classes to "
                    "false where the classes are the base's"
                )
            teacher: nn.Module = load_transformer(str(self.teacher))
        else:
            assert isinstance(module, DiffusionTraining)
            teacher = load_class_pipeline(Path(str(self.teacher))).unet
        for name in ("in_channels", "out_channels", "num_class_embeds", "num_embeds_ada_norm"):
            ours, theirs = (getattr(network.config, name, None) for network in (module.denoiser, teacher))
            if ours != theirs:
                raise ValueError(
                    f"the teacher {self.teacher} has {name} {theirs}, the network here {ours}; give a dense network of "
                    "the same form"
                )
        return teacher

    def _edit_term(self, batch: dict[str, Any], edits: Tensor) -> Tensor:
        assert isinstance(self._dense, PairedGAN)
        with torch.no_grad():
            wanted = self._dense(batch["photo"], batch["concept"])
        return self.distillation_weight * F.l1_loss(edits, wanted)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Take the teacher, which is no part of the module, to the module's device."""
        if self._dense is not None:
            self._dense.to(pl_module.device)


class _PredictionTerm:
    """Mean squared error of a network's prediction against a teacher's on the same input.

    The input is what the network is called with, coordinates and all, taken by a hook.

    Args:
        network: The one that trains.
        teacher: A dense one.
        weight: Factor on the term.
    """

    def __init__(self, network: nn.Module, teacher: nn.Module, weight: float) -> None:
        self.teacher, self.weight = teacher, weight
        self._input: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        network.register_forward_pre_hook(self._take, with_kwargs=True)

    def _take(self, network: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:  # noqa: ARG002
        self._input = (arguments, options)

    def __call__(self, batch: dict[str, Tensor], prediction: Tensor) -> Tensor:
        arguments, options = self._input
        with torch.no_grad():
            wanted = self.teacher(*arguments, **options).sample
        channels = batch["latents"].shape[1]  # what follows are DiT's variances, which no one trains
        return self.weight * F.mse_loss(prediction[:, :channels], wanted[:, :channels])
