"""ExecuTorch, on the CPU by XNNPACK."""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
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
    in_half,
    require,
    thread_count,
    with_pixels,
)
from pocketgan.exporters.quiet import lacks, quiet
from pocketgan.exporters.rewrites import MERGED_UPSAMPLING, decompositions, merge_upsamplings
from pocketgan.files import write_whole

_METADATA = "pocketgan_metadata"
_ACCEPTED = "accepted is what `pocketgan export --target executorch` writes"

# what XNNPACK lacks, see executorch/backends/xnnpack/partition/config, and what stands for it
_REWRITES = {
    "aten.scaled_dot_product_attention.default": "batched products of matrices and a softmax, without torch's guard "
    "for masked rows",
    "aten.layer_norm.default": "means over the last two of four dimensions, and products",
    "aten.group_norm.default": "means over pixels and over a group's channels, and products",
    "aten.instance_norm.default": "means over pixels, and products",
    "aten.reflection_pad2d": "the picture's own rows and columns, joined",
    "aten.replication_pad2d": "the picture's own rows and columns, joined",
}
_ADVICE = {
    "upsample_nearest2d": "put the nn.Upsample(scale_factor=2) and a 3×3 nn.Conv2d next to each other in an "
    "nn.Sequential, which the exporter merges",
    "gelu": "train with ReLU for fp16; in fp32 it is delegated",
    **dict.fromkeys(
        ("_to_dim_order_copy", "permute_copy", "round"),
        "none needed: it converts photos or 8-bit pictures, which is cheap",
    ),
}


class ExecuTorchExporter(Exporter):
    """ExecuTorch's ``.pte`` for one photo of the training's size; whole in XNNPACK where XNNPACK has the operations.

    The size is fixed whatever ``dynamic_size`` says: XNNPACK takes no reshape to a size that is not known, and the
    transformer's tokens are one.

    fp16 computes in half precision between float32 photos; the file holds convolutions' weights in float32 all the same
    (backends/xnnpack/operators/op_conv2d.py), so that it is no smaller. int8 is PyTorch's export
    quantisation with the scheme of ExecuTorch's ``XNNPACKQuantizer``: convolutions, linear layers and the sums after
    them in int8, with weights per output channel; norms, softmax and gates stay in float32.
    """

    suffix = ".pte"

    def export(
        self,
        network: nn.Module,
        path: Path,
        metadata: dict[str, str],
        size: int,
        size_divisor: int,
        options: ExportOptions | None = None,
    ) -> list[LintFinding]:
        """Write a program with its weights; see ``Exporter.export``."""
        with quiet():
            exir = _require("executorch.exir")
            partitioner = _require("executorch.backends.xnnpack.partition.xnnpack_partitioner").XnnpackPartitioner()
            runtime = _require("executorch.runtime").Runtime.get()
        options = dataclasses.replace(options or ExportOptions(), dynamic_size=False)
        properties = file_metadata(metadata, size, size_divisor, options)
        network = deployable(network).requires_grad_(False)
        merged = merge_upsamplings(network)
        if options.precision == "fp16":
            network = in_half(network)
        # between pictures, quantisation sees the network's own values
        photo = example_photos("float32", 1, size)
        with quiet():
            program = torch.export.export(network, (photo,), strict=False)
            rewritten = _rewritten(program.graph)
            program = program.run_decompositions(decompositions())
            module = _quantised(program, options) if options.precision == "int8" else program.module()
            picture = example_photos(options.pixels, 1, size)
            program = torch.export.export(with_pixels(module, options.pixels), (picture,), strict=False)
            try:
                edge = exir.to_edge_transform_and_lower(
                    program,
                    partitioner=[partitioner],
                    constant_methods={_METADATA: _as_tensor(properties)},
                )
                left = _outside(edge.exported_program().graph)
                compiled = edge.to_executorch()
            except (RuntimeError, torch._export.verifier.SpecViolationError) as error:
                raise lacks("ExecuTorch", error, program) from error
        _refuse_absent(compiled.exported_program(), set(runtime.operator_registry.operator_names))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, bytes(compiled.buffer))
        return _findings(merged, rewritten, left)

    def import_runtime(self) -> None:
        """Import the runtime with its kernels."""
        with quiet():
            _require("executorch.runtime").Runtime.get()

    def load(self, path: Path, threads: int | None = None) -> ExportedModel:
        """Open a program on the CPU; see ``Exporter.load``.

        ExecuTorch has one pool of threads for all programs: models of other numbers of threads make it anew by turns.
        """
        self.import_runtime()
        runtime = _require("executorch.runtime").Runtime.get()
        if not path.is_file():
            raise FileNotFoundError(f"{path} is no file; `pocketgan export` writes one")
        data = path.read_bytes()
        if data[4:6] != b"ET":
            raise ValueError(f"{path} ({len(data)} bytes) is no program of ExecuTorch; {_ACCEPTED}")
        try:
            program = runtime.load_program(data)
            named = _METADATA in program.method_names
            metadata = json.loads(bytes(program.load_method(_METADATA).execute([])[0].tolist())) if named else {}
            model = _ExecuTorchModel(data, metadata, thread_count(threads)) if named else None
        except RuntimeError as error:
            raise ValueError(
                f"{path} ({len(data)} bytes) cannot be run by this ExecuTorch; {_ACCEPTED}. The runtime says: {error}"
            ) from error
        if model is None:
            raise ValueError(
                f"{path} is another program's (methods {', '.join(sorted(program.method_names))}, "
                f"none {_METADATA}); {_ACCEPTED}"
            )
        return model


class _ThreadPool:
    """ExecuTorch's pool of threads, one for all programs of a process.

    XNNPACK keeps a pointer to it in every method that is loaded, and making it anew frees what they point to: a method
    is good for the generation in which it was loaded.

    Attributes:
        lock: Held while methods are loaded and run.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self._generation = 0

    def sized(self, threads: int) -> int:
        """Make the pool anew if it has another number of threads.

        Returns:
            Its generation.
        """
        library = _require("executorch.extension.pybindings.portable_lib")
        if library._threadpool_get_thread_count() != threads:
            library._unsafe_reset_threadpool(threads)
            self._generation += 1
        return self._generation


_POOL = _ThreadPool()


class _ExecuTorchModel(ExportedModel):
    def __init__(self, data: bytes, metadata: dict[str, str], threads: int) -> None:
        self.metadata = metadata
        self.threads = threads
        self._data = data
        with _POOL.lock:
            self._load(_POOL.sized(threads))

    def _load(self, generation: int) -> None:
        self._generation = generation
        # programs keep their methods: another program loads another
        self._program = _require("executorch.runtime").Runtime.get().load_program(self._data)
        self._forward = self._program.load_method("forward")

    def run(self, pictures: Tensor) -> Tensor:
        with _POOL.lock:
            generation = _POOL.sized(self.threads)
            if generation != self._generation:
                self._load(generation)
            # the runtime reads memory in order, whatever the strides
            return torch.cat([self._forward.execute([each.contiguous()])[0].clone() for each in pictures.split(1)])


def _quantised(program: torch.export.ExportedProgram, options: ExportOptions) -> nn.Module:
    quantizers = _require("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    pt2e = _require("torchao.quantization.pt2e.quantize_pt2e")
    quantizer = quantizers.XNNPACKQuantizer()
    quantizer.set_global(quantizers.get_symmetric_quantization_config(is_per_channel=True))
    quantizer.set_filter_function(partial(is_quantised, options.excluded))
    prepared = pt2e.prepare_pt2e(program.module(), quantizer)
    with torch.no_grad():
        for photo in calibration_photos(dataclasses.replace(options, pixels="float32")):
            prepared(photo)
    converted: nn.Module = pt2e.convert_pt2e(prepared)
    return converted


_QUANTISED = frozenset(
    {
        torch.ops.aten.conv2d.default,
        torch.ops.aten.conv_transpose2d.input,
        torch.ops.aten.linear.default,
        torch.ops.aten.relu.default,
        torch.ops.aten.add.Tensor,
    }
)


def is_quantised(excluded: Sequence[str], node: torch.fx.Node) -> bool:
    """Whether int8 takes a node of an exported network: a convolution, a product with weights, a ReLU, a sum.

    Args:
        excluded: Modules whose nodes it leaves.
        node: Of the graph before decomposition.
    """
    if node.op != "call_function":
        return True  # a weight goes with its operation
    stack = [(str(name), str(kind)) for name, kind in node.meta.get("nn_module_stack", {}).values()]
    inside = any(_is_within(name, module) for name, _ in stack for module in excluded)
    return node.target in _QUANTISED and not inside and not any("Norm" in kind for _, kind in stack)


def _is_within(name: str, module: str) -> bool:
    # the stack's names may start with the root's
    name = name.removeprefix("L['self'].")
    return name == module or name.startswith(f"{module}.")


def _as_tensor(metadata: dict[str, str]) -> Tensor:
    return torch.tensor(list(json.dumps(metadata).encode()), dtype=torch.uint8)


def _operation(target: Any) -> str:
    name = str(getattr(target, "__name__", target))
    return name.removeprefix("aten.").removeprefix("dim_order_ops.").split(".")[0]


def _rewritten(graph: torch.fx.Graph) -> Counter[str]:
    """Operations for which others will stand, by keys of ``_REWRITES``."""
    names = (
        {"reflect": "aten.reflection_pad2d", "replicate": "aten.replication_pad2d"}.get(str(node.args[2]), "")
        if node.target is torch.ops.aten.pad.default and len(node.args) > 2
        else str(node.target)
        for node in graph.nodes
    )
    return Counter(name for name in names if name in _REWRITES)


def _outside(graph: torch.fx.Graph) -> Counter[str]:
    """Operations outside of XNNPACK, by name."""
    names = (_operation(node.target) for node in graph.nodes if node.op == "call_function")
    return Counter(name for name in names if name not in {"executorch_call_delegate", "getitem"})


def _findings(merged: int, rewritten: Counter[str], left: Counter[str]) -> list[LintFinding]:
    lacked = "XNNPACK has no such operation"
    findings = [
        LintFinding(name.split(".")[1], number, lacked, f"made of {_REWRITES[name]}", applied=True)
        for name, number in rewritten.items()
    ]
    if merged:
        remedy = "merged with the 3×3 convolution after it into a transposed convolution"
        findings.append(LintFinding(MERGED_UPSAMPLING, merged, lacked, remedy, applied=True))
    why = "XNNPACK does not take it: a portable kernel computes it, on one thread"
    other = "replace it in the network, or accept the time that it takes"
    return findings + [
        LintFinding(name, number, why, _ADVICE.get(name, other), applied=False) for name, number in left.items()
    ]


def _refuse_absent(program: torch.export.ExportedProgram, kernels: set[str]) -> None:
    """Refuse what lowers, but has no kernel in the runtime.

    Raises:
        ValueError: There is such an operation.
    """
    operations = {node.target.name() for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    if absent := sorted(operations - kernels):
        raise ValueError(
            f"ExecuTorch lacks a kernel for an operation of the network: {', '.join(absent)}; replace it in the "
            "network, or export to another target"
        )


def _require(module: str) -> ModuleType:
    return require(module, "ExecuTorch", "executorch")
