"""Which layers int8 hurts."""

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from pocketgan.exporters import EXPORTERS, ExportOptions, OnnxExporter, compare
from pocketgan.exporters.exporter import Int8Scheme
from pocketgan.exporters.quantization import find_sensitive_layers, int8_error
from pocketgan.exporters.quantization_aware import fine_tune_for_int8


@pytest.fixture(scope="module")
def photos():
    torch.manual_seed(0)
    return [torch.rand(1, 3, 16, 16) * 2 - 1 for _ in range(4)]


@pytest.fixture
def network():
    """Two layers: the inputs of ``fragile`` reach 1000 in a channel that hardly counts, so that 256 levels are few."""
    torch.manual_seed(0)
    robust, fragile = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)
    with torch.no_grad():
        robust.weight[3] *= 1000
        fragile.weight[:, 3] = 0
    network = nn.Sequential()
    network.add_module("robust", robust)
    network.add_module("fragile", fragile)
    return network.eval()


def change(network, photos):
    wanted = [network(photo) for photo in photos]

    def error(tried):
        return max((tried(photo) - edit).abs().mean().item() for photo, edit in zip(photos, wanted, strict=True))

    return error


def test_the_layer_that_int8_breaks_is_found_and_excluded(network, photos):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        found = find_sensitive_layers(network, photos, change(network, photos), largest_error=0.05)
    assert list(found.changes) == ["fragile", "robust"]
    assert found.changes["fragile"] > 10 * found.changes["robust"] > 0
    assert found.excluded == ("fragile",)
    assert found.error <= 0.05
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.fragile._forward_pre_hooks


def test_nothing_or_everything_is_excluded_as_the_limit_says(network, photos):
    with torch.no_grad():
        assert find_sensitive_layers(network, photos, change(network, photos), 1e9).excluded == ()
        every = find_sensitive_layers(network, photos, change(network, photos), 0.0)
    assert every.excluded == ("fragile", "robust")
    assert every.error == 0.0


def test_an_excluded_layer_stays_in_float32_in_the_file(network, photos, tmp_path):
    differences = {}
    for name, excluded in {"none": (), "fragile": ("fragile",), "both": ("fragile", "robust")}.items():
        options = ExportOptions("int8", calibration=tuple(photos), excluded=excluded)
        OnnxExporter().export(network, tmp_path / "model.onnx", {}, 16, 1, options)
        exported = OnnxExporter().load(tmp_path / "model.onnx")
        differences[name] = compare(network, exported, photos).max_difference
    assert differences["none"] > 5 * differences["fragile"]
    assert differences["both"] < 1e-5


def test_a_layer_that_is_none_cannot_be_excluded(network, photos, tmp_path):
    options = ExportOptions("int8", calibration=tuple(photos), excluded=("absent",))
    with pytest.raises(ValueError, match=r"cannot exclude absent; the layers with weights are fragile, robust"):
        OnnxExporter().export(network, tmp_path / "model.onnx", {}, 16, 1, options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (torch.zeros(3, 8, 8), r"is \(3, 8, 8\) torch.float32, but \(1, 3, H, W\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "torch.uint8"),
        (torch.full((1, 3, 8, 8), 255.0), "values from 255 to 255, but photos are in"),
        (torch.full((1, 3, 8, 8), torch.nan), "values from nan to nan"),
    ],
)
def test_calibration_photos_of_the_wrong_kind_are_refused(photo, message):
    with pytest.raises(ValueError, match=message):
        ExportOptions("int8", calibration=(photo,))


@pytest.mark.parametrize("target", [name for name, exporter in EXPORTERS.items() if exporter.scheme.activations])
def test_int8_without_photos_is_refused(target, network, tmp_path):
    pixels = EXPORTERS[target].own_pixels
    with pytest.raises(ValueError, match="int8 needs calibration photos"):
        EXPORTERS[target]().export(network, tmp_path / "model", {}, 16, 1, ExportOptions("int8", pixels))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("excluded", "moved"), [((), True), (("fragile",), True), (("fragile", "robust"), False)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torchao's
def test_fine_tuning_is_against_the_rounding_of_what_is_not_excluded(network, photos, excluded, moved):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    options = ExportOptions("int8", calibration=tuple(photos), excluded=excluded)
    tuned = fine_tune_for_int8(network, options, images=4, learning_rate=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert moved != all(torch.equal(value, before[name]) for name, value in tuned.state_dict().items())


def test_weights_of_fewer_bits_and_weights_alone(network, photos):
    error = change(network, photos)
    with torch.no_grad():
        eight, seven, alone = (
            int8_error(network, photos, error, [], scheme)
            for scheme in (Int8Scheme(), Int8Scheme(weight_bits=7), Int8Scheme(activations=False))
        )
    assert 0 < alone < eight <= seven


def test_int8_keeps_to_what_16_bits_can_add(tmp_path):
    """x86 without VNNI adds two products of 8 bits in 16: weights of 8 bits would be cut off."""
    torch.manual_seed(0)
    network = nn.Conv2d(3, 16, 3, padding=1).eval()
    with torch.no_grad():
        network.weight.copy_(network.weight.sign())  # all as large as can be
    photos = (torch.ones(1, 3, 16, 16), -torch.ones(1, 3, 16, 16))
    OnnxExporter().export(network, tmp_path / "model.onnx", {}, 16, 1, ExportOptions("int8", calibration=photos))
    weights = [
        numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4
    ]
    assert max(abs(weight.astype(int)).max() for weight in weights) <= 64
    assert compare(network, OnnxExporter().load(tmp_path / "model.onnx"), photos).psnr_db > 30
