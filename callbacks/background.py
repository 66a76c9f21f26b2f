"""Work on one batch while the next is made."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Background(Generic[Item, Result]):
    """Does something to each item of a batch in threads; one batch is in work at a time.

    For work that lets go of Python's lock, as encoding, hashing and NumPy do, beside a model on a GPU.

    Args:
        work: For one item.
        workers: Threads; 0 does the work at once, in the caller's.
    """

    def __init__(self, work: Callable[[Item], Result], workers: int) -> None:
        self._work = work
        self._pool = ThreadPoolExecutor(workers, "background") if workers else None
        self._pending: list[Future[Result]] = []

    def submit(self, items: Sequence[Item]) -> list[Result]:
        """Begin a batch, after the one before.

        Returns:
            The results of the one before; without threads those of this one.

        Raises:
            Exception: What the work raised for the first item of the batch before that it raised for.
        """
        if self._pool is None:
            return [self._work(item) for item in items]
        results = self.wait()
        self._pending = [self._pool.submit(self._without_gradients, item) for item in items]
        return results

    def _without_gradients(self, item: Item) -> Result:
        # a new thread begins with gradients on
        with torch.inference_mode():
            return self._work(item)

    def wait(self) -> list[Result]:
        """Wait for the batch in work.

        Returns:
            Its results.

        Raises:
            Exception: As of `submit`.
        """
        pending, self._pending = self._pending, []
        return [future.result() for future in pending]

    def close(self) -> None:
        """Finish the batch in work, whatever it raises, and end the threads."""
        if self._pool is not None:
            self._pool.shutdown()
