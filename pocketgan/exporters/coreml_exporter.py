"""Core ML, for Apple's devices: written anywhere, run on a Mac."""

import dataclasses
import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pocketgan.exporters.exporter import (
    ExportedModel,
    Exporter,
    ExportOptions,
    Int8Scheme,
    LintFinding,
    deployable,
    file_metadata,
    require,
    thread_count,
)
from pocketgan.exporters.quiet import lacks, quiet
from pocketgan.files import TEMPORARY_SUFFIX, whole_folder

_METADATA = "pocketgan"
_ACCEPTED = "accepted is what `pocketgan export --target coreml` writes"

# Not among the operations that stay on the Neural Engine. Apple publishes no list of these; the table holds what its
# "Deploying Transformers on the Apple Neural Engine" (machinelearning.apple.com/research/neural-engine-transformers)
# and github.com/hollance/neural-engine (docs/unsupported-layers.md) report, by MIL's names.
_OFF_THE_NEURAL_ENGINE = {
    "instance_norm": (
        "computes statistics of each picture, which some Neural Engines leave to the GPU",
        "train with batch norm, which folds into the convolutions",
    ),
    "conv_transpose": (
        "some Neural Engines leave transposed convolutions to the GPU",
        "train with nearest upsampling and a convolution, as E2GANGenerator does",
    ),
    "layer_norm": (
        "over the last axis of tokens, it makes the Neural Engine move memory, or the GPU compute it",
        "none that keeps the weights; it is small beside the convolutions",
    ),
    "gelu": ("the exact mode is left to the GPU by some Neural Engines", "train with ReLU"),
    "reduce_mean": (
        "over a whole map it leaves some Neural Engines, as in a group norm",
        "train with batch norm, which folds into the convolutions",
    ),
}
_PADS = {
    "reflect": ("Neural Engines pad with constants alone", "train with zero padding, as E2GANGenerator does"),
    "replicate": ("Neural Engines pad with constants alone", "train with zero padding, as E2GANGenerator does"),
}


class CoreMLExporter(Exporter):
    """A Core ML package (a folder) for one photo of the training's size, for iOS 17, macOS 14 and later.

    The size is fixed whatever ``dynamic_size`` says: the Neural Engine takes fixed sizes alone.

    Converted on any system, run on a Mac. fp16 computes in half precision between float32 photos. int8 holds weights
    alone in 8 bits, symmetric, a scale for each output channel, and computes in half precision: the ranges of
    activations are found by coremltools on a Mac only, so that ``calibration`` is not used.

    With uint8 pixels, input and output are Core ML's images (RGB), which apps hand over without a copy.
    """

    suffix = ".mlpackage"
    scheme = Int8Scheme(activations=False)

    def export(
        self,
        network: nn.Module,
        path: Path,
        metadata: dict[str, str],
        size: int,
        size_divisor: int,
        options: ExportOptions | None = None,
    ) -> list[LintFinding]:
        """Write a package; see ``Exporter.export``. Its path must not be inside of another package."""
        with quiet():
            coremltools = _require("coremltools")
        options = dataclasses.replace(options or ExportOptions(), dynamic_size=False)
        properties = file_metadata(metadata, size, size_divisor, options)
        network = deployable(network).requires_grad_(False)
        shape = (1, 3, size, size)
        if options.pixels == "uint8":
            network = _ToPixels(network)
            layout = coremltools.colorlayout.RGB
            photo = coremltools.ImageType("photo", shape, scale=1 / 127.5, bias=[-1.0] * 3, color_layout=layout)
            edit = coremltools.ImageType("edit", color_layout=layout)
        else:
            photo = coremltools.TensorType("photo", shape, dtype=np.float32)
            edit = coremltools.TensorType("edit", dtype=np.float32)
        half = options.precision != "fp32"
        with quiet():
            program = torch.export.export(network, (torch.zeros(shape),), strict=False).run_decompositions({})
            try:
                model = coremltools.convert(
                    program,
                    inputs=[photo],
                    outputs=[edit],
                    minimum_deployment_target=coremltools.target.iOS17,
                    compute_precision=coremltools.precision.FLOAT16 if half else coremltools.precision.FLOAT32,
                    skip_model_load=True,
                )
            except (ValueError, RuntimeError, KeyError) as error:
                raise lacks("Core ML", error, program) from error
            findings = _findings(model._mil_program.functions["main"].operations)
            if options.precision == "int8":
                model = _quantised(model, options)
        model.user_defined_metadata[_METADATA] = json.dumps(properties)
        _write(model, path)
        return findings

    def import_runtime(self) -> None:
        """Import coremltools."""
        with quiet():
            _require("coremltools")

    def runs_here(self) -> bool:
        """Whether this is a Mac."""
        return sys.platform == "darwin"

    def load(self, path: Path, threads: int | None = None) -> ExportedModel:
        """Open a package on a Mac; see ``Exporter.load``. Core ML chooses its threads itself.

        Raises:
            RuntimeError: This is no Mac.
        """
        self.import_runtime()
        coremltools = _require("coremltools")
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; `pocketgan export` writes one")
        if not path.is_dir():
            raise ValueError(f"{path} is a file ({path.stat().st_size} bytes), but a package is a folder; {_ACCEPTED}")
        try:
            written = coremltools.utils.load_spec(str(path)).description.metadata.userDefined
        except Exception as error:
            raise ValueError(f"{path} is no package of Core ML ({error}); {_ACCEPTED}") from error
        if _METADATA not in written:
            raise ValueError(f"{path} is another program's, since it lacks pocketgan's metadata; {_ACCEPTED}")
        if sys.platform != "darwin":
            raise RuntimeError(
                f"{path} runs on Apple's systems alone, and this is {sys.platform}; open it on a Mac, or export to "
                "another target"
            )
        with quiet():
            model = coremltools.models.MLModel(str(path))
        return _CoreMLModel(model, json.loads(written[_METADATA]), thread_count(threads))


class _CoreMLModel(ExportedModel):
    def __init__(self, model: Any, metadata: dict[str, str], threads: int) -> None:
        self.metadata = metadata
        self.threads = threads
        self._model = model

    def run(self, pictures: Tensor) -> Tensor:
        return torch.cat([self._run_one(picture) for picture in pictures.split(1)])

    def _run_one(self, picture: Tensor) -> Tensor:
        if self.metadata["pixels"] == "float32":
            return torch.from_numpy(np.array(self._model.predict({"photo": picture.numpy()})["edit"], np.float32))
        from PIL import Image

        edit = self._model.predict({"photo": Image.fromarray(picture[0].numpy())})["edit"]
        return torch.from_numpy(np.array(edit.convert("RGB")))[None]


class _ToPixels(nn.Module):
    """A network with edits in [0, 255], for Core ML's images; these hold the photos' conversion."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, photo: Tensor) -> Tensor:
        edit: Tensor = (self.network(photo).clamp(-1, 1) + 1) * 127.5
        return edit.round()


def _quantised(model: Any, options: ExportOptions) -> Any:
    """Put weights in 8 bits, but those of excluded modules."""
    optimize = _require("coremltools.optimize.coreml")
    config = optimize.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=512
    )
    constants = [
        operation.name for operation in model._mil_program.functions["main"].operations if operation.op_type == "const"
    ]
    weights = []
    for module in options.excluded:
        # torch.export names a weight after its module, wherever a wrapper holds that
        pattern = re.compile(rf"p_(network_)?{re.escape(module.replace('.', '_'))}_weight(_|$)")
        found = [name for name in constants if pattern.match(name)]
        if not found:
            raise ValueError(f"cannot exclude {module}: the Core ML model has no weight of that name")
        weights += found
    return optimize.linear_quantize_weights(
        model, optimize.OptimizationConfig(global_config=config, op_name_configs=dict.fromkeys(weights))
    )


def _findings(operations: Any) -> list[LintFinding]:
    numbers: Counter[str] = Counter()
    reasons = dict(_OFF_THE_NEURAL_ENGINE)
    for operation in operations:
        name = operation.op_type
        if name == "pad" and operation.mode.val in _PADS:
            name = f"pad ({operation.mode.val})"
            reasons[name] = _PADS[operation.mode.val]
        if name in reasons:
            numbers[name] += 1
    return [LintFinding(name, number, *reasons[name], applied=False) for name, number in numbers.items()]


def _write(model: Any, path: Path) -> None:
    """Write a package whole, in place of what is there."""
    beside = path.with_name(f".{path.name}.new{TEMPORARY_SUFFIX}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with whole_folder(beside) as folder:
            # coremltools refuses other suffixes
            package = folder / "model.mlpackage"
            with quiet():
                model.save(str(package))
            for part in package.iterdir():
                part.replace(folder / part.name)
            package.rmdir()
        if path.is_dir():
            # a folder that is not empty cannot be replaced in one step
            old = path.replace(path.with_name(f".{path.name}.old{TEMPORARY_SUFFIX}"))
            beside.replace(path)
            shutil.rmtree(old)
        else:
            path.unlink(missing_ok=True)
            beside.replace(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _require(module: str) -> ModuleType:
    return require(module, "Core ML", "coreml")
