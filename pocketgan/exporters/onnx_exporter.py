"""ONNX, run by ONNX Runtime."""

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from pocketgan.exporters.exporter import (
    ExportedModel,
    Exporter,
    ExportOptions,
    LintFinding,
    deployable,
    example_photos,
    file_metadata,
    require,
    with_pixels,
)
from pocketgan.files import write_whole


class OnnxExporter(Exporter):
    """ONNX with dynamic batch, height and width; its input is ``photo``, its output ``edit``.

    Args:
        opset: ONNX's operator set. 23 is the first with ``Attention``, which ONNX Runtime computes in about
            half the time and memory of the single operators that stand for it in earlier ones (measured at
            768 and 1024 px). 20 is for runtimes that lack it.
    """

    suffix = ".onnx"
    precisions = ("fp32",)

    def __init__(self, opset: int = 23) -> None:
        if opset < 18:
            raise ValueError(f"opset is {opset}, but PyTorch exports 18 and above; use 20 or 23")
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
        onnx = _require("onnx")
        passes = _require("onnx_ir.passes.common")
        _require("onnxscript")
        options = options or ExportOptions()
        properties = file_metadata(metadata, size, size_divisor, options)
        height, width = (
            Dim(f"{side}_by_{size_divisor}") * size_divisor if options.dynamic_size else size
            for side in ("height", "width")
        )
        sides = {1: height, 2: width} if options.pixels == "uint8" else {2: height, 3: width}
        # torch.export takes a dimension of one for a constant: hence two photos, larger than one divisor
        side = size + size_divisor if options.dynamic_size else size
        program = torch.onnx.export(
            with_pixels(_with_native_norms(deployable(network)), options.pixels),
            (example_photos(options.pixels, 2, side),),
            dynamo=True,
            opset_version=self.opset,
            input_names=["photo"],
            output_names=["edit"],
            dynamic_shapes=({0: Dim("batch"), **sides},),
            verbose=False,
        )
        assert program is not None, "the dynamo exporter returns a program"
        # stack traces with this machine's paths hang on every node
        passes.ClearMetadataAndDocStringPass()(program.model)
        model = program.model_proto
        onnx.helper.set_model_props(model, properties)
        onnx.checker.check_model(model, full_check=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, model.SerializeToString())
        return []

    def load(self, path: Path, threads: int | None = None) -> ExportedModel:
        """Open an ONNX file on the CPU; see ``Exporter.load``."""
        runtime = _require("onnxruntime")
        errors = _require("onnxruntime.capi.onnxruntime_pybind11_state")
        if not path.is_file():
            raise FileNotFoundError(f"{path} is no file; `pocketgan export` writes one")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
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

    def _run(self, photos: Tensor) -> Tensor:
        (edits,) = self._session.run(["edit"], {"photo": photos.numpy()})
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


def _require(module: str) -> ModuleType:
    return require(module, "ONNX", "onnx")
