"""What teachers that wrap a pipeline of diffusers share."""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import version
from typing import Any

from diffusers import DiffusionPipeline
from torch import nn
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from pocketgan.digest import weights_digest
from pocketgan.teachers.teacher import Teacher

# the dtype is a setting of its own
_OF_ORIGIN = {"transformers_version", "name_or_path", "dtype", "torch_dtype"}


class PipelineTeacher(Teacher):
    """A frozen pipeline of diffusers.

    Args:
        pipeline: With all weights in place.
    """

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        super().__init__()
        self._pipeline = pipeline
        self._pipeline.set_progress_bar_config(disable=True)
        # submodules, so that the pipeline follows this module to its device
        parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
        self.networks = nn.ModuleDict(parts).eval().requires_grad_(False)

    @cached_property
    def _weights_sha256(self) -> str:
        return weights_digest(self.networks)

    @cached_property
    def _config_sha256(self) -> str:
        """Of all that a pipeline's files say beside weights and schedule: the VAE's scaling factor, tokenizers, ..."""
        parts: dict[str, Any] = {
            name: _described(part) for name, part in self._pipeline.components.items() if name != "scheduler"
        }
        # components stand there as (library, class)
        flags = {name: value for name, value in self._pipeline.config.items() if not isinstance(value, (list, tuple))}
        document = json.dumps(_without_origin([flags, parts]), sort_keys=True, default=str)
        return hashlib.sha256(document.encode()).hexdigest()

    @property
    @override
    def settings(self) -> dict[str, Any]:
        """What changes a pixel: weights and schedule rather than the pipeline's name."""
        schedule = {name: value for name, value in self._pipeline.scheduler.config.items() if name[0] != "_"}
        return {
            "name": type(self).__name__,
            "pipeline": type(self._pipeline).__name__,
            "weights_sha256": self._weights_sha256,
            "config_sha256": self._config_sha256,
            "scheduler": {"name": type(self._pipeline.scheduler).__name__, **schedule},
            "diffusers": version("diffusers"),
        }


def _described(part: Any) -> Any:
    """What a part's own files say of it: its configuration, or a tokenizer's vocabulary."""
    if isinstance(part, PreTrainedTokenizerBase):
        return {
            "vocabulary": sorted(part.get_vocab().items()),
            "length": part.model_max_length,
            "padding": part.padding_side,
        }
    tokenizer = getattr(part, "tokenizer", None)
    config = getattr(part, "config", part)
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config) if isinstance(config, Mapping) else None
    return [values, None if tokenizer is None else _described(tokenizer)]


def _without_origin(value: Any) -> Any:
    """Leave out what says where files come from and what wrote them."""
    if isinstance(value, Mapping):
        names = [name for name in value if not str(name).startswith("_") and name not in _OF_ORIGIN]
        return {str(name): _without_origin(value[name]) for name in names}
    return [_without_origin(each) for each in value] if isinstance(value, (list, tuple)) else value
