"""ONNX, run by ONNX Runtime."""

import ast
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from pocketgan.exporters.exporter import (
    ExportedModel,
    Exporter,
    ExportOptions,
    Int8Scheme,
    LintFinding,
    calibration_photos,
    deployable,
    example_photos,
    file_metadata,
    in_half,
    require,
    thread_count,
    with_pixels,
)
from pocketgan.exporters.onnx_lint import PROVIDERS, lint_onnx
from pocketgan.exporters.quiet import quiet
from pocketgan.exporters.rewrites import widen_few_outputs
from pocketgan.files import write_whole

# what PyTorch's exporter, with onnxscript's conversion between versions, can write
OPSETS = range(18, 26)


class OnnxExporter(Exporter):
    """ONNX with dynamic batch, height and width; its input is ``photo``, its output ``edit``.

    Args:
        opset: ONNX's operator set, 18 to 25. 23 is the first with ``Attention``, which ONNX Runtime computes in about
            half the time and memory of the single operators that stand for it in earlier ones (measured at
            768 and 1024 px). 20 is for runtimes that lack it.

    Raises:
        ValueError: PyTorch does not export this operator set.
    """

    suffix = ".onnx"
    any_size = True
    # x86 without VNNI adds two products in 16 bits, which weights of 8 bits would overflow
    # (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html)
    scheme = Int8Scheme(weight_bits=7)
    # whose operations the lint asks for
    providers: ClassVar[tuple[str, ...]] = PROVIDERS

    def __init__(self, opset: int = 23) -> None:
        if opset not in OPSETS:
            raise ValueError(
                f"opset is {opset}, but PyTorch exports {OPSETS[0]} to {OPSETS[-1]}; use 23, or 20 for runtimes "
                "without Attention"
            )
        self.opset = opset

    def export(
        self,
        network: nn.Module,
        path: Path,
        metadata: dict[str, str],
        size: int,
        size_divisor: int,
        options: ExportOptions | None = None,
    ) -> list[LintFinding]:
        """Write a checked ONNX file; see ``Exporter.export``."""
        options = options or ExportOptions()
        properties = file_metadata(metadata, size, size_divisor, options)
        model = self.converted(network, size, size_divisor, options)
        if options.precision == "int8":
            model = _quantized(model, options)
        onnx = _require("onnx")
        onnx.helper.set_model_props(model, properties)
        onnx.checker.check_model(model, full_check=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, model.SerializeToString())
        return lint_onnx(model, network, self.providers)

    def converted(
        self, network: nn.Module, size: int, size_divisor: int, options: ExportOptions, optimize: bool = True
    ) -> Any:
        """The ONNX model of a network, not quantised yet.

        Args:
            network: As for ``export``.
            size: Pixels a side that the network was trained at.
            size_divisor: Height and width must be multiples of this many pixels.
            options: All but int8 are heeded.
            optimize: Fold weights, too; otherwise each stays an initializer of the module's own name and value.

        Returns:
            An ``onnx.ModelProto`` whose convolutions and matrix products are named after the network's modules.

        Raises:
            ImportError: A package is not installed.
            ValueError: The network has an operation that this opset lacks.
        """
        _require("onnx")
        passes = _require("onnx_ir.passes.common")
        _require("onnxscript")
        errors = _require("torch.onnx.errors")
        height, width = (
            Dim(f"{side}_by_{size_divisor}") * size_divisor if options.dynamic_size else size
            for side in ("height", "width")
        )
        sides = {1: height, 2: width} if options.pixels == "uint8" else {2: height, 3: width}
        # torch.export takes a dimension of one for a constant: hence two photos, larger than one divisor
        side = size + size_divisor if options.dynamic_size else size
        exported = _with_native_norms(deployable(network))
        widen_few_outputs(exported, keep_weights=not optimize)
        try:
            program = torch.onnx.export(
                with_pixels(in_half(exported) if options.precision == "fp16" else exported, options.pixels),
                (example_photos(options.pixels, 2, side),),
                dynamo=True,
                opset_version=self.opset,
                input_names=["photo"],
                output_names=["edit"],
                dynamic_shapes=({0: Dim("batch"), **sides},),
                verbose=False,
                optimize=optimize,
            )
        except errors.OnnxExporterError as error:
            cause = _first_cause(error)
            if isinstance(cause, ImportError | AttributeError):  # a package is broken, not the network
                raise
            raise ValueError(
                f"ONNX opset {self.opset} cannot hold this network: {str(cause).strip().splitlines()[0]}; replace that "
                "operation, or use another opset"
            ) from error
        assert program is not None, "the dynamo exporter returns a program"
        if not optimize:
            _fold_all_but_weights(program.model)
        _name_after_modules(program.model)
        # stack traces with this machine's paths hang on every node
        passes.ClearMetadataAndDocStringPass()(program.model)
        return program.model_proto

    def import_runtime(self) -> None:
        """Import ONNX Runtime."""
        _require("onnxruntime")

    def load(
        self,
        path: Path,
        threads: int | None = None,
        weights: dict[str, np.ndarray[Any, np.dtype[np.float32]]] | None = None,
    ) -> ExportedModel:
        """Open an ONNX file on the CPU; see ``Exporter.load``.

        Args:
            path: The file.
            threads: How many threads to compute with, 1 or more; as many as PyTorch uses if None.
            weights: Values to take for initializers that are external data of the file.
        """
        runtime = _require("onnxruntime")
        errors = _require("onnxruntime.capi.onnxruntime_pybind11_state")
        if not path.is_file():
            raise FileNotFoundError(f"{path} is no file; `pocketgan export` writes one")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = thread_count(threads)
        # the session reads them while it is made
        held = {name: runtime.OrtValue.ortvalue_from_numpy(value) for name, value in (weights or {}).items()}
        if held:
            options.add_external_initializers(list(held), list(held.values()))
        try:
            session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except (
            errors.Fail,
            errors.InvalidArgument,
            errors.InvalidGraph,
            errors.InvalidProtobuf,
            errors.NotImplemented,
            errors.RuntimeException,
        ) as error:
            raise ValueError(
                f"{path} ({path.stat().st_size} bytes) is no model for onnxruntime {runtime.__version__}; "
                f"accepted is what `pocketgan export --target onnx` writes. The runtime says: {error}"
            ) from error
        metadata = session.get_modelmeta().custom_metadata_map
        if "dynamic_size" not in metadata:
            found = ", ".join(f"{node.name} {node.shape}" for node in session.get_inputs())
            raise ValueError(
                f"{path} is an ONNX model of another program (takes {found}, lacks pocketgan's metadata); "
                "accepted is what `pocketgan export --target onnx` writes"
            )
        return _OnnxModel(session, metadata, options.intra_op_num_threads)


class _OnnxModel(ExportedModel):
    def __init__(self, session: Any, metadata: dict[str, str], threads: int) -> None:
        self.metadata = metadata
        self.threads = threads
        self._session = session

    def run(self, pictures: Tensor) -> Tensor:
        (edits,) = self._session.run(["edit"], {"photo": pictures.numpy()})
        return torch.from_numpy(edits)


class _NativeGroupNorm(nn.Module):
    """Group norm as instance norm of (B, groups, pixels) and a 1×1 depthwise convolution.

    ONNX Runtime has a kernel for ``InstanceNormalization``, but computes ``GroupNormalization`` (opset 21)
    step by step. The convolution is scale, shift and the following ReLU in one pass over memory.

    Args:
        norm: The layer to stand for.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.epsilon = norm.num_groups, norm.eps
        self.affine: nn.Module = nn.Identity()
        if norm.affine:
            convolution = nn.Conv2d(norm.num_channels, norm.num_channels, 1, groups=norm.num_channels)
            with torch.no_grad():
                convolution.weight.copy_(norm.weight[:, None, None, None])
                convolution.bias.copy_(norm.bias)  # type: ignore[union-attr]  # made with one
            self.affine = convolution

    def forward(self, features: Tensor) -> Tensor:
        """Normalise features (B, C, H, W)."""
        grouped = features.reshape(features.shape[0], self.groups, -1)
        return self.affine(F.instance_norm(grouped, eps=self.epsilon).reshape(features.shape))


def _with_native_norms(network: nn.Module) -> nn.Module:
    """Put ``_NativeGroupNorm`` for each group norm inside a network, in place."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.GroupNorm):
            network.set_submodule(name, _NativeGroupNorm(module))
    return network


def _fold_all_but_weights(model: Any) -> None:
    """Fold what is computed of constants and sizes, and leave each initializer as it is."""
    weights = set(model.graph.initializers)
    _require("onnxscript.optimizer").fold_constants_ir(
        model,
        onnx_shape_inference=True,
        should_fold=lambda node: False if any(each and each.name in weights for each in node.inputs) else None,
    )
    # clamp is a Max and a Min, which WebGPU lacks, of a Clip, which it has
    rules = _require("onnxscript.rewriter.rules.common")
    _require("onnxscript.rewriter").rewrite(model, (rules.max_min_rule,))


def _name_after_modules(model: Any) -> None:
    """Name each convolution and matrix product with weights after the module that it computes, as torch tells it."""
    uses: Counter[str] = Counter()
    for node in model.graph:
        if node.op_type in _WEIGHTED and node.inputs[1].const_value is not None:
            weight = node.inputs[1].name
            scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['', '']"))
            # a folded batch norm's convolution stands in the norm's scope, but has its own weight
            module = _inside_wrappers(weight.removesuffix(".weight") if weight.endswith(".weight") else scopes[-2])
            # a module may be used more than once, and names are unique
            node.name = f"{module}{_NODE}{uses[module]}"
            uses[module] += 1


_WEIGHTED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
_NODE = "/use_"


def _inside_wrappers(scope: str) -> str:
    while scope.startswith("network."):
        scope = scope.removeprefix("network.")
    return scope


class _Calibration:
    """Photos for ONNX Runtime's calibration, one at a time (its ``CalibrationDataReader``)."""

    def __init__(self, options: ExportOptions) -> None:
        self._photos = iter(calibration_photos(options))

    def get_next(self) -> dict[str, Any] | None:
        photo = next(self._photos, None)
        return None if photo is None else {"photo": photo.numpy()}


def _quantized(model: Any, options: ExportOptions) -> Any:
    """Make a model int8 by ONNX Runtime's static quantisation (quantise-dequantise nodes, weights per channel)."""
    onnx = _require("onnx")
    quantization = _require("onnxruntime.quantization")
    module_of = {node.name: node.name.rsplit(_NODE, 1)[0] for node in model.graph.node if _NODE in node.name}
    kept = [name for name, module in module_of.items() if module in options.excluded]
    known = set(module_of.values())
    if unknown := sorted(set(options.excluded) - known):
        raise ValueError(f"cannot exclude {', '.join(unknown)}; the layers with weights are {', '.join(sorted(known))}")
    # the quantiser gives a softmax 256 levels between 0 and 1, of which attention over many places would use one
    kept += [
        node.name
        for node in model.graph.node
        if node.op_type == "Softmax" or (node.op_type == "MatMul" and node.name not in module_of)
    ]
    _name_initializers_apart(model)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "int8.onnx"
        with quiet():  # its advice to preprocess, which the exporter's own folding has done
            quantization.quantize_static(
                model,
                file,
                _Calibration(options),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                reduce_range=OnnxExporter.scheme.weight_bits == 7,
                nodes_to_exclude=kept,
                # the quantiser would leave ReLUs to the rounding after them, which _unround_inputs takes away
                extra_options={"QDQKeepRemovableActivations": True},
            )
        quantized = onnx.load(file)
    _unround_inputs(quantized, set(kept))
    return quantized


def _name_initializers_apart(model: Any) -> None:
    """End no initializer's name in a digit: the quantiser appends some to copies, which may be an output's name."""
    apart = {held.name: f"{held.name}.held" for held in model.graph.initializer}
    for held in model.graph.initializer:
        held.name = apart[held.name]
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = apart.get(name, name)


def _unround_inputs(model: Any, kept: set[str]) -> None:
    """Give nodes that stay in float32 their first input unrounded; the quantiser rounds what int8 layers give."""
    maker = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.name in kept:
            dequantize = maker.get(node.input[0])
            if dequantize is not None and dequantize.op_type == "DequantizeLinear":
                quantize = maker.get(dequantize.input[0])
                if quantize is not None and quantize.op_type == "QuantizeLinear":
                    node.input[0] = quantize.input[0]
    _require("onnxscript.optimizer").remove_unused_nodes(model)


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _require(module: str) -> ModuleType:
    return require(module, "ONNX", "onnx")
