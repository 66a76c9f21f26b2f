"""The end of a run once its pictures get no more like the photos: DVAR's baseline CLIP-s."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch.nn.functional import cosine_similarity

from callbacks.console import say
from lightning_modules import Personalization
from pocketgan.personalization import ImageEmbedding


class ClipScoreEarlyStopping(Callback):
    """Stops a ``Personalization`` when the cosine between samples and photos has not improved for long enough.

    Voronov et al., arXiv 2302.04841, ``ClipEarlyStopper`` in its code's ``early_stopping.py``: a score counts as better
    if it is above the best so far by more than the tolerance; the run stops when more than ``patience`` scores in a row
    were not. Sample i, always of the same prompt and seed, is compared with photo i, beginning again when there are no
    more. What costs is the sampling. Random numbers of the training are left alone. Every rank samples the same
    pictures, so all stop together.

    Args:
        embedding: Embeds pictures; CLIP, whose weights are named by repo id or folder.
        every_n_batches: Batches from one score to the next.
        tolerance: What a better score must be better by; 0.02 in DVAR for textual inversion and Custom Diffusion, 0.04
            for DreamBooth.
        patience: Scores in a row that may fail; 6, 6 and 3 there.
        samples: Pictures of one score; prompts are the training's, the first first.
        steps: Sampling steps.
        guidance: Scale of classifier-free guidance; 7.5 there for textual inversion, 6 for the others.
        seed: Seed of the first picture; the next ones follow. DVAR's code has 37.

    Raises:
        ValueError: A number is out of range.
        TypeError: The run trains another module than ``Personalization``.
    """

    def __init__(
        self,
        embedding: ImageEmbedding,
        every_n_batches: int = 50,
        tolerance: float = 0.02,
        patience: int = 6,
        samples: int = 8,
        steps: int = 50,
        guidance: float = 7.5,
        seed: int = 37,
    ) -> None:
        if min(every_n_batches, samples, steps) < 1 or patience < 0 or tolerance < 0:
            raise ValueError(
                f"every_n_batches {every_n_batches}, samples {samples}, steps {steps} must be 1 or more, patience "
                f"{patience} and tolerance {tolerance} 0 or more"
            )
        self.embedding = embedding
        self.every_n_batches, self.tolerance, self.patience = every_n_batches, tolerance, patience
        self.samples, self.steps, self.guidance, self.seed = samples, steps, guidance, seed
        self.best: float | None = None
        self.failures = self.batches = 0
        self.stop_reason: str | None = None

    def state_dict(self) -> dict[str, Any]:
        """Best score, failures in a row, batches."""
        return {"best": self.best, "failures": self.failures, "batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.best, self.failures = state_dict["best"], state_dict["failures"]
        self.batches = state_dict["batches"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Embed the photos."""
        if not isinstance(pl_module, Personalization):
            raise TypeError(
                f"ClipScoreEarlyStopping serves Personalization, this run trains a {type(pl_module).__name__}"
            )
        self.embedding.to(pl_module.device)
        photos = trainer.datamodule.photos  # type: ignore[attr-defined]
        wanted = torch.arange(self.samples) % len(photos)
        self._photos = self.embedding(photos.to(pl_module.device))[wanted]
        if self.failures > self.patience:  # a run that was stopped and is resumed
            self._stop(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Score, and stop after enough failures."""
        assert isinstance(pl_module, Personalization)
        self.batches += 1
        if self.batches % self.every_n_batches:
            return
        score = self._score(trainer, pl_module)
        pl_module.log(f"train/{self.embedding.score_name}", score)
        if self.best is None or score > self.best + self.tolerance:
            self.best, self.failures = score, 0
            return
        self.failures += 1
        if self.failures > self.patience:
            self._stop(trainer)
            if trainer.is_global_zero:
                say(
                    f"{self.embedding.score_name}: stopped at batch {self.batches} ({pl_module.images_seen} images): "
                    f"{self.stop_reason}"
                )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Say that the run could not be stopped."""
        if trainer.is_global_zero and self.failures <= self.patience:
            best = "there was no score" if self.best is None else f"the best score was {self.best:.4f}"
            say(f"{self.embedding.score_name}: did not stop in {self.batches} batches; {best}")

    def _stop(self, trainer: Trainer) -> None:
        trainer.should_stop = True
        self.stop_reason = (
            f"{self.failures} scores in a row were not above {self.best:.4f} by more than {self.tolerance:g}"
        )

    def _score(self, trainer: Trainer, module: Personalization) -> float:
        data = trainer.datamodule  # type: ignore[attr-defined]
        prompts = [data.prompts[number % len(data.prompts)] for number in range(self.samples)]
        seeds = range(self.seed, self.seed + self.samples)
        with isolate_rng(include_cuda=module.device.type == "cuda"), trainer.precision_plugin.forward_context():
            pictures = module.sample(prompts, seeds, self.steps, self.guidance, data.size)
            score = cosine_similarity(self.embedding(pictures), self._photos).mean()
        return float(trainer.strategy.broadcast(score))
