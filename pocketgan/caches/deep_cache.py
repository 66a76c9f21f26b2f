"""DeepCache for U-Nets."""

import importlib.util
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typing_extensions import override

from pocketgan.caches.denoiser_cache import DenoiserCache


class DeepCache(DenoiserCache):
    """Computes the deep part of a U-Net only each ``interval``-th step (Ma et al., CVPR 2024, arXiv 2312.00858).

    The PyPI package DeepCache does it. Between two whole passes only the blocks down to ``branch`` are computed; what
    lies below comes from the last whole pass.

    Args:
        interval: Steps from one whole pass to the next (N in the paper); 1 caches nothing and changes no bit.
        branch: Skip branch whose blocks are computed at each step; 0, the outermost, spares most.

    Raises:
        ValueError: A number is out of range.
        ModuleNotFoundError: The package is not installed.
    """

    def __init__(self, interval: int = 3, branch: int = 0) -> None:
        if interval < 1 or branch < 0:
            raise ValueError(f"interval is {interval} and branch {branch}; give at least 1 and 0")
        if importlib.util.find_spec("DeepCache") is None:
            raise ModuleNotFoundError("DeepCache needs the package of that name; run: pip install 'pocketgan[cache]'")
        self.interval, self.branch = interval, branch

    @override
    def enable(self, pipeline: Any, arguments: dict[str, Any]) -> None:
        from DeepCache import DeepCacheSDHelper

        if not hasattr(pipeline, "unet"):
            raise ValueError(
                f"DeepCache spares a U-Net's work, {type(pipeline).__name__} has none; take FirstBlockCache, "
                "TaylorSeerCache, FasterCache or MagCache"
            )
        default = inspect.signature(type(pipeline).__call__).parameters["num_inference_steps"].default
        pipeline.scheduler.set_timesteps(arguments.get("num_inference_steps", default))
        steps = pipeline.scheduler.timesteps.tolist()
        if len(set(steps)) < len(steps):
            # the package finds its place in the schedule by the step's value
            raise ValueError(
                f"{type(pipeline.scheduler).__name__} comes to some steps twice, and DeepCache would lose count; set "
                "the teacher's scheduler to DDIMScheduler, EulerDiscreteScheduler or DPMSolverMultistepScheduler"
            )
        self._helper = DeepCacheSDHelper(pipe=pipeline)
        self._helper.set_params(cache_interval=self.interval, cache_branch_id=self.branch)
        self._helper.enable()

    @override
    @contextmanager
    def of_one_call(self) -> Iterator[None]:
        self._helper.start_timestep = None
        self._helper.cached_output = {}
        yield
