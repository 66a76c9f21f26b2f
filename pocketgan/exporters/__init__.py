"""Device formats: each writes a network and runs what it wrote."""

from pocketgan.exporters.export_check import ExportDifference, Latency, compare, measure_latency
from pocketgan.exporters.exporter import ExportedModel, Exporter
from pocketgan.exporters.onnx_exporter import OnnxExporter

__all__ = [
    "ExportDifference",
    "ExportedModel",
    "Exporter",
    "Latency",
    "OnnxExporter",
    "compare",
    "measure_latency",
]
