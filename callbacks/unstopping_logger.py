"""Loggers that never stop a training."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from PIL import Image


class UnstoppingLogger(Logger):
    """A logger whose failures are one warning each kind of call, since no logger may stop a training."""

    _failed: frozenset[str] = frozenset()

    def attempt(self, name: str, call: Callable[[], Any]) -> Any:
        """Make a call of the logger's.

        Args:
            name: What it is, for the warning, which comes once.
            call: Made at once.

        Returns:
            What it returns; None where it raised.
        """
        try:
            return call()
        except Exception as error:  # whatever a service, a disk or a socket raises
            if name not in self._failed:
                self._failed |= {name}
                rank_zero_warn(
                    f"{type(self).__name__}.{name} failed, the training goes on without it: "
                    f"{type(error).__name__}: {error}"
                )
            return None

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Log, or warn."""
        parent: Any = super()
        self.attempt("log_metrics", functools.partial(parent.log_metrics, *args, **kwargs))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Log, or warn."""
        parent: Any = super()
        self.attempt("log_hyperparams", functools.partial(parent.log_hyperparams, *args, **kwargs))

    def save(self) -> None:
        """Save, or warn."""
        self.attempt("save", super().save)

    def finalize(self, status: str) -> None:
        """Close, or warn."""
        self.attempt("finalize", functools.partial(super().finalize, status))

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Look at a checkpoint, or warn."""
        self.attempt("after_save_checkpoint", functools.partial(super().after_save_checkpoint, checkpoint_callback))

    @rank_zero_only
    def log_pictures(self, key: str, pictures: Mapping[str, Image.Image], images: int) -> None:
        """Log pictures, or warn.

        Args:
            key: Name of the panel.
            pictures: PIL images by caption.
            images: Images seen.
        """
        self.attempt("log_pictures", lambda: self._log_pictures(key, pictures, images))

    def _log_pictures(self, key: str, pictures: Mapping[str, Image.Image], images: int) -> None:
        """Log pictures; a logger that shows none has nothing to do."""
