"""Device formats: each writes a network and runs what it wrote."""

from pocketgan.exporters.export_check import ExportDifference, Latency, compare, measure_latency
from pocketgan.exporters.exporter import ExportedModel, Exporter, ExportOptions, LintFinding, Pixels, Precision
from pocketgan.exporters.onnx_exporter import OnnxExporter
from pocketgan.exporters.peak_memory import measure_peak_memory

EXPORTERS: dict[str, type[Exporter]] = {"onnx": OnnxExporter}

__all__ = [
    "EXPORTERS",
    "ExportDifference",
    "ExportOptions",
    "ExportedModel",
    "Exporter",
    "Latency",
    "LintFinding",
    "OnnxExporter",
    "Pixels",
    "Precision",
    "compare",
    "measure_latency",
    "measure_peak_memory",
]
