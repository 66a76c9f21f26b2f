"""E2GAN's search for the ranks of an adapter."""

import copy
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.console import say
from callbacks.image_budget import budget_of
from callbacks.requeue import Requeue
from callbacks.trainer_state import callback_of, without_augmentation, write_into_run
from lightning_modules import LoRAAdaptation
from pocketgan.adapters import keep_ranks, ranks_of, resized, scaled_ranks, stored_bytes
from pocketgan.exporters import measure_latency
from pocketgan.run_folder import RANKS_FILE, TRACE_FILE


def best_trial(values: list[float], base: float, tolerance: float, mode: Literal["min", "max"]) -> tuple[int, bool]:
    """Apply the stop rule to the trials so far.

    A trial must improve on the best before it by more than ``tolerance`` times the base's own figure. The base's
    figure is the yardstick because a kernel distance may pass through 0, where a share of the last value means nothing.

    Args:
        values: Figures of the trials, smallest factor first.
        base: The same figure before any adaptation.
        tolerance: Share of the base's figure.
        mode: Whether a small or a large figure is good.

    Returns:
        Place of the best trial, and whether the last trial failed to improve, which ends the search.
    """
    best = 0
    for place, value in enumerate(values[1:], start=1):
        gain = values[best] - value if mode == "min" else value - values[best]
        improves = gain > tolerance * abs(base) or (math.isnan(values[best]) and not math.isnan(value))
        if not improves:
            return best, True
        best = place
    return best, False


class RankSearch(Callback):
    """Finds an adapter's ranks before it is trained, as E2GAN does (arXiv 2401.06127, ablation of LoRA ranks).

    The module's ``ranks`` are relative. They are multiplied by an upscale factor s, one after the other; each s gets a
    short fine-tune from the same base weights on the same images, then a validation. The search ends when the next s no
    longer improves the metric by more than the tolerance. Training then starts from the base with the best ranks, and
    ``RUN/ranks.yaml`` keeps them for further concepts: ``--model.ranks RUN/ranks.yaml`` (without this callback).

    What the paper leaves open is our choice: tolerance, length of a trial, the yardstick of the tolerance. A trial is
    validated by its moving average, which must ramp up (``ema_rampup_ratio``), or it would still show the base.

    No parameter is made or removed while ranks of a distributed run work together: the largest ranks are allocated
    before, a smaller s holds the rest at zero (``pocketgan.adapters.keep_ranks``), and what is stored is cut to size.
    A checkpoint after each trial lets a killed search go on with the next one.

    ``RUN/rank_search.json`` has a row for each trial: factor, ranks, trainable parameters, bytes stored, images,
    seconds, every validation figure; factor 0 is the base as it is. Loggers get the same under ``rank_search/``.

    Args:
        factors: Upscale factors s, ascending.
        metric: A logged validation figure, for example ``val/reconstruction``, ``val/kid_lite0`` or ``val/fid``; an
            unknown one is refused after the base's validation, before any training.
        mode: Whether a small or a large figure is good.
        tolerance: See ``best_trial``.
        images_share: Images of all trials together, beside the run's own, as a share of its budget; at most a quarter.
        byte_budget: Largest ``adapter_model.safetensors`` in bytes; larger factors are left out.
        latency_budget_ms: Largest median latency of the unmerged generator on one photo of the training size on the
            CPU; larger factors are left out. Merged, an adapter costs no time.
        latency_threads: Threads for that measurement.

    Raises:
        ValueError: An argument makes no sense, the run's budget is too small for the trials, or no factor fits.
        TypeError: The run trains another module than ``LoRAAdaptation``.
    """

    def __init__(
        self,
        factors: tuple[int, ...] = (1, 2, 4),
        metric: str = "val/reconstruction",
        mode: Literal["min", "max"] = "min",
        tolerance: float = 0.005,
        images_share: float = 0.25,
        byte_budget: int | None = None,
        latency_budget_ms: float | None = None,
        latency_threads: int = 2,
    ) -> None:
        if not factors or min(factors) < 1 or list(factors) != sorted(set(factors)):
            raise ValueError(f"factors {list(factors)} must be ascending whole numbers from 1, such as [1, 2, 4]")
        if not 0 < images_share <= 0.25:
            raise ValueError(f"images_share is {images_share}; a search may take up to 0.25 of an adaptation's images")
        if mode == "min" and metric.rpartition("/")[2] in {"ssim", "psnr"}:
            raise ValueError(f"{metric} is better when it is larger; set mode to max")
        if tolerance < 0:
            raise ValueError(f"tolerance is {tolerance}; give 0 or more")
        self.factors = factors
        self.metric, self.mode, self.tolerance = metric, mode, tolerance
        self.images_share = images_share
        self.byte_budget, self.latency_budget_ms, self.latency_threads = byte_budget, latency_budget_ms, latency_threads
        self.trace: list[dict[str, Any]] = []
        self.ranks: dict[str, int] | None = None
        self._candidates: dict[int, dict[str, int]] = {}
        self._left_out: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """The trials so far and, after the search, the ranks."""
        return {
            "trace": self.trace,
            "ranks": self.ranks,
            "candidates": self._candidates,
            "metric": self.metric,
            "trial_images": self.trial_images,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the last trial, with the factors that were found to fit the budgets.

        Raises:
            ValueError: The search was broken off, and this one would compare other figures or other trials.
        """
        if state_dict["ranks"] is None:
            for name, found in (("metric", self.metric), ("trial_images", self.trial_images)):
                if state_dict[name] != found:
                    raise ValueError(
                        f"the search was begun with {name} {state_dict[name]} and would go on with {found}; go on with "
                        "the same metric, images_share, factors and budget.images, or start a new run"
                    )
        self.trace, self.ranks = state_dict["trace"], state_dict["ranks"]
        self._candidates = state_dict["candidates"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Allocate the largest ranks that fit the budget in bytes."""
        if stage != "fit":
            return
        if not isinstance(pl_module, LoRAAdaptation):
            raise TypeError(f"RankSearch serves LoRAAdaptation, this run trains a {type(pl_module).__name__}")
        self.trial_images = self._trial_images(trainer)
        self._candidates = self._within_bytes(pl_module)
        largest = self._candidates[max(self._candidates)]
        if largest != ranks_of(pl_module.generator):
            pl_module.allocate(largest)

    def _trial_images(self, trainer: Trainer) -> int:
        budget = budget_of(trainer)
        if budget is None:
            raise ValueError("RankSearch takes a share of the run's budget in images; add the callback ImageBudget")
        batch_size: int = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        batches = int(self.images_share * budget / len(self.factors) / batch_size)
        if not batches:
            raise ValueError(
                f"{self.images_share:g} of {budget} images is less than a batch of {batch_size} for each of "
                f"{len(self.factors)} factors; raise budget.images, or give fewer factors"
            )
        return batches * batch_size

    def _within_bytes(self, module: LoRAAdaptation) -> dict[int, dict[str, int]]:
        candidates: dict[int, dict[str, int]] = {}
        self._left_out = []
        for factor in self.factors:
            ranks = scaled_ranks(module.adapter, factor)
            size = stored_bytes(resized(module.adapter, ranks))
            if self.byte_budget is not None and size > self.byte_budget:
                self._left_out.append(f"factor {factor} takes {size} bytes, above the budget of {self.byte_budget}")
            elif ranks in candidates.values():
                self._left_out.append(f"factor {factor} gives no larger ranks: every layer is at its full rank")
            else:
                candidates[factor] = ranks
        return self._some(candidates)

    def _within_latency(self, trainer: Trainer, module: LoRAAdaptation) -> dict[int, dict[str, int]]:
        candidates = {}
        for factor, ranks in self._candidates.items():
            latency_ms = trainer.strategy.broadcast(self._latency_ms(trainer, module, ranks))
            if self.latency_budget_ms is None or latency_ms <= self.latency_budget_ms:
                candidates[factor] = ranks
            else:
                self._left_out.append(
                    f"factor {factor} takes {latency_ms:.1f} ms, above the budget of {self.latency_budget_ms:g} ms"
                )
        return self._some(candidates)

    def _some(self, candidates: dict[int, dict[str, int]]) -> dict[int, dict[str, int]]:
        if not candidates:
            raise ValueError(f"{self._left_out[0]}; raise the budget or give smaller relative ranks in model.ranks")
        return candidates

    def _latency_ms(self, trainer: Trainer, module: LoRAAdaptation, ranks: dict[str, int]) -> float:
        if self.latency_budget_ms is None or not trainer.is_global_zero:
            return 0.0
        adapter = resized(module.adapter, ranks).cpu()
        tokens = module.text_encoder_ema([module.concept], [module.prompts[module.concept]]).detach().cpu()
        size: int = trainer.datamodule.size  # type: ignore[attr-defined]
        return measure_latency(lambda photo: adapter(photo, tokens), size, self.latency_threads).median_ms

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search, once; the run's config and a resumed state are in place by now."""
        assert isinstance(pl_module, LoRAAdaptation)
        if self.ranks is not None:
            return
        if pl_module.images_seen:
            raise ValueError(
                f"this run has seen {pl_module.images_seen} images without a rank search; start a new run, or resume "
                "it without RankSearch"
            )
        start = copy.deepcopy((pl_module.state_dict(), [optimizer.state_dict() for optimizer in trainer.optimizers]))
        if not self.trace:
            self._candidates = self._within_latency(trainer, pl_module)
            figures = self._validate(trainer, pl_module)
            if self.metric not in figures:
                raise ValueError(
                    f"RankSearch's metric {self.metric} is not logged; this run logs {', '.join(sorted(figures))}"
                )
            self._record(trainer, {"factor": 0, "images": 0, "seconds": 0.0, "figures": figures})
        for factor, ranks in self._candidates.items():
            if any(row["factor"] == factor for row in self.trace):
                continue
            if self._best()[1]:
                break
            self._record(trainer, self._trial(trainer, pl_module, factor, ranks))
            self._restore(trainer, pl_module, start)
            if trainer.checkpoint_callback is not None:
                folder = trainer.checkpoint_callback.dirpath  # type: ignore[attr-defined]
                trainer.save_checkpoint(Path(folder) / "last.ckpt")
        self._finish(trainer, pl_module)

    def _best(self) -> tuple[int, bool]:
        values = [row["figures"][self.metric] for row in self.trace]
        return best_trial(values[1:], values[0], self.tolerance, self.mode)

    def _trial(self, trainer: Trainer, module: LoRAAdaptation, factor: int, ranks: dict[str, int]) -> dict[str, Any]:
        begun = time.perf_counter()
        for generator in (module.generator, module.generator_ema):
            keep_ranks(generator, ranks)
        devices = [trainer.strategy.root_device] if trainer.strategy.root_device.type == "cuda" else []
        requeue = callback_of(trainer, Requeue)
        with torch.random.fork_rng(devices), _unlogged(module):
            while module.images_seen < self.trial_images:
                for index, batch in enumerate(trainer.datamodule.train_dataloader()):  # type: ignore[attr-defined]
                    if requeue is not None and requeue.is_due(trainer):
                        module.images_seen = 0  # the trial's are none of the run's
                        requeue.leave(trainer, f"in the trial of factor {factor}, which begins anew")
                    trainer.strategy.training_step(trainer.strategy.batch_to_device(batch), index)
                    if module.images_seen >= self.trial_images:
                        break
        adapter = resized(module.generator, ranks)
        trained = [*adapter.parameters(), *module.text_encoder.parameters()]
        return {
            "factor": factor,
            "ranks": ranks,
            "parameters": sum(weight.numel() for weight in trained if weight.requires_grad),
            "bytes": stored_bytes(adapter),
            "images": module.images_seen,
            "figures": self._validate(trainer, module),
            "seconds": time.perf_counter() - begun,
        }

    def _validate(self, trainer: Trainer, module: LoRAAdaptation) -> dict[str, float]:
        with without_augmentation(trainer), torch.no_grad():
            module.on_validation_start()
            for index, batch in enumerate(trainer.datamodule.val_dataloader()):  # type: ignore[attr-defined]
                trainer.strategy.validation_step(trainer.strategy.batch_to_device(batch), index)
            figures = {f"val/{name}": value.item() for name, value in module.quality.compute().items()}
            module.quality.reset()
        # every rank decides on the same numbers, to the last bit
        return trainer.strategy.broadcast(figures)

    @staticmethod
    def _restore(trainer: Trainer, module: LoRAAdaptation, start: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
        weights, optimizer_states = copy.deepcopy(start)
        module.load_state_dict(weights)
        for optimizer, state in zip(trainer.optimizers, optimizer_states, strict=True):
            optimizer.load_state_dict(state)
        module.images_seen = 0

    def _record(self, trainer: Trainer, row: dict[str, Any]) -> None:
        self.trace.append(row)
        figures = {name: value for name, value in row.items() if isinstance(value, int | float)}
        ranks = {f"rank/{layer}": rank for layer, rank in row.get("ranks", {}).items()}
        for logger in trainer.loggers:
            named = {**figures, **row["figures"], **ranks}
            logger.log_metrics({f"rank_search/{name}": float(value) for name, value in named.items()}, len(self.trace))
            logger.save()  # a killed search must not lose it
        if trainer.is_global_zero:
            write_into_run(trainer, TRACE_FILE, json.dumps(self.trace, indent=2))
            if row["factor"]:
                say(
                    f"rank search: factor {row['factor']}, {row['parameters']:,} parameters, {row['bytes']:,} bytes, "
                    f"{row['images']} images: {self.metric} {row['figures'][self.metric]:.4g}"
                )

    def _finish(self, trainer: Trainer, module: LoRAAdaptation) -> None:
        best, _ = self._best()
        row = self.trace[1 + best]
        self.ranks = module.ranks = row["ranks"]
        for generator in (module.generator, module.generator_ema):
            keep_ranks(generator, self.ranks)
        before, value = self.trace[0]["figures"][self.metric], row["figures"][self.metric]
        if trainer.is_global_zero:
            if not (value < before if self.mode == "min" else value > before):
                say(
                    f"rank search: no trial is better than the base itself ({self.metric} {value:.4g} after, "
                    f"{before:.4g} before); raise budget.images or check the learning rate"
                )
            write_into_run(trainer, RANKS_FILE, yaml.safe_dump(self.ranks, sort_keys=False))
            for reason in self._left_out:
                say(f"rank search: {reason}; left out")
            if best == 0 and len(self.trace) > 2:
                say(
                    f"rank search: no factor above {row['factor']} improves {self.metric} by more than "
                    f"{self.tolerance:g} of the base's figure, {before:.4g}"
                )
            say(
                f"rank search: keeps factor {row['factor']} after {sum(trial['images'] for trial in self.trace)} "
                "images beside the run's own; use its ranks again with --model.ranks "
                f"{Path(trainer.default_root_dir) / RANKS_FILE}"
            )


@contextmanager
def _unlogged(module: LightningModule) -> Iterator[None]:
    """Keep a trial's losses out of the run's own curves."""
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.log
