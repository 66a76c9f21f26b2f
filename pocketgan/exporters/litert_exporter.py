"""LiteRT (once TensorFlow Lite), for Android and others."""

import dataclasses
import json
import re
import struct
from collections import Counter
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pocketgan.exporters.exporter import (
    ExportedModel,
    Exporter,
    ExportOptions,
    LintFinding,
    calibration_photos,
    deployable,
    example_photos,
    file_metadata,
    require,
    thread_count,
    with_pixels,
)
from pocketgan.exporters.quiet import lacks, quiet
from pocketgan.exporters.rewrites import MERGED_UPSAMPLING, merge_upsamplings
from pocketgan.files import write_whole

_METADATA = b"pocketgan"
_ACCEPTED = "accepted is what `pocketgan export --target litert` writes"

# the operations of tensorflow/lite/delegates/xnnpack/README.md, of float and quantised models
# fmt: off
_XNNPACK = frozenset({
    "ABS", "ADD", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CEIL", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D",
    "DEPTH_TO_SPACE", "DEQUANTIZE", "DIV", "ELU", "FLOOR", "FULLY_CONNECTED", "GELU", "HARD_SWISH",
    "LEAKY_RELU", "LOGISTIC", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MUL", "NEG", "PAD", "PRELU",
    "QUANTIZE", "RELU", "RELU6", "RELU_N1_TO_1", "RESHAPE", "RESIZE_BILINEAR", "ROUND", "RSQRT", "SLICE",
    "SOFTMAX", "SPACE_TO_DEPTH", "SPLIT", "SQRT", "SQUARE", "SQUARED_DIFFERENCE", "STRIDED_SLICE", "SUB",
    "TANH", "TRANSPOSE", "TRANSPOSE_CONV",
})
# fmt: on
# what tensorflow/lite/delegates/gpu/common/model_builder.cc takes besides
_GPU = frozenset(
    "CAST COS EXP GATHER LOG MIRROR_PAD ONE_HOT POW RESIZE_NEAREST_NEIGHBOR SELECT_V2 SIN SUM TILE".split()  # noqa: SIM905
)
_ADVICE = {
    "MIRROR_PAD": "train with zero padding, as E2GANGenerator does",
    "GATHER": "train with zero padding in place of reflection, as E2GANGenerator does",
    "GATHER_ND": "train with zero padding in place of reflection, as E2GANGenerator does",
    "REVERSE_V2": "train with zero padding in place of reflection, as E2GANGenerator does",
    "RESIZE_NEAREST_NEIGHBOR": "put the nn.Upsample(scale_factor=2) and a 3×3 nn.Conv2d next to each other in an "
    "nn.Sequential, which the exporter merges",
    "CAST": "none needed: it converts 8-bit pictures, which is cheap",
}


class LiteRTExporter(Exporter):
    """LiteRT's ``.tflite`` for one photo of the training's size.

    The size is fixed whatever ``dynamic_size`` says: delegates take fixed shapes, and the converter bakes the
    transformer's number of tokens in.

    fp16 holds weights in half precision: GPUs compute in it, the CPU in float32. int8 is static: convolutions, padding
    and resizing in int8, with weights per output channel; linear layers, sums, norms, softmax, gates and the photos
    themselves stay in float32.
    """

    suffix = ".tflite"

    def export(
        self,
        network: nn.Module,
        path: Path,
        metadata: dict[str, str],
        size: int,
        size_divisor: int,
        options: ExportOptions | None = None,
    ) -> list[LintFinding]:
        """Write a model with its weights; see ``Exporter.export``."""
        with quiet():
            converter = _require("litert_torch")
            buffers = _require("ai_edge_litert.tools.flatbuffer_utils")
        options = dataclasses.replace(options or ExportOptions(), dynamic_size=False)
        properties = file_metadata(metadata, size, size_divisor, options)
        network = deployable(network).requires_grad_(False)
        merged = merge_upsamplings(network)
        wrapped, picture = with_pixels(network, options.pixels), example_photos(options.pixels, 1, size)
        with quiet():
            try:
                content = converter.convert(wrapped, (picture,)).model_content()
            except (AssertionError, KeyError, RuntimeError, ValueError) as error:
                raise lacks("LiteRT", error, torch.export.export(wrapped, (picture,), strict=False)) from error
            if options.precision != "fp32":
                content = _quantised(content, options)
        model = buffers.read_model_from_bytearray(bytearray(content))
        buffer = buffers.schema_fb.BufferT()
        buffer.data = json.dumps(properties).encode()
        entry = buffers.schema_fb.MetadataT()
        entry.name, entry.buffer = _METADATA, len(model.buffers)
        model.buffers.append(buffer)
        model.metadata = [*(model.metadata or []), entry]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, bytes(buffers.convert_object_to_bytearray(model)))
        codes = [buffers.opcode_to_name(model, operator.opcodeIndex) for operator in model.subgraphs[0].operators]
        return _findings(merged, Counter(codes))

    def import_runtime(self) -> None:
        """Import the interpreter."""
        with quiet():
            for module in ("ai_edge_litert.interpreter", "ai_edge_litert.schema_py_generated"):
                _require(module)

    def load(self, path: Path, threads: int | None = None) -> ExportedModel:
        """Open a model on the CPU; see ``Exporter.load``."""
        self.import_runtime()
        interpreters = _require("ai_edge_litert.interpreter")
        schema = _require("ai_edge_litert.schema_py_generated")
        if not path.is_file():
            raise FileNotFoundError(f"{path} is no file; `pocketgan export` writes one")
        data = path.read_bytes()
        if data[4:8] != b"TFL3":
            raise ValueError(f"{path} ({len(data)} bytes) is no model of LiteRT; {_ACCEPTED}")
        try:
            metadata = _metadata(schema.Model.GetRootAs(data), path)
        except struct.error as error:
            raise ValueError(f"{path} ({len(data)} bytes) is cut off; {_ACCEPTED}") from error
        threads = thread_count(threads)
        try:
            interpreter = interpreters.Interpreter(model_content=data, num_threads=threads)
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{path} ({len(data)} bytes) cannot be run by this LiteRT; {_ACCEPTED}. The runtime says: {error}"
            ) from error
        return _LiteRTModel(interpreter, metadata, threads)


class _LiteRTModel(ExportedModel):
    def __init__(self, interpreter: Any, metadata: dict[str, str], threads: int) -> None:
        self.metadata = metadata
        self.threads = threads
        self._interpreter = interpreter
        self._lock = Lock()  # the photo lies in the interpreter while it computes
        self._photo = interpreter.get_input_details()[0]["index"]
        self._edit = interpreter.get_output_details()[0]["index"]

    def run(self, pictures: Tensor) -> Tensor:
        edits = []
        for picture in pictures.split(1):
            with self._lock:
                self._interpreter.set_tensor(self._photo, picture.numpy())
                self._interpreter.invoke()
                edits.append(torch.from_numpy(self._interpreter.get_tensor(self._edit)))
        return torch.cat(edits)


def _metadata(model: Any, path: Path) -> dict[str, str]:
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == _METADATA:
            written: dict[str, str] = json.loads(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes())
            return written
    raise ValueError(f"{path} is another program's, since it lacks pocketgan's metadata; {_ACCEPTED}")


def _quantised(content: bytes, options: ExportOptions) -> bytes:
    quantizers = _require("ai_edge_quantizer.quantizer")
    operation = _require("ai_edge_quantizer.qtyping").TFLOperationName
    quantizer = quantizers.Quantizer(content)
    if options.precision == "fp16":
        cast = quantizers.AlgorithmName.FLOAT_CASTING
        quantizer.add_weight_only_config(".*", operation.ALL_SUPPORTED, num_bits=16, algorithm_key=cast)
        return bytes(quantizer.quantize(enable_progress_report=False).quantized_model)
    # operations are named after their modules: pocketgan….E2GANGenerator_generator/torch….Sequential_stem/…
    kept = ["LayerNorm", "GroupNorm", "InstanceNorm"]
    kept += [r"/" + "/".join(rf"[\w.]+_{re.escape(part)}" for part in name.split(".")) + "[/;]"
             for name in options.excluded]  # fmt: skip
    # sums and linear layers stay in float32: int8 saves a millisecond of 21 there and costs 20 dB (width 32, 256 px)
    for each in (
        operation.CONV_2D,
        operation.DEPTHWISE_CONV_2D,
        operation.CONV_2D_TRANSPOSE,
        operation.PAD,
        operation.RESIZE_NEAREST_NEIGHBOR,
    ):
        quantizer.add_static_config(f"^(?!.*(?:{'|'.join(kept)}))", each, activation_num_bits=8, weight_num_bits=8)
    photos = [{"args_0": photo.numpy()} for photo in calibration_photos(options)]
    ranges = quantizer.calibrate({"serving_default": photos}, num_threads=torch.get_num_threads())
    return bytes(quantizer.quantize(ranges, enable_progress_report=False).quantized_model)


def _findings(merged: int, codes: Counter[str]) -> list[LintFinding]:
    findings = []
    if merged:
        why = "XNNPACK does not take RESIZE_NEAREST_NEIGHBOR, the operation for it"
        remedy = "merged with the 3×3 convolution after it into a transposed convolution"
        findings.append(LintFinding(MERGED_UPSAMPLING, merged, why, remedy, applied=True))
    for name, number in codes.items():
        if name in _XNNPACK:
            continue
        which = "XNNPACK does not take it" if name in _GPU else "neither XNNPACK nor the GPU delegate takes it"
        advice = _ADVICE.get(name, "replace it in the network, or accept the time that it takes")
        findings.append(LintFinding(name, number, f"{which}: a built-in kernel computes it", advice, applied=False))
    return findings


def _require(module: str) -> ModuleType:
    return require(module, "LiteRT", "litert")
