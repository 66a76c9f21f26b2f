"""DVAR's rule on a loss that was followed on frozen inputs."""

from typing import Any

import numpy as np


def variance_ratio(history: "np.ndarray[Any, np.dtype[np.float64]]", window: int) -> float:
    """DVAR's criterion: population variance of the last ``window`` values over that of all.

    Args:
        history: (T,) values since the run's first step.
        window: Number of the last values.

    Returns:
        The ratio; 1 while there are at most ``window`` values, or where they never changed.
    """
    spread = float(np.var(history))
    return float(np.var(history[-window:])) / spread if len(history) > window and spread else 1.0


def values_until_stop(history: "np.ndarray[Any, np.dtype[np.float64]]", window: int, threshold: float) -> int | None:
    """How many of a run's values DVAR's rule looks at before it stops.

    Args:
        history: (T,) values since the run's first step.
        window: Number of the last values.
        threshold: Ratio of variances below which to stop.

    Returns:
        From ``window`` + 1 to T; None if it never stops.
    """
    counts = range(window + 1, len(history) + 1)
    return next((count for count in counts if variance_ratio(history[:count], window) < threshold), None)
