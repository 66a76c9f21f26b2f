"""Device formats: each writes a network and runs what it wrote."""

from pocketgan.exporters.coreml_exporter import CoreMLExporter
from pocketgan.exporters.executorch_exporter import ExecuTorchExporter
from pocketgan.exporters.export_check import ExportDifference, Latency, compare, measure_latency
from pocketgan.exporters.exporter import (
    ExportedModel,
    Exporter,
    ExportOptions,
    LintFinding,
    PackedConcept,
    Pixels,
    Precision,
)
from pocketgan.exporters.litert_exporter import LiteRTExporter
from pocketgan.exporters.onnx_exporter import OnnxExporter
from pocketgan.exporters.peak_memory import measure_peak_memory
from pocketgan.exporters.web_exporter import WebExporter

EXPORTERS: dict[str, type[Exporter]] = {
    "onnx": OnnxExporter,
    "executorch": ExecuTorchExporter,
    "coreml": CoreMLExporter,
    "litert": LiteRTExporter,
    "web": WebExporter,
}

__all__ = [
    "EXPORTERS",
    "CoreMLExporter",
    "ExecuTorchExporter",
    "ExportDifference",
    "ExportOptions",
    "ExportedModel",
    "Exporter",
    "Latency",
    "LintFinding",
    "LiteRTExporter",
    "OnnxExporter",
    "PackedConcept",
    "Pixels",
    "Precision",
    "WebExporter",
    "compare",
    "measure_latency",
    "measure_peak_memory",
]
