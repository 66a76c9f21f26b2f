"""A trained generator made narrower to a budget: condense, prune, fine-tune by the condensed network."""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.functional import l1_loss
from torch.optim import Optimizer

from lightning_modules.paired_gan import PairedGAN
from lightning_modules.run import load_run
from lightning_modules.run_state import finished_state
from pocketgan.adapters import merge
from pocketgan.compression import (
    ConcentrationLoss,
    GeneratorCost,
    Kept,
    LatencyTarget,
    PruningRule,
    QualityBudget,
    captured_outputs,
    effective_scales,
    group_macs,
    make_norms_affine,
    pruned_with_constants,
    recalibrate_batch_norm,
    widths,
)
from pocketgan.networks import Generator

_T = TypeVar("_T")
MEASURED_PHOTOS = 64  # on which constants of removed channels and batch norm's statistics are measured


class ChannelCondensation(PairedGAN):
    """Condenses a trained generator's channels, prunes it to a budget and fine-tunes it with itself as the teacher.

    ALAP-AE (Shah and Baraj, arXiv 2203.10363) in three stages of one ``fit``, counted in images:

    1. *Condense*, until ``condense_images``: the task's losses and a term that gathers each layer's effective scale on
       few channels (``ConcentrationLoss``, our substitute for a regulariser that is not known in full).
    2. *Prune*: ``pruning`` chooses what stays, by scale and by what the device measures; the network becomes physically
       narrower, removed channels' constants move into the next biases.
    3. *Fine-tune*, until the budget: the task's losses, and L1 to the condensed network's edits and to its features
       after each norm, of the kept channels.

    A checkpoint of any stage can be resumed. A budget that ends with the first stage leaves the network whole, for
    several budgets to go on from. An adapter is merged into its base first. Text encoder and tokens stay as
    they are.

    Args:
        base: Run folder of a base or an adapter.
        pruning: How far to prune.
        condense_images: Images of the first stage; 0 prunes at once.
        target: The device that milliseconds are measured for; its ``size`` is that of use, not of training.
        concentration_weight: Factor on the concentration term.
        condensed_share: The term leaves a layer alone that in effect uses this share of its channels or less.
        cost: What the layers' terms are weighted by: their channels' operations at the target's size, the milliseconds
            that they save on the target at their narrowest, or nothing.
        scale_learning_rate_factor: The norms' factors learn this much faster while condensing; Adam bounds how far they
            get otherwise.
        teacher: The condensed network, as in the paper; the one before it was condensed; or none.
        max_teacher_loss: A condensed network whose validation L1 is worse than its base's by more than this share is
            refused as the teacher.
        teacher_image_weight: Factor on the L1 between student's and teacher's edits.
        teacher_feature_weight: Factor on the L1 between their features, mean over norms.
        ema_halflife_images: Images after which a weight counts half in the moving average.
        **options: Of ``PairedGAN``.

    Attributes:
        kept: Units that stay, by channel group of the base's generator; None before the pruning.

    Raises:
        FileNotFoundError: There is no such base.
        ValueError: A number makes no sense, or the base's network has an operation that the dependency graph cannot
            follow; in ``fit``, the base is unfinished or does not know the data's concepts.
    """

    def __init__(
        self,
        base: Path,
        pruning: PruningRule,
        condense_images: int,
        target: LatencyTarget | None = None,
        concentration_weight: float = 5.0,
        condensed_share: float = 0.25,
        cost: Literal["macs", "milliseconds"] | None = "macs",
        scale_learning_rate_factor: float = 10.0,
        teacher: Literal["condensed", "base"] | None = "condensed",
        max_teacher_loss: float = 0.15,
        teacher_image_weight: float = 10.0,
        teacher_feature_weight: float = 1.0,
        ema_halflife_images: float = 1_000.0,
        **options: Any,
    ) -> None:
        if condense_images < 0:
            raise ValueError(f"condense_images is {condense_images}; give 0 or more")
        if not 0 <= condensed_share < 1:
            raise ValueError(f"condensed_share is {condensed_share}; give a share of the channels from 0 to below 1")
        trained = load_run(base)
        super().__init__(
            generator=make_norms_affine(merge(trained.generator_ema)).requires_grad_(True),  # type: ignore[arg-type]
            discriminator=trained.discriminator.requires_grad_(True),
            text_encoder=trained.text_encoder_ema.requires_grad_(False),
            ema_halflife_images=ema_halflife_images,
            **options,
        )
        self.generator.train()
        self.discriminator.train()
        self.base, self.base_prompts = base, trained.prompts
        self.pruning, self.condense_images, self.cost = pruning, condense_images, cost
        self.target = target or LatencyTarget()
        self.generator.check_size(self.target.size, self.target.size)
        self.concentration_weight, self.scale_learning_rate_factor = concentration_weight, scale_learning_rate_factor
        self.condensed_share = condensed_share
        self.teacher_source, self.max_teacher_loss = teacher, max_teacher_loss
        self.teacher_image_weight, self.teacher_feature_weight = teacher_image_weight, teacher_feature_weight
        self.teacher: nn.Module | None = None
        self.kept: Kept | None = None
        self.base_loss: float | None = None
        self.before: dict[str, Any] = {}
        self.trace: list[dict[str, float]] = []
        self.notch_begun_images = 0
        self.last_good: dict[str, Any] | None = None  # of a quality budget: kept units and weights
        self.is_settled = False
        self.extra_terms.append(self._stage_terms)
        concept, prompt = next(iter(trained.prompts.items()))
        tokens = trained.text_encoder_ema([concept], [prompt]).detach()
        self.device_cost = GeneratorCost(self.target, tokens, self.generator.size_divisor)
        self._graph = self.device_cost.graph(self.generator)
        # what the graph misreads shows at once, not after the first stage
        self._graph.pruned({name: list(range(max(group.units - 1, 1))) for name, group in self._graph.groups.items()})
        self._costs: dict[str, float] | None = None
        if cost == "macs":
            self._costs = group_macs(self._graph, self.device_cost.inputs(self.generator, self.target.size))

    def setup(self, stage: str) -> None:
        """Refuse a base that is still to be trained, before anything is made of it.

        Raises:
            ValueError: The base has not come to its end.
        """
        if stage == "fit":
            finished_state(self.base)
        super().setup(stage)

    def add_concepts(self, prompts: dict[str, str]) -> None:
        """Take the concepts of the base; it learns no others here.

        Raises:
            ValueError: The base does not know a concept.
        """
        unknown = sorted(set(prompts) - set(self.base_prompts))
        if unknown:
            raise ValueError(
                f"the base does not know {', '.join(unknown)}, only {', '.join(sorted(self.base_prompts))}; compress a "
                "run that was trained on it, or name others with data.concepts"
            )
        super().add_concepts(prompts)
        self.text_encoder.requires_grad_(False)

    @property
    def is_condensing(self) -> bool:
        """Whether the network is still whole."""
        return self.kept is None

    def configure_optimizers(self) -> list[Optimizer]:
        """As ``PairedGAN``; while condensing, the norms' factors have a learning rate of their own.

        Without a concentration term nothing calls for it: the first stage is then plain training.
        """
        if not self.is_condensing:
            return super().configure_optimizers()
        factors = {
            f"{member.layer}.weight" for group in self._graph.groups.values() for member in group.of_role("normalises")
        }
        named = dict(self.generator.named_parameters())
        fast = [named[name] for name in named if name in factors]
        slow = [named[name] for name in named if name not in factors]
        generator_optimizer = self.generator_optimizer([{"params": slow}, {"params": fast}])
        if self.concentration_weight:
            generator_optimizer.param_groups[1]["lr"] *= self.scale_learning_rate_factor
        return [generator_optimizer, self.discriminator_optimizer(self.discriminator.parameters())]

    def on_fit_start(self) -> None:
        """Refuse a rule that cannot be met, before the run's folder is written.

        Raises:
            ValueError: No network that the rule allows can meet it.
        """
        if self.base_loss is None:
            graph = self.device_cost.graph(self.generator_ema)
            self._on_first_rank(
                lambda: self.pruning.check(graph.groups, lambda kept: self.device_cost.milliseconds(graph.pruned(kept)))
            )

    def on_train_start(self) -> None:
        """Measure the network as it comes; a first stage of no images ends here."""
        if self.is_condensing and self.condense_images >= self._budget_images():
            rank_zero_warn(
                f"nothing will be pruned and fine-tuned: condense_images is {self.condense_images}, the budget ends at "
                f"{self._budget_images():.0f} images; give a larger budget.images or fewer condense_images, or go on "
                "from this run's last.ckpt with a larger budget"
            )
        if self.base_loss is None:
            self.base_loss = self.validation_loss()
            self.before = self.figures()
        if self.cost == "milliseconds" and self._costs is None and self.is_condensing:
            self._costs = self._on_first_rank(
                lambda: self.device_cost.group_milliseconds(self.generator_ema, self.pruning)
            )
        if self._ends_condensing():
            self.hand_over()

    def _ends_condensing(self) -> bool:
        """Whether the first stage has its images and the budget leaves some for the last."""
        return self.is_condensing and self.condense_images <= self.images_seen < self._budget_images()

    def training_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """The paired step, with the stage's own terms in the generator's loss."""
        if self.teacher is None:
            super().training_step(batch, batch_index)
            return
        with captured_outputs(self.generator, self._norms()) as self._features:
            super().training_step(batch, batch_index)

    def _stage_terms(self, batch: dict[str, Any], fake: Tensor) -> Tensor:
        """Concentration in the first stage, the teacher's terms in the last; a weighted sum."""
        if self.is_condensing:
            concentration = ConcentrationLoss(self._costs, self.condensed_share)(
                effective_scales(self.generator, self._graph)
            )
            self.log("train/concentration", concentration)
            return self.concentration_weight * concentration
        if self.teacher is None:
            return fake.new_zeros(())
        with torch.no_grad(), captured_outputs(self.teacher, self._norms()) as expected:
            edits = self.teacher(batch["photo"], self.prompt_tokens(batch))
        distances = [
            l1_loss(self._features[name], features[:, self._kept_places[name]]) for name, features in expected.items()
        ]
        image, feature = l1_loss(fake, edits), torch.stack(distances).mean()
        self.log_dict({"train/teacher_image": image, "train/teacher_feature": feature})
        return self.teacher_image_weight * image + self.teacher_feature_weight * feature

    def _norms(self) -> list[str]:
        return [member.layer for group in self._graph.groups.values() for member in group.of_role("normalises")]

    def on_train_batch_end(self, *_: Any) -> None:
        """Go on to the next stage or notch where its images are seen; judge a last notch at the budget's end."""
        if self._ends_condensing():
            self.hand_over()
        elif isinstance(self.pruning, QualityBudget) and not self.is_condensing and not self.is_settled:
            notch_is_over = self.images_seen - self.notch_begun_images >= self.pruning.notch_images
            if notch_is_over or self.trainer.should_stop or self.images_seen >= self._budget_images():
                self._judge_notch(self.pruning)

    def _budget_images(self) -> float:
        """Images at which the run ends; endless without an image budget."""
        from callbacks.image_budget import budget_of  # which itself stands above the modules

        budget = budget_of(self.trainer)
        return math.inf if budget is None else budget

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean reconstruction of the averaged generator over the validation split, the first rank's on every rank.

        Running statistics of batch norm, and so the losses, may differ a little between ranks; decisions must not.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        total, count = 0.0, 0
        for batch in data.batches("val"):
            on_device = {**batch, "photo": batch["photo"].to(self.device), "edit": batch["edit"].to(self.device)}
            total += float(self.deterministic_objective(on_device)) * len(batch["photo"])
            count += len(batch["photo"])
        if not count:
            raise ValueError("the val split is empty, on which networks are compared; give it a fraction in data.split")
        return self.trainer.strategy.broadcast(total / count)

    def on_validation_start(self) -> None:
        """Measure the averaged network's batch norm: its own weights, the statistics of others are not for it."""
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self._recalibrate()
        super().on_validation_start()

    def _recalibrate(self) -> None:
        recalibrate_batch_norm(self.generator_ema, self._training_batches())

    def hand_over(self) -> None:
        """End the first stage: judge the condensed network, prune it, make it the teacher of what is left.

        Raises:
            ValueError: The condensed network is too far behind its base to be a teacher, or no network meets the
                budget.
        """
        assert self.base_loss is not None
        self._recalibrate()
        loss = self.validation_loss()
        self._note(loss)
        worse = loss / self.base_loss - 1
        # what is no number is worse, too
        if self.teacher_source == "condensed" and not worse <= self.max_teacher_loss:
            raise ValueError(
                f"the condensed network's validation L1 is {loss:.4f}, {worse:.1%} worse than its base's "
                f"{self.base_loss:.4f}; as the teacher at most {self.max_teacher_loss:.1%} is accepted. Lower "
                "concentration_weight, raise condensed_share, condense for more images, or set teacher to base; the "
                "last checkpoint goes on with --ckpt_path last"
            )
        if self.teacher_source == "condensed":
            self.teacher = copy.deepcopy(self.generator_ema)
        elif self.teacher_source == "base":
            self.teacher = self._whole_generator()
        self._narrow(self._chosen())

    def _whole_generator(self) -> nn.Module:
        return make_norms_affine(merge(load_run(self.base).generator_ema)).to(self.device).eval().requires_grad_(False)

    def _chosen(self) -> Kept:
        """Units of the present network that the rule keeps."""
        graph = self.device_cost.graph(self.generator_ema)
        with torch.no_grad():
            scales = {name: scale.cpu() for name, scale in effective_scales(self.generator_ema, graph).items()}
        return self._on_first_rank(
            lambda: self.pruning.choose(
                scales,
                graph.groups,
                lambda kept: self.device_cost.milliseconds(graph.pruned(kept)),
                lambda kept: self.device_cost.macs(graph.pruned(kept)),
            )
        )

    def _on_first_rank(self, measure: Callable[[], _T]) -> _T:
        """What one process measures or decides, known to all; what stops it stops all of them.

        Raises:
            Exception: As ``measure``.
        """
        found: _T | None = None
        error: Exception | None = None
        if self.trainer.is_global_zero:
            try:
                found = measure()
            except Exception as raised:  # the others would wait for ever
                error = raised
        found, failure = self.trainer.strategy.broadcast((found, None if error is None else str(error)))
        if error is not None:
            raise error
        if failure is not None:
            raise RuntimeError(f"the first process failed: {failure}")
        return cast(_T, found)

    def _narrow(self, kept: Kept) -> None:
        """Go on with a narrower network, with fresh averages and a fresh optimizer."""
        graph = self.device_cost.graph(self.generator_ema)
        narrowed = pruned_with_constants(graph, kept, self._training_batches())
        recalibrate_batch_norm(narrowed, self._training_batches())
        composed = (
            {name: [self.kept[name][unit] for unit in units] for name, units in kept.items()} if self.kept else kept
        )
        self._put(composed, narrowed)
        self._note(self.validation_loss())
        self._restart_optimization()

    def _note(self, loss: float) -> None:
        share = self.device_cost.macs(self.generator_ema) / self.before["macs"]
        self.trace.append({"images": self.images_seen, "share_of_macs": share, "val_loss": loss})

    def _put(self, kept: Kept, generator: nn.Module) -> None:
        self.kept, self.notch_begun_images = kept, self.images_seen
        # channels of the whole network that each norm still has
        places: defaultdict[str, list[Tensor]] = defaultdict(list)  # several after a concatenation
        for name, group in self._graph.groups.items():
            for member in group.of_role("normalises"):
                places[member.layer].append(member.places[torch.isin(member.units, torch.tensor(kept[name]))])
        self._kept_places = {layer: torch.cat(found).sort().values.to(self.device) for layer, found in places.items()}
        self.earlier_images = -self.images_seen  # the moving average begins anew
        self.generator_ema = cast(Generator, generator).eval().requires_grad_(False)
        self.generator = copy.deepcopy(self.generator_ema).train().requires_grad_(True)
        self.lay_out()

    def _training_batches(self) -> Iterator[tuple[Tensor, ...]]:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        for batch in data.batches("train", count=MEASURED_PHOTOS):
            yield batch["photo"].to(self.device), self.prompt_tokens(batch)

    def _restart_optimization(self) -> None:
        """Hand the new generator to wrapper and optimizers; the discriminator's optimizer goes on as it was."""
        strategy = self.trainer.strategy
        discriminator_state = strategy.optimizers[1].state_dict()
        if isinstance(strategy, DDPStrategy):
            strategy.model = self
            strategy.configure_ddp()
        strategy.setup_optimizers(self.trainer)
        strategy.optimizers[1].load_state_dict(discriminator_state)

    def _judge_notch(self, pruning: QualityBudget) -> None:
        """Shrink on where the metric and the images left allow it, step back where the metric does not."""
        assert self.base_loss is not None
        assert self.kept is not None
        self._recalibrate()
        loss = self.validation_loss()
        self._note(loss)
        if not loss <= (1 + pruning.max_quality_loss) * self.base_loss:  # what is no number is above, too
            self.is_settled = True
            self._step_back(pruning)
        elif self.images_seen + pruning.notch_images > self._budget_images():
            self.is_settled = True  # one more notch could not be judged as this one was
        elif self.trainer.should_stop:
            return  # by the clock or the user: a resumed run judges once more and goes on
        else:
            self.last_good = {"kept": self.kept, "state": copy.deepcopy(self.generator_ema.state_dict())}
            kept = self._chosen()
            if all(len(kept[name]) == len(units) for name, units in self.kept.items()):
                self.is_settled = True
            else:
                self._narrow(kept)
        if self.is_settled:
            self.last_good = None

    def _step_back(self, pruning: QualityBudget) -> None:
        """Go on with the last network that was good, or with the base as it came."""
        whole = self._whole_generator()
        if self.last_good is None:
            rank_zero_warn(
                f"the first notch passes max_quality_loss {pruning.max_quality_loss:g} already: the network stays as "
                "it came; a shrink_factor nearer to 1 or more notch_images may find a narrower one"
            )
            kept = {name: list(range(group.units)) for name, group in self._graph.groups.items()}
            generator = self.device_cost.graph(whole).pruned(kept)
        else:
            kept = self.last_good["kept"]
            generator = self.device_cost.graph(whole).pruned(kept)
            generator.load_state_dict(self.last_good["state"])
        self._put(kept, generator)
        self._note(self.validation_loss())
        self._restart_optimization()

    def figures(self) -> dict[str, Any]:
        """The averaged network's ``widths`` by layer, ``parameters``, ``macs``, ``latency_ms`` and ``val_loss``.

        Parameters are the device's network's, with the prompt folded in; operations and milliseconds, measured on
        rank 0, are at the target's size.
        """
        if self.before:  # the base is measured as it came
            self._recalibrate()
        return {
            "widths": widths(self.generator_ema),
            "parameters": self.device_cost.parameters(self.generator_ema),
            "macs": self.device_cost.macs(self.generator_ema),
            "latency_ms": self._on_first_rank(lambda: self.device_cost.milliseconds(self.generator_ema)),
            "val_loss": self.validation_loss(),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store stage and widths, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["condensation"] = {name: getattr(self, name) for name in _STATE} | {
            "pruning": repr(self.pruning),
            "measured": self._measured(),
        }
        if self.teacher_source == "base":  # it stands in the base's own folder
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: state[name] for name in state if not name.startswith("teacher.")}

    def _measured(self) -> str:
        """What its own figures are of, which those of another target cannot be compared with."""
        return f"{self.target}, cost {self.cost}"

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take stage and widths back before the weights.

        Raises:
            ValueError: The checkpoint is of another recipe or architecture, its widths were chosen by another rule, or
                its figures are of another target.
        """
        if "condensation" not in checkpoint:
            raise ValueError("the checkpoint is not of a ChannelCondensation; give one of this recipe")
        images_seen = checkpoint.get("images_seen", 0)
        state = checkpoint["condensation"]
        chosen_by, rule = state["pruning"], repr(self.pruning)
        if state["kept"] is not None and chosen_by != rule:
            raise ValueError(
                f"the checkpoint's widths were chosen by {chosen_by}, the config says {rule}; resume with the former, "
                "or go on from a checkpoint of the first stage in another folder"
            )
        if state["measured"] != self._measured():
            raise ValueError(
                f"the checkpoint's figures are of {state['measured']}, the config says {self._measured()}; set "
                "model.target and model.cost to the former, or condense anew in another folder"
            )
        if state["kept"] is not None:
            self.images_seen = images_seen
            if self.teacher_source == "condensed":
                self.teacher = copy.deepcopy(self.generator_ema)
            elif self.teacher_source == "base":
                self.teacher = self._whole_generator()
                for name, value in self.teacher.state_dict().items():
                    checkpoint["state_dict"][f"teacher.{name}"] = value
            self._put(state["kept"], self.device_cost.graph(self.generator_ema).pruned(state["kept"]))
        for name in _STATE:
            setattr(self, name, state[name])
        super().on_load_checkpoint(checkpoint)


_STATE = (
    "kept",
    "base_loss",
    "before",
    "trace",
    "notch_begun_images",
    "earlier_images",
    "last_good",
    "is_settled",
    "_costs",
)
