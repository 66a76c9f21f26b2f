"""What diffusers' caches for transformers have in common."""

import inspect
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.cache_utils import CacheMixin
from typing_extensions import override

from pocketgan.caches.denoiser_cache import DenoiserCache
from pocketgan.sdedit import steps_of_call


class TransformerCache(DenoiserCache):
    """One of diffusers' cache hooks on a pipeline's transformer."""

    # whether the hook keeps apart what a pipeline computes with and without the prompt
    keeps_passes_apart = True
    # hooks that compare what first and last block return: https://github.com/huggingface/diffusers/issues/14280
    works_on_flux2 = True

    @abstractmethod
    def config(self, pipeline: Any, steps: int) -> Any:
        """Make diffusers' configuration of the hook.

        Args:
            pipeline: That it is for.
            steps: Denoising steps of a call.
        """

    @override
    def enable(self, pipeline: Any, arguments: dict[str, Any]) -> None:
        name, kind = type(self).__name__, type(pipeline).__name__
        transformer = getattr(pipeline, "transformer", None)
        if not isinstance(transformer, CacheMixin):
            denoiser = "a U-Net; take DeepCache" if hasattr(pipeline, "unet") else "one without it; take fewer steps"
            raise ValueError(f"{name} needs a transformer with diffusers' enable_cache, {kind} has {denoiser}")
        if kind.startswith("Flux2") and not self.works_on_flux2:
            raise ValueError(f"diffusers' hook for {name} does not work on {kind} yet; take TaylorSeerCache")
        if "_current_timestep" not in inspect.getsource(type(pipeline)):
            raise ValueError(f"{kind} does not tell {name} at which step it is; take fewer steps instead")
        steps = steps_of_call(type(pipeline), arguments)
        if steps is None:
            raise ValueError(
                f"{kind} takes no num_inference_steps, so {name} has nothing to spare; leave the cache out"
            )
        transformer.enable_cache(self.config(pipeline, steps))
        self._pipeline, self._transformer = pipeline, transformer

    @override
    @contextmanager
    def of_one_call(self) -> Iterator[None]:
        self._last_step: Any = None
        apart = self.keeps_passes_apart and _opens_cache_contexts(self._pipeline)
        watch = None if apart else self._transformer.register_forward_pre_hook(self._refuse_second_pass)
        try:
            # for pipelines that open none themselves
            with self._transformer.cache_context("edit"):
                yield
        finally:
            self._transformer._reset_stateful_cache()
            if watch is not None:
                watch.remove()

    def _refuse_second_pass(self, *_: Any) -> None:
        if self._pipeline._current_timestep is self._last_step:
            kind = type(self._pipeline).__name__
            raise ValueError(
                f"{kind} makes two passes a step with these arguments, which {type(self).__name__} would mix up; leave "
                "out the cache, or what asks for the second pass (negative_prompt, or a guidance above 1)"
            )
        self._last_step = self._pipeline._current_timestep


def _opens_cache_contexts(pipeline: Any) -> bool:
    """Whether a pipeline tells its caches one pass from another, which not all do (FluxKontextPipeline of 0.42)."""
    return "cache_context" in inspect.getsource(type(pipeline).__call__)
