"""What layers put out on the way."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def captured_outputs(network: nn.Module, layers: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Outputs of some layers while the context is open, by name; a later forward replaces an earlier one's."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            found[name] = output.clone()  # the activation behind it may work in place

        return hook

    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
