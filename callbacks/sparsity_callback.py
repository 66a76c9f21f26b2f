"""What both sparsity callbacks share: whom they serve, where masks go, what is said of it."""

from abc import ABC, abstractmethod
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from callbacks.console import say
from callbacks.image_budget import budget_of
from callbacks.rank_search import RankSearch
from lightning_modules import BaseGAN, DiffusionAdaptation, DiffusionTraining, FullFineTuning, LoRAAdaptation
from lightning_modules.diffusion_module import DiffusionModule
from pocketgan.adapters import AllWeights
from pocketgan.compression import ChosenLayers, WeightMask, add_masks, choose_layers, masked_share


class SparsityCallback(Callback, ABC):
    """Masks the convolutions and linear layers of the network that a run trains, and of its moving average.

    Serves ``BaseGAN``, ``FullFineTuning`` and ``LoRAAdaptation`` (the generator), ``DiffusionTraining`` (the network)
    and ``DiffusionAdaptation`` with ``AllWeights`` (the transformer).

    The masks are parametrisations of the weights (``torch.nn.utils.parametrize``): dense weights stay below, optimizers
    hold these, checkpoints store these with what makes the masks again, and ``load_run``, ``validate``, ``test`` and
    ``export`` find them there without this callback. What is deployed or written as a pipeline has plain weights with
    zeros in them.

    In a ``LoRAAdaptation`` the mask applies to W + B A, the weight that is deployed, in every forward: what is measured
    is then what merging gives, and the deltas learn around the zeros. A mask on the base's weights alone, with a dense
    delta beside it, would be lost by merging. The files in ``RUN/adapter`` are PEFT's, dense; whoever merges these
    without the run gets a dense network.

    Args:
        dense_layers: Parts that stay dense, by dotted prefix of their names; the first and the last layer if None.
            Parts that an adapter stores whole (``full_layers``) are dense in any case.
    """

    def __init__(self, dense_layers: list[str] | None = None) -> None:
        self.dense_layers = dense_layers
        self.chosen: ChosenLayers | None = None

    @property
    def group_size(self) -> int:
        """What must divide the inputs of a layer."""
        return 1

    @property
    @abstractmethod
    def last_images(self) -> int:
        """Images at which the masks have come to their end."""

    @abstractmethod
    def make_mask(self, weight: Tensor) -> WeightMask:
        """A mask for a weight that masks nothing yet."""

    @abstractmethod
    def update(self, trainer: Trainer, module: LightningModule) -> float:
        """Move the masks to where they are due after the images seen.

        Returns:
            The share of zeros that they leave.
        """

    def networks(self, module: LightningModule) -> list[nn.Module]:
        """The network in training, and its average where that is a network, too.

        Raises:
            TypeError: The run trains another module.
            ValueError: The module's weights do not train.
        """
        if isinstance(module, BaseGAN | FullFineTuning | LoRAAdaptation):
            return [module.generator, module.generator_ema]
        if isinstance(module, DiffusionAdaptation) and not isinstance(module.adapter, AllWeights):
            raise ValueError(
                f"{type(self).__name__} needs a transformer whose weights train, {type(module.adapter).__name__} "
                "freezes them and stores an adapter for the dense base; set model.adapter to AllWeights"
            )
        if isinstance(module, DiffusionAdaptation | DiffusionTraining):
            return [module.denoiser]
        raise TypeError(
            f"{type(self).__name__} serves BaseGAN, FullFineTuning, LoRAAdaptation, DiffusionTraining and "
            f"DiffusionAdaptation, this run trains a {type(module).__name__}"
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add the masks, before optimizers are made and a checkpoint's weights come."""
        if stage != "fit":
            return
        self.networks(pl_module)  # refuses before anything is changed
        if any(isinstance(callback, RankSearch) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise ValueError(
                f"{type(self).__name__} and RankSearch change the same layers; search ranks first, then train with "
                "--model.ranks RUN/ranks.yaml and without RankSearch"
            )
        if isinstance(pl_module, DiffusionAdaptation):
            # a callback's turn is before the module's, but classes and digest are the dense transformer's;
            # the second time it only checks the classes
            pl_module.setup(stage)
        self.before_masks(trainer, pl_module)
        for network in self.networks(pl_module):
            self.chosen = choose_layers(network, self.dense_layers, self.group_size)
            add_masks(self.chosen.masked, self.make_mask)
        if isinstance(pl_module, DiffusionModule):
            pl_module.start_average()  # in the order of the parameters, which masks change

    def before_masks(self, trainer: Trainer, module: LightningModule) -> None:
        """Look at the dense network."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is masked, and begin."""
        assert self.chosen is not None
        budget = budget_of(trainer)
        if budget is not None and self.last_images >= budget:
            rank_zero_warn(
                f"the run ends at {budget} images, {type(self).__name__} reaches its end at {self.last_images}: the "
                "network will be less sparse than asked for, or have no images to recover; give a larger "
                "budget.images or an earlier end"
            )
        if trainer.is_global_zero:
            weights = sum(layer.weight.numel() for layer, _ in self.chosen.masked.values())
            reasons: dict[str, list[str]] = {}
            for name, reason in self.chosen.dense.items():
                reasons.setdefault(reason, []).append(name)
            dense = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
            say(f"sparsity: {len(self.chosen.masked)} layers with {weights:,} weights; dense stay {dense or 'none'}")
        self.update(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Move the masks on, before a validation or a checkpoint."""
        pl_module.log("train/sparsity", self.update(trainer, pl_module))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how sparse the network has become; a run may end before its schedule does."""
        if trainer.is_global_zero:
            share = masked_share(self.networks(pl_module)[-1])
            say(f"sparsity: {share:.4f} of the weights of masked layers are zero")
