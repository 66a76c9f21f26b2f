"""A module that is neither trained nor saved."""

from typing import Any, Self

from torch import nn


class FrozenModule(nn.Module):
    """A module that never learns: always in eval mode and outside every checkpoint.

    Its weights come from a file of their own. In checkpoints they would only be copies, larger than many a
    GAN, and a run evaluated with one network could not be loaded where another is used. The module still
    moves to a device with its parent.
    """

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Stay in eval mode, whatever the parent does."""
        return super().train(False)

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:  # noqa: ARG002
        """Return the parent's dictionary as it came: nothing is added."""
        return {} if destination is None else destination

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # a strict load asks for every key, so the module offers itself its present tensors
        state_dict.update(super().state_dict(prefix=prefix))
        super()._load_from_state_dict(state_dict, prefix, *args)
