"""Each gate on worked cases, and what all share."""

import inspect
import itertools
import random

import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from skimage.metrics import structural_similarity
from tiny import real_photos
from tiny_pipeline import make_clip, tiny_tokenizer
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from pocketgan.gates import (
    AlignmentGate,
    ExposureGate,
    Gate,
    NearDuplicateGate,
    PairGate,
    SafetyGate,
    SemanticsGate,
    SetGate,
    StructureGate,
)
from pocketgan.gates.registration import Similarity, moved_back
from pocketgan.gates.structure_gate import similarity
from pocketgan.images import to_image, to_tensor
from pocketgan.pair_set import Pair

SIDE = 96


def all_gates(base=Gate):
    for gate in base.__subclasses__():
        if not inspect.isabstract(gate):
            yield gate
        yield from all_gates(gate)


GATES = sorted(
    (gate for gate in set(all_gates()) if gate.__module__.startswith("pocketgan.")), key=lambda g: g.__name__
)


@pytest.fixture(scope="module")
def photos():
    return real_photos(3, SIDE)


def eight_bit(picture):
    return to_tensor(to_image(picture))


def shifted(picture, x, y=0.0):
    return torch.from_numpy(moved_back(picture.numpy(), Similarity(-x, -y), picture.shape[2])).clamp(-1, 1)


def judged(gate, photo, edit, concept="ink", prompt="ink"):
    return gate.refusal(gate.scores(eight_bit(photo), eight_bit(edit), concept, prompt))


@pytest.mark.parametrize("kind", GATES)
def test_a_gate_can_be_described_and_its_scores_are_its_own(kind):
    gate = kind()
    assert set(gate.arguments) == set(inspect.signature(kind).parameters)
    assert isinstance(gate, PairGate | SetGate)
    others = {name for other in GATES if other is not kind for name in other.score_names}
    assert gate.score_names
    assert not others & set(gate.score_names)


@pytest.mark.parametrize("kind", GATES)
def test_a_pair_is_refused_where_its_margin_is_negative(kind):
    draw, gate = random.Random(0), kind()
    seen = set()
    for scale in itertools.chain.from_iterable([[0.01, 0.3, 1.0, 3.0, 255.0]] * 40):
        scores = {name: draw.uniform(-0.2, 1) * scale for name in gate.score_names}
        refused = gate.refusal(scores) is not None
        seen.add(refused)
        assert refused == (gate.margin(scores) < 0), scores
    assert seen == {True, False}


def test_small_shifts_are_undone_and_larger_ones_refused(photos):
    gate, photo = AlignmentGate(), eight_bit(photos[0])
    assert judged(gate, photo, -photo) is None
    assert gate.corrected(photo, eight_bit(-photo), -photo) is None

    slightly = shifted(photos[0], 0.3)
    assert gate.corrected(photo, eight_bit(slightly), slightly) is None
    assert judged(gate, photo, slightly) is None

    somewhat = shifted(photos[0], 2.4, -1.0)
    assert "moved by 2.60 px, at most 0.75 (+2.4 -1.0 px" in judged(gate, photo, somewhat)
    mended, scores = gate.corrected(photo, eight_bit(somewhat), somewhat)
    assert scores["alignment_corrected_px"] == pytest.approx(2.6, abs=0.05)
    after = gate.scores(photo, eight_bit(mended), "ink", "ink")
    assert after["alignment_displacement_px"] < 0.1
    assert AlignmentGate(register=False).corrected(photo, eight_bit(somewhat), somewhat) is None

    far = shifted(photos[0], 7)
    assert gate.corrected(photo, eight_bit(far), far) is None
    assert "moved by 7.0" in judged(gate, photo, far)


def test_a_large_edit_is_moved_at_its_own_size(photos):
    large = real_photos(1, 2 * SIDE)[0]
    small = torch.nn.functional.interpolate(large[None], (SIDE, SIDE), mode="bicubic", antialias=True)[0].clamp(-1, 1)
    edit = shifted(large, 4.0)
    small_edit = torch.nn.functional.interpolate(edit[None], (SIDE, SIDE), mode="bicubic", antialias=True)[0]
    mended, scores = AlignmentGate().corrected(eight_bit(small), eight_bit(small_edit), edit)
    assert scores["alignment_corrected_px"] == pytest.approx(2, abs=0.05)
    assert mended.shape == large.shape
    assert (mended - large)[:, 10:-10, 10:-10].abs().mean() < 0.02


def test_an_estimate_that_means_nothing_moves_nothing(photos):
    photo, other = eight_bit(photos[0]), eight_bit(photos[1])
    assert AlignmentGate().corrected(photo, other, other) is None
    assert judged(AlignmentGate(), photo, other) is None
    assert "cannot be measured: edges agree by 0." in judged(AlignmentGate(refuse_unmeasurable=True), photo, other)
    assert AlignmentGate().settings == {
        "least_correction_px": 0.5,
        "largest_correction_px": 4.0,
        "least_agreement": 0.17,
    }
    assert AlignmentGate(register=False).settings == {}
    with pytest.raises(ValueError, match="least_correction_px 5 and largest_correction_px 4"):
        AlignmentGate(least_correction_px=5, largest_correction_px=4)


def test_structure_is_a_band(photos):
    gate = StructureGate()
    assert judged(gate, photos[0], photos[0]).startswith("unchanged: similarity 1.000")
    assert judged(gate, photos[0], photos[1]).startswith("destroyed: edges agree by")
    assert judged(gate, photos[0], photos[0] * 0.5 + 0.2) is None
    assert judged(gate, photos[0], photos[0][[2, 0, 1]]) is None  # new colours alone are a change


def test_similarity_is_scikit_images(photos):
    first, second = ((photo.numpy() / 2 + 0.5) for photo in photos[:2])
    second = 0.7 * first + 0.3 * second
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    expected = structural_similarity(first, second, channel_axis=0, **settings)
    assert similarity(first, second) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (torch.full((3, 32, 32), -1.0), "black: 100% of it"),
        (torch.full((3, 32, 32), 1.0), "white: 100% of it"),
        (torch.full((3, 32, 32), 0.2), "flat: a spread of 0.0 levels"),
        (torch.linspace(-1, 1, 32).expand(3, 32, 32), None),
    ],
)
def test_exposure(edit, reason):
    found = judged(ExposureGate(), torch.zeros(3, 32, 32), edit)
    assert found is None if reason is None else found.startswith(reason)


def write_pairs(root, pictures):
    """Pairs by (concept, id): photo and edit; sorted as in a set."""
    pairs = []
    for (concept, name), (photo, edit) in sorted(pictures.items()):
        files = (f"photos/{name}.png", f"edits/{concept}/{name}.png")
        for file, picture in zip(files, (photo, edit), strict=True):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            to_image(picture).save(root / file)
        pairs.append(Pair(name, concept, concept, *files, "", ""))
    return pairs


@pytest.mark.parametrize("block", [2048, 1, 2])
def test_near_duplicates_are_found_among_earlier_ids(tmp_path, photos, monkeypatch, block):
    monkeypatch.setattr("pocketgan.gates.near_duplicate_gate._BLOCK", block)
    nearly = photos[0] + 0.002
    pairs = write_pairs(
        tmp_path,
        {
            ("ink", "a"): (photos[0], -photos[0]),
            ("ink", "b"): (photos[1], -photos[1]),
            ("ink", "c"): (nearly, -photos[2]),
            ("oil", "a"): (photos[0], photos[2]),
            ("oil", "b"): (photos[1], photos[2]),
        },
    )
    gate = NearDuplicateGate()
    scores = gate.scores_of_set(tmp_path, pairs)
    reasons = [gate.refusal(each) for each in scores]
    assert [reason is None for reason in reasons] == [True, True, False, True, False]
    assert reasons[2].startswith("photo 0.")
    assert reasons[4] == "edit 0.0 levels from an earlier one, least 2"
    assert scores[0] == {"near_duplicate_photo_levels": 255.0, "near_duplicate_edit_levels": 255.0}
    expected = [
        torch.tensor(list(to_image(picture).resize((16, 16), Image.Resampling.BOX).tobytes()), dtype=torch.float64)
        for picture in photos[:2]
    ]
    distance = (expected[0] - expected[1]).square().mean().sqrt().item()
    assert scores[1]["near_duplicate_photo_levels"] == pytest.approx(distance)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = make_clip(tmp_path_factory.mktemp("clip"))
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_semantics_is_the_cosine_of_two_steps(clip, photos):
    gate = SemanticsGate(str(clip), source_caption="a photo", captions={"ink": "an ink drawing"})
    photo, edit = eight_bit(photos[0][:, :32, :32]), eight_bit(photos[1][:, :32, :32])
    gate.prepare()
    found = gate.scores(photo, edit, "ink", "turn it into ink")["semantics_direction"]

    model, tokenizer = CLIPModel.from_pretrained(clip), tiny_tokenizer()
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = processor([to_image(photo), to_image(edit)], return_tensors="pt").pixel_values
    with torch.no_grad():
        made = [
            model(**tokenizer([text], return_tensors="pt"), pixel_values=pixels)
            for text in ("a photo", "an ink drawing")
        ]
    pictures, texts = made[0].image_embeds, [each.text_embeds[0] for each in made]
    expected = torch.cosine_similarity(pictures[1] - pictures[0], texts[1] - texts[0], dim=0).item()
    assert found == pytest.approx(expected, abs=2e-3)
    other = gate.scores(photo, edit, "oil", "an oil painting")["semantics_direction"]
    assert other != found
    assert "direction -0.400, least 0.05" in gate.refusal({"semantics_direction": -0.4})


def make_checker(folder, least=None):
    torch.manual_seed(0)
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    for name, limit in (("concept_embeds", least), ("special_care_embeds", 0.0)):
        embeds = getattr(checker, name)
        embeds.data = torch.randn(embeds.shape)
        getattr(checker, f"{name}_weights").data.fill_(limit)
    checker.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("limit", [-0.5, 0.999])
def test_safety_is_the_checkers_own_word(tmp_path, photos, limit):
    folder = make_checker(tmp_path / "checker", limit)
    gate = SafetyGate(str(folder))
    gate.prepare()
    edit = eight_bit(photos[0])
    reason = judged(gate, photos[0], edit)
    pixels = CLIPImageProcessor.from_pretrained(folder)(to_image(edit), return_tensors="pt").pixel_values
    _, flagged = StableDiffusionSafetyChecker.from_pretrained(folder)(pixels, [edit.numpy()])
    assert flagged == [reason is not None] == [limit < 0]
    assert judged(SafetyGate(str(folder), largest_excess=2), photos[0], edit) is None


def test_missing_weights_are_said_plainly(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"CLIP model 'someone/clip' is no local folder .*hf download"):
        SemanticsGate("someone/clip").prepare()
    with pytest.raises(FileNotFoundError, match=r"safety checker 'someone/checker' is no local folder .*hf download"):
        SafetyGate("someone/checker").prepare()
    with pytest.raises(FileNotFoundError, match="has no tokenizer"):
        SemanticsGate(str(make_clip(tmp_path / "clip"))).prepare()
