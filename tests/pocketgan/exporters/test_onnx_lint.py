"""What leaves an accelerator is found in the exported file."""

import torch
from torch import nn

from pocketgan.exporters import ExportOptions, OnnxExporter
from pocketgan.exporters.onnx_lint import lint_onnx


def found(network, tmp_path, **options):
    findings = OnnxExporter().export(network, tmp_path / "model.onnx", {}, 16, 4, ExportOptions(**options))
    return {finding.operation: finding for finding in findings}


def test_operations_of_pix2pix_are_found_and_counted(tmp_path):
    network = nn.Sequential(
        nn.ReflectionPad2d(3),
        nn.Conv2d(3, 8, 7),
        nn.InstanceNorm2d(8),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.InstanceNorm2d(8),
        nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1),
    )
    findings = found(network, tmp_path)
    assert {name: finding.number for name, finding in findings.items()} == {
        "Pad (reflect)": 1,
        "InstanceNormalization": 2,
        "ConvTranspose": 1,
    }
    assert "constants alone" in findings["Pad (reflect)"].why
    assert "NNAPI" in findings["InstanceNormalization"].why
    assert "BatchNorm" in findings["InstanceNormalization"].remedy
    assert "nearest upsampling" in findings["ConvTranspose"].remedy
    assert not any(finding.applied for finding in findings.values())


def test_a_rewrite_that_was_applied_is_told(tmp_path):
    findings = found(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 1)), tmp_path)
    assert findings["GroupNormalization"].applied
    assert findings["GroupNormalization"].number == 1
    assert findings["InstanceNormalization"].number == 1


def test_arithmetic_on_sizes_is_no_finding_but_lookups_in_maps_are(tmp_path):
    class Mirrored(nn.Module):
        def forward(self, photo):
            return photo.index_select(1, torch.tensor([2, 1, 0])) + photo.new_zeros(photo.shape)

    findings = found(Mirrored(), tmp_path)
    assert findings["Gather"].why.startswith("no kernel in Core ML")
    assert "Shape" not in findings
    padded = found(nn.Sequential(nn.Conv2d(3, 3, 3), nn.ZeroPad2d(1), nn.ReLU()), tmp_path)
    assert padded["Pad (constant)"].why == "no kernel in Core ML: the map goes to the CPU and back"


def test_a_shuffle_of_pixels_is_none_for_nnapi(tmp_path):
    shuffled = found(nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2)), tmp_path)
    assert "NNAPI takes DCR alone" in shuffled["DepthToSpace (CRD)"].why
    assert shuffled["DepthToSpace (CRD)"].remedy == "--fixed_size for Core ML, another shuffle for NNAPI"


def test_what_no_photo_changes_is_no_finding(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.rand(3, 3, 3, 3)), nn.Parameter(torch.rand(3))

        def forward(self, photo):
            return nn.functional.conv2d(photo, nn.functional.pad(self.weight, (1, 1, 1, 1)), self.bias, padding=2)

    exporter = OnnxExporter()
    graph = exporter.converted(Tied(), 16, 4, ExportOptions(), optimize=False)
    assert "Pad" in {node.op_type for node in graph.graph.node}
    assert lint_onnx(graph, Tied()) == []


def test_plain_convolutions_stay(tmp_path):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(8, 3, 1)
    )
    assert found(network, tmp_path) == {}
    photos = tuple(torch.rand(1, 3, 16, 16) for _ in range(2))
    assert set(found(network, tmp_path, precision="int8", calibration=photos)) == {"QuantizeLinear", "DequantizeLinear"}
