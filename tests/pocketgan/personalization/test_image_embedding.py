"""CLIP as the judge of likeness."""

import pytest
import torch
from tiny_pipeline import make_clip
from transformers import CLIPImageProcessor, CLIPModel

from pocketgan.images import to_image
from pocketgan.personalization import CLIPImageEmbedding


def test_embedding_is_transformers_own(tmp_path):
    folder = make_clip(tmp_path / "clip")
    draw = torch.Generator().manual_seed(0)
    images = (torch.rand(2, 3, 32, 32, generator=draw) * 255).round() / 127.5 - 1
    embedded = CLIPImageEmbedding(str(folder))(images)
    assert embedded.shape == (2, 8)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = processor([to_image(image) for image in images], return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(folder).get_image_features(pixel_values=pixels)
    expected = getattr(expected, "pooler_output", expected)
    torch.testing.assert_close(embedded, expected, atol=1e-4, rtol=1e-4)


def test_pictures_of_any_size_and_frozen(tmp_path):
    embedding = CLIPImageEmbedding(str(make_clip(tmp_path / "clip"))).train()
    assert embedding(torch.zeros(1, 3, 48, 80)).shape == (1, 8)
    assert not embedding.vision.training
    assert not any(weight.requires_grad for weight in embedding.parameters())


def test_missing_weights_are_said_plainly(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"CLIP model 'someone/clip' is no local folder .*hf download"):
        CLIPImageEmbedding("someone/clip")
