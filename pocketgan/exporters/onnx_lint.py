"""Operations of an ONNX model that leave an accelerator."""

from collections import Counter
from collections.abc import Collection
from typing import Any

from torch import nn

from pocketgan.exporters.exporter import LintFinding

# What each of ONNX Runtime's accelerated execution providers takes, from their own tables: nnapi_supported_ops.md and
# coreml_supported_mlprogram_ops.md (in tools/ci_build/github of microsoft/onnxruntime), and docs/webgpu-operators.md
# of onnxruntime-web 1.30.0. The rest is computed on the CPU, and the map is copied there and back.
_TAKEN = {
    "Core ML": frozenset(
        """
        Add ArgMax AveragePool Cast Ceil Clip Concat Conv ConvTranspose Cos DepthToSpace Div Elu Erf Exp
        GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool GridSample GroupNormalization HardSigmoid Identity
        InstanceNormalization LayerNormalization LeakyRelu MatMul Max MaxPool Mul PRelu Pow Range Reciprocal
        ReduceMax ReduceMean ReduceSum Relu Reshape Resize Round Shape Sigmoid Sin Slice Softmax Softplus
        Split Sqrt Squeeze Sub Tanh Tile Transpose Unsqueeze
        """.split()  # noqa: SIM905  a table, not a column
    ),
    "NNAPI": frozenset(
        """
        Abs Add AveragePool Cast Clip Concat Conv DepthToSpace DequantizeLinear Div Elu Exp Flatten Floor
        Gather Gemm GlobalAveragePool GlobalMaxPool Identity Log MatMul Max MaxPool Min Mul Neg PRelu Pad Pow
        QLinearConv QLinearMatMul QuantizeLinear Relu Reshape Resize Sigmoid Sin Slice Softmax Sqrt Squeeze
        Sub Tanh Transpose Unsqueeze
        """.split()  # noqa: SIM905  a table, not a column
    ),
    "WebGPU": frozenset(
        """
        Abs Acos Acosh Add ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Clip
        Concat Conv ConvTranspose Cos Cosh CumSum DFT DepthToSpace DequantizeLinear Div Einsum Elu Equal Erf
        Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool
        Greater GreaterOrEqual GridSample HardSigmoid HardSwish If InstanceNormalization LayerNormalization
        LeakyRelu Less LessOrEqual Log MatMul MaxPool MemcpyFromHost MemcpyToHost Mul Neg Not Pad Pow Range
        Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
        ReduceSum ReduceSumSquare Relu Reshape Resize ScatterND Shape Sigmoid SimplifiedLayerNormalization Sin
        Sinh Slice Softmax Split Sqrt Squeeze Sub Tan Tanh ThresholdedRelu Tile Transpose Unsqueeze Where
        """.split()  # noqa: SIM905  a table, not a column
    ),
}
PROVIDERS = tuple(_TAKEN)
_MODES = frozenset({"DepthToSpace", "Pad"})
_REMEDIES = {
    "Attention": "--opset 20, where it is matrix products and a softmax",
    "DepthToSpace": "--fixed_size for Core ML, another shuffle for NNAPI",
    "ConvTranspose": "nearest upsampling and a convolution, as E2GANGenerator has",
    "GroupNormalization": "instance norm over the groups and a 1×1 depthwise convolution",
    "InstanceNormalization": "training with --model.generator.norm BatchNorm, which folds into the convolution",
    "DequantizeLinear": "--precision fp16 for these",
    "Pad": "zero padding inside the convolution",
    "QuantizeLinear": "--precision fp16 for these",
}


def lint_onnx(model: Any, network: nn.Module, providers: Collection[str] = PROVIDERS) -> list[LintFinding]:
    """Find the operations that ONNX Runtime's accelerated providers hand to the CPU, or have slow kernels for.

    Args:
        model: ``onnx.ModelProto``.
        network: What it was made of: tells which rewrites were applied.
        providers: Those of ``PROVIDERS`` that it may run on.

    Returns:
        One finding a kind of operation, what is left before what was replaced.
    """
    # arithmetic on sizes is of few numbers, and the CPU's anyway; what is of weights alone is computed once
    exempt = _sizes(model) | _constants(model)
    counts: Counter[tuple[str, str]] = Counter()
    for node in model.graph.node:
        if node.op_type != "Shape" and not exempt.issuperset(node.output):
            mode = next((attribute.s.decode() for attribute in node.attribute if attribute.name == "mode"), "")
            if node.op_type == "Pad":
                mode = mode or "constant"
            counts[node.op_type, mode if node.op_type in _MODES else ""] += 1
    findings = [
        LintFinding(
            f"{operation} ({mode})" if mode else operation, number, why, _remedy(operation, providers), applied=False
        )
        for (operation, mode), number in sorted(counts.items())
        if (why := _cost(operation, mode, providers))
    ]
    if group_norms := sum(isinstance(module, nn.GroupNorm) for module in network.modules()):
        why = "ONNX Runtime computes it in single steps on the CPU; NNAPI and WebGPU have no kernel"
        findings.append(
            LintFinding("GroupNormalization", group_norms, why, _REMEDIES["GroupNormalization"], applied=True)
        )
    return findings


def _sizes(model: Any) -> set[str]:
    """Names of the values that are whole numbers of 64 bits: shapes and indices."""
    from onnx import TensorProto, shape_inference

    inferred = shape_inference.infer_shapes(model).graph
    return {
        value.name
        for value in (*inferred.value_info, *inferred.output)
        if value.type.tensor_type.elem_type == TensorProto.INT64
    }


def _constants(model: Any) -> set[str]:
    """Names of the values that no photo changes."""
    known = {held.name for held in model.graph.initializer} | {""}  # an input that is left out has no name
    for node in model.graph.node:  # each after those that it reads
        if known.issuperset(node.input):
            known.update(node.output)
    return known


def _cost(operation: str, mode: str, providers: Collection[str]) -> str:
    """Why an operation is none for the accelerators; empty if all take it."""
    phones = not {"NNAPI", "Core ML"}.isdisjoint(providers)
    if operation == "Pad" and mode != "constant":
        lacking = "NNAPI pads with constants alone, and Core ML not at all; elsewhere " if phones else ""
        return f"{lacking}a pass over the map of its own"
    if operation == "DepthToSpace" and mode == "CRD" and phones:
        return "NNAPI takes DCR alone, and Core ML takes CRD at a fixed size: else the map goes to the CPU and back"
    without = _lacking(operation, providers)
    return f"no kernel in {', '.join(without)}: the map goes to the CPU and back" if without else ""


def _remedy(operation: str, providers: Collection[str]) -> str:
    having = ["CPU", *(provider for provider in providers if provider not in _lacking(operation, providers))]
    return _REMEDIES.get(operation, f"a provider that has one ({', '.join(having)})")


def _lacking(operation: str, providers: Collection[str]) -> list[str]:
    return [provider for provider in providers if operation not in _TAKEN[provider]]
