"""A page in the browser: an ONNX model that onnxruntime-web runs, and the page around it."""

from pathlib import Path

from torch import nn

from pocketgan.exporters.concept_pack import describe_single
from pocketgan.exporters.exporter import ExportOptions, LintFinding, PackedConcept
from pocketgan.exporters.onnx_exporter import OnnxExporter
from pocketgan.web_page_files import find_runtime, write_web_page


class WebExporter(OnnxExporter):
    """ONNX between 8-bit pictures, as a canvas holds them, in operators that the page's WebGPU has.

    Args:
        opset: ONNX's operator set, 18 to 22: WebGPU has no kernel for 23's ``Attention``
            (docs/webgpu-operators.md of onnxruntime-web).

    Raises:
        ValueError: Another operator set.
    """

    own_pixels = "uint8"
    providers = ("WebGPU",)

    def __init__(self, opset: int = 20) -> None:
        super().__init__(opset)
        if opset > 22:
            raise ValueError(f"opset is {opset}, but the page's WebGPU has operators up to 22; use 20")

    def export(
        self,
        network: nn.Module,
        path: Path,
        metadata: dict[str, str],
        size: int,
        size_divisor: int,
        options: ExportOptions | None = None,
    ) -> list[LintFinding]:
        """Write the page's model; see ``Exporter.export``.

        Raises:
            ValueError: ``options`` want float32 pixels.
        """
        options = options or ExportOptions(pixels="uint8")
        if options.pixels != "uint8":
            raise ValueError("the page's pictures are of 8 bits; leave pixels out, or give uint8")
        return super().export(network, path, metadata, size, size_divisor, options)

    def accompany(self, file: Path, concept: PackedConcept) -> None:
        """Write the page and its runtime beside a model, with the ``pack.json`` that leads the page to it."""
        describe_single(file, concept, self.load(file), f"pocketgan: {concept.name}")
        write_web_page(file.parent)

    def check_tools(self) -> None:
        """Find the page's runtime, or have npm fetch it."""
        find_runtime()
