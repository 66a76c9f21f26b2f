"""The end of a run once its loss on frozen inputs says nothing new: DVAR."""

import array
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from callbacks.console import say
from callbacks.image_budget import budget_of
from callbacks.trainer_state import batch_images, callback_of, without_augmentation, write_into_run
from callbacks.training_alarm import TrainingAlarm
from pocketgan.loss_tracking import variance_ratio
from pocketgan.run_folder import TRACKING_FILE

Preset = Literal["textual_inversion", "custom_diffusion", "dreambooth_lora", "adapter"]
# window, threshold and batches from one value to the next; the first three are those of DVAR's README, the last is
# ours (benchmarks/early_stopping.md)
PRESETS: dict[Preset, tuple[int, float, int]] = {
    "textual_inversion": (310, 0.15, 1),
    "custom_diffusion": (180, 0.15, 1),
    "dreambooth_lora": (440, 0.4, 1),
    "adapter": (12, 3e-5, 4),
}


@runtime_checkable
class DeterministicObjective(Protocol):
    """What ``LossTrackingEarlyStopping`` asks of a module.

    A module that draws noise and timesteps in its step also offers ``frozen(batch)``, which is called once and returns
    the batch with all that is drawn for it.
    """

    def deterministic_objective(self, batch: Any) -> Tensor:
        """The training loss, a mean over the batch, without anything that is drawn anew or moves by itself."""
        ...


class LossTrackingEarlyStopping(Callback):
    """Stops a run when its loss on a frozen batch no longer moves, as DVAR does.

    Voronov et al., *Is This Loss Informative?*, NeurIPS 2023, arXiv 2302.04841, and its code's ``early_stopping.py``.
    The training loss of a diffusion model or a GAN shows no end, since inputs, noise and timesteps, or the
    discriminator, differ at each step. With all of them frozen the same loss falls and then stands still; the run
    stops below ``threshold`` of ``variance_ratio``. The batch that began goes to its end and the last weights are kept.

    The frozen examples are taken evenly from the training data, without augmentation, once. Evaluating them leaves the
    training's random numbers and batch norm's statistics alone: until the stop the run is bit-identical to one without
    this callback. Over several ranks each evaluates its share, and all decide by the mean.

    ``train/tracked_objective`` and ``train/variance_ratio`` are logged; ``RUN/loss_tracking.json`` holds the curve.

    Args:
        preset: The numbers that the paper used for a method, or ours for adapters of paired GANs.
        window: Number of last values compared with all; the preset's if None. The first possible stop is one later.
        threshold: Ratio of variances below which to stop; the preset's if None. 0 tracks and never stops.
        images: Frozen examples over all ranks; an example comes again, with other noise, where the data hold fewer.
        every_n_batches: Batches from one value to the next; the preset's if None, or 1.
        seed: Draws what a module's ``frozen`` or objective draws.

    Raises:
        ValueError: An argument makes no sense or neither preset nor both numbers are given; later: the frozen batch
            holds no example or a number that is not finite, the weights change less often than they are looked at, or
            objective or weights are not finite. Checkpoints are written at validations, before which both are looked
            at, so that the last one holds finite weights.
        TypeError: The module has no ``deterministic_objective``.
    """

    def __init__(
        self,
        preset: Preset | None = None,
        window: int | None = None,
        threshold: float | None = None,
        images: int = 8,
        every_n_batches: int | None = None,
        seed: int = 0,
    ) -> None:
        if preset is None and (window is None or threshold is None):
            raise ValueError(f"give a preset ({', '.join(PRESETS)}), or both window and threshold")
        preset_window, preset_threshold, preset_batches = PRESETS[preset] if preset else (0, 0.0, 1)
        self.window = preset_window if window is None else window
        self.threshold = preset_threshold if threshold is None else threshold
        if self.window < 2:
            raise ValueError(f"window is {self.window}; a variance needs 2 values or more")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold}; give a share from 0 (never stops) to below 1")
        self.every_n_batches = preset_batches if every_n_batches is None else every_n_batches
        if images < 1 or self.every_n_batches < 1:
            raise ValueError(f"images is {images}, every_n_batches {self.every_n_batches}; give 1 or more of each")
        self.images, self.seed = images, seed
        self.history = array.array("d")
        self.places = array.array("q")  # batches before each value
        self.batches = 0
        self.stop_reason: str | None = None
        self._begun: float | None = None
        self._tracking_seconds = self._earlier_seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The whole history: a resumed run goes on with it."""
        return {
            "history": torch.tensor(self.history, dtype=torch.float64),
            "places": torch.tensor(self.places, dtype=torch.int64),
            "batches": self.batches,
            "every_n_batches": self.every_n_batches,
            "images": self.images,
            "seed": self.seed,
            "tracking_seconds": self._tracking_seconds,
            "seconds": self._run_seconds(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a history.

        Raises:
            ValueError: It was made of other examples, or at other batches.
        """
        for name in ("every_n_batches", "images", "seed"):
            if state_dict[name] != getattr(self, name):
                raise ValueError(
                    f"the run was tracked with {name} {state_dict[name]} and would go on with {getattr(self, name)}; "
                    "its variances would mean nothing. Resume with the same number"
                )
        self._take_history(state_dict)
        self.batches = state_dict["batches"]
        self._tracking_seconds, self._earlier_seconds = state_dict["tracking_seconds"], state_dict["seconds"]

    @property
    def has_converged(self) -> bool:
        """Whether the rule ends, or has ended, a run with this history."""
        return self._ratio() < self.threshold

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze the examples; refuse what cannot be tracked."""
        if not isinstance(pl_module, DeterministicObjective):
            raise TypeError(
                f"LossTrackingEarlyStopping needs a module with deterministic_objective(batch), this run trains a "
                f"{type(pl_module).__name__}"
            )
        accumulated = trainer.accumulate_grad_batches
        if self.every_n_batches % accumulated:
            raise ValueError(
                f"every_n_batches is {self.every_n_batches}, the weights change every {accumulated} batches "
                f"(accumulate_grad_batches); set it to {accumulated} or a multiple: each value is of new weights"
            )
        with self._undisturbed(trainer, pl_module):
            self._batch, self._share = self._freeze(trainer, pl_module)
        finite: list[bool] = []
        apply_to_collection(self._batch, Tensor, lambda tensor: finite.append(bool(torch.isfinite(tensor).all())))
        if not all(finite):
            raise ValueError("the tracked batch holds numbers that are not finite; mend the training data")
        if self.has_converged:  # a run that was stopped and is resumed
            self._stop(trainer)
        images: Any = getattr(pl_module, "images_seen", 0)
        if images and not self.batches:
            rank_zero_warn(
                f"this run has seen {images} images without loss tracking; its history begins here, "
                "after the first fall that the threshold was chosen for"
            )
        planned = _planned_batches(trainer)
        if planned is not None and self.threshold and planned <= self.window * self.every_n_batches:
            rank_zero_warn(
                f"loss tracking can never stop this run: it has {planned} batches, the window spans "
                f"{self.window * self.every_n_batches}; give a smaller window or a larger budget"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Look at the weights before their next step; the batch that begins here may be the last."""
        if self._begun is None:  # not before: a rank search is no part of the run that is tracked
            self._begun = time.perf_counter()
        if self.batches % self.every_n_batches == 0:
            value = self._finite_objective(trainer, pl_module)
            self.history.append(value)
            self.places.append(self.batches)
            ratio = self._ratio()
            pl_module.log_dict({"train/tracked_objective": value, "train/variance_ratio": ratio})
            if ratio < self.threshold:
                self._stop(trainer)
        self.batches += 1

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what a checkpoint is about to hold.

        Raises:
            ValueError: A weight, or the objective, is not finite, and no alarm rolls back.
            RuntimeError: The alarm has rolled back too often, or has nothing to go back to.
        """
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        broken = next(
            (
                name
                for name, value in pl_module.state_dict().items()
                if value.is_floating_point() and not torch.isfinite(value).all()
            ),
            None,
        )
        if not trainer.strategy.reduce_boolean_decision(broken is None):
            self._roll_back_or_refuse(trainer, pl_module, f"{broken or 'a weight of another rank'} is not finite")
        self._finite_objective(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Refuse a run without data, which Lightning ends without a word.

        Raises:
            ValueError: There was no batch to track.
        """
        if not trainer.num_training_batches:
            raise ValueError("the tracked batch is empty: the training data hold no example")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why the run ended, or that it could not be stopped, and at what cost."""
        if not trainer.is_global_zero:
            return
        seconds, stopped = self._run_seconds(), self.has_converged
        images = getattr(pl_module, "images_seen", None)
        seen = f"batch {self.batches}{f' ({images} images)' if images is not None else ''}"
        if len(self.history) > self.window:
            verdict = self._verdict()
        else:
            verdict = f"it needs more than {self.window} values, and there were {len(self.history)}"
        cost = f"it took {self._tracking_seconds / seconds if seconds else 0:.1%} of the run's time"
        say(f"loss tracking: {'stopped' if stopped else 'did not stop'} at {seen}: {verdict}; {cost}")
        curve = {
            "window": self.window,
            "threshold": self.threshold,
            "images": self.images,
            "every_n_batches": self.every_n_batches,
            "stopped": stopped,
            "batches": self.batches,
            "tracking_seconds": self._tracking_seconds,
            "seconds": seconds,
            "images_seen": images,
            "batch_images": None if images is None else batch_images(trainer),
            "objective": list(self.history),
            "after_batches": list(self.places),
        }
        write_into_run(trainer, TRACKING_FILE, json.dumps(curve))

    def _stop(self, trainer: Trainer) -> None:
        trainer.should_stop = True
        self.stop_reason = self._verdict()

    def _verdict(self) -> str:
        return (
            f"the variance of the last {self.window} values is {self._ratio():.3g} of that of all, "
            f"{'below' if self.has_converged else 'not below'} {self.threshold:g}"
        )

    def _ratio(self) -> float:
        return variance_ratio(np.frombuffer(self.history), self.window) if self.history else 1.0

    def _run_seconds(self) -> float:
        return self._earlier_seconds + (0.0 if self._begun is None else time.perf_counter() - self._begun)

    @contextmanager
    def _undisturbed(self, trainer: Trainer, module: LightningModule) -> Iterator[None]:
        """Let nothing that happens here reach the training: random numbers, statistics of norms, augmentation."""
        modes = [(part, part.training) for part in module.modules()]
        with isolate_rng(include_cuda=trainer.strategy.root_device.type == "cuda"), torch.no_grad():
            torch.manual_seed(self.seed)
            module.eval()
            try:
                yield
            finally:
                for part, training in modes:
                    part.training = training

    def _freeze(self, trainer: Trainer, module: LightningModule) -> tuple[Any, float]:
        """The rank's examples, and their share of all."""
        loader = trainer.train_dataloader
        if not isinstance(loader, DataLoader) or not hasattr(loader.dataset, "__len__"):
            raise TypeError(
                f"loss tracking takes its examples from a DataLoader over a sized dataset, this run has a "
                f"{type(loader).__name__}"
            )
        count = len(loader.dataset)
        if self.images < trainer.world_size:
            raise ValueError(f"images is {self.images}, with {trainer.world_size} ranks; each rank needs one")
        if self.images <= count:  # evenly over the data: neighbours may be crops of one photo
            places = [number * count // self.images for number in range(self.images)]
        else:
            places = [number % count for number in range(self.images)]
        frozen = DataLoader(
            Subset(loader.dataset, places),
            batch_size=self.images,
            collate_fn=loader.collate_fn,
            generator=torch.Generator(),
        )
        with without_augmentation(trainer):
            # as the training's loop does it
            batch = trainer.precision_plugin.convert_input(next(iter(frozen)))
            batch = module._on_before_batch_transfer(batch)
            batch = trainer.strategy.batch_to_device(batch)
        freeze = getattr(module, "frozen", None)
        # all ranks draw for all examples, so that the draws do not depend on the number of ranks
        share = range(self.images)[trainer.global_rank :: trainer.world_size]
        return _part(freeze(batch) if freeze else batch, share), len(share) / self.images

    def _objective(self, trainer: Trainer, module: LightningModule) -> float:
        """The mean over all ranks."""
        assert isinstance(module, DeterministicObjective)
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)  # what is queued is the training's time
        begun = time.perf_counter()
        with self._undisturbed(trainer, module), trainer.precision_plugin.forward_context():
            mean = module.deterministic_objective(self._batch).float() * self._share
        value = float(trainer.strategy.reduce(mean, reduce_op="sum"))
        self._tracking_seconds += time.perf_counter() - begun
        return value

    def _finite_objective(self, trainer: Trainer, module: LightningModule) -> float:
        value = self._objective(trainer, module)
        while not np.isfinite(value):  # until the alarm refuses to roll back once more
            self._roll_back_or_refuse(trainer, module, f"the tracked objective is {value}")
            value = self._objective(trainer, module)
        return value

    def _roll_back_or_refuse(self, trainer: Trainer, module: LightningModule, found: str) -> None:
        if (alarm := callback_of(trainer, TrainingAlarm)) is not None:
            alarm.act(trainer, module, f"{found} before batch {self.batches + 1}", is_lost=True)
            return
        kept = getattr(trainer.checkpoint_callback, "last_model_path", "")
        there = f"{kept} holds the weights of the last validation, which were finite" if kept else "no checkpoint yet"
        raise ValueError(
            f"{found} before batch {self.batches + 1}; the run stops here ({there}). Start a new run with a lower "
            "learning rate; one that is resumed keeps its optimizer's rate"
        )

    def roll_back(self, state: dict[str, Any]) -> None:
        """Forget the values of weights that are gone; batches count on.

        Args:
            state: Of ``state_dict``, of the checkpoint whose weights the run goes on from.
        """
        self._take_history(state)

    def _take_history(self, state: dict[str, Any]) -> None:
        self.history = array.array("d", state["history"].tolist())
        every = range(0, self.every_n_batches * len(self.history), self.every_n_batches)
        self.places = array.array("q", state.get("places", torch.tensor(every)).tolist())


def _part(batch: Any, places: range) -> Any:
    """Some examples of a batch of nested collections of tensors and lists, such as prompts."""
    if isinstance(batch, Mapping):
        return {name: _part(value, places) for name, value in batch.items()}
    if isinstance(batch, list | tuple) and any(isinstance(value, Tensor | Mapping) for value in batch):
        return type(batch)(_part(value, places) for value in batch)
    if isinstance(batch, list | tuple) or (isinstance(batch, Tensor) and batch.ndim):
        return batch[places.start : places.stop : places.step]
    return batch


def _planned_batches(trainer: Trainer) -> int | None:
    """Batches that the run's budget allows; None if it has none."""
    if (budget := budget_of(trainer)) is not None:
        return -(-budget // int(trainer.datamodule.batch_size))  # type: ignore[attr-defined]
    if trainer.max_steps > 0 and trainer.lightning_module.automatic_optimization:
        return trainer.max_steps * trainer.accumulate_grad_batches
    if trainer.max_epochs and trainer.max_epochs > 0:
        return int(trainer.max_epochs * trainer.num_training_batches)
    return None
