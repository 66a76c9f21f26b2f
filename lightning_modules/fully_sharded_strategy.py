"""FSDP2 for diffusion networks: weights, gradients, optimizer and average in parts, one on each rank."""

from datetime import timedelta
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

# what is gathered, used and given back at once; whole transformer blocks are not: DiT calls an embedding inside its
# first block from outside
UNITS = (Attention, FeedForward, ResnetBlock2D)

WRITTEN_BY = "written_by"


class FullyShardedStrategy(ModelParallelStrategy):
    """``--trainer.strategy fsdp2``: Lightning's FSDP2 over all ranks, with whole checkpoints.

    A ``last.ckpt`` is one file with whole tensors. Other strategies go on from it; it goes on from its own alone.

    Args:
        process_group_backend: Of torch.distributed; the device's own if None.
        timeout: Of its collectives.

    Raises:
        TypeError: The module is no diffusion module; other networks here are small.
    """

    def __init__(
        self, process_group_backend: str | None = None, timeout: timedelta | None = default_pg_timeout
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    def setup_environment(self) -> None:
        """Take all ranks as one group; Lightning's default would take those of each node."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Refuse what is not sharded."""
        if not any(isinstance(module, FSDPModule) for module in self.lightning_module.modules()):  # type: ignore[union-attr]
            raise TypeError(
                f"fsdp2 shards DiffusionAdaptation and DiffusionTraining, this run trains a "
                f"{type(self.lightning_module).__name__}, which is small enough for every rank; use "
                "--trainer.strategy ddp, for GANs ddp_find_unused_parameters_true"
            )
        super().setup(trainer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Say who numbered the optimizer's tensors."""
        super().save_checkpoint({**checkpoint, WRITTEN_BY: "fsdp2"}, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load whole tensors into the parts.

        Raises:
            ValueError: Another strategy wrote the checkpoint.
        """
        written = torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=True)
        if written.get(WRITTEN_BY) != "fsdp2":
            raise ValueError(
                f"{checkpoint_path} was not written by fsdp2, whose optimizer counts parameters otherwise; go on with "
                "the strategy that the run began with"
            )
        return super().load_checkpoint(checkpoint_path, weights_only)


StrategyRegistry.register("fsdp2", FullyShardedStrategy, description="FSDP2 over all ranks, with whole checkpoints")


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a network of diffusers in place, each attention, feed-forward and residual block by itself.

    Args:
        network: On one device; its parameters become DTensors of the same names.
        mesh: One-dimensional, over the ranks that hold a part.
    """
    for module in network.modules():
        if isinstance(module, UNITS):
            fully_shard(module, mesh=mesh)
    # the root, too, gives its weights back after its forward: what is swapped in between is seen
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
