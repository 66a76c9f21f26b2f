import pytest
import torch
from tiny import real_photos

from lightning_modules.pair_synthesis import PairSynthesis
from pocketgan.gates import AlignmentGate, ExposureGate, SemanticsGate
from pocketgan.teachers import Teacher


class NoiseTeacher(Teacher):
    """Adds noise that depends on the pair's seed, and keeps a record of what it was asked for."""

    def __init__(self, concepts):
        super().__init__()
        self.own = concepts
        self.asked = []

    @property
    def concepts(self):
        return self.own

    @property
    def settings(self):
        return {
            "name": "NoiseTeacher",
            "prompts": {prompt: {"length": len(prompt)} for prompt in self.own.values()},
        }

    def edit(self, photos, prompt, seeds):
        self.asked.append((prompt, len(photos)))
        noise = [torch.rand(photos[0].shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return (photos + torch.stack(noise)).clamp(-1, 1)


@pytest.fixture
def teacher():
    return NoiseTeacher({"red": "make it red", "blue": "make it blue"})


@pytest.fixture
def batch():
    photo = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return {
        "photo": photo,
        "id": ["a", "b", "c"],
        "source": ["a.png", "b.png", "c.png"],
        "skipped": {},
        "converted": {},
    }


def rows(batch, *chosen):
    return {
        **batch,
        "photo": batch["photo"][list(chosen)],
        "id": [batch["id"][row] for row in chosen],
        "source": [batch["source"][row] for row in chosen],
    }


def test_every_photo_is_edited_with_every_concept(teacher, batch):
    pairs = PairSynthesis(teacher, size=32).predict_step(batch, 0)
    assert {(pair.concept, pair.id) for pair in pairs} == {(c, i) for c in ("red", "blue") for i in "abc"}
    for pair in pairs:
        assert pair.photo.shape == pair.edit.shape == (3, 32, 32)
        assert pair.edit.abs().max() <= 1
        assert pair.source == f"{pair.id}.png"
        assert pair.prompt == f"make it {pair.concept}"
    assert len({pair.seed for pair in pairs}) == 6


def test_a_pair_depends_on_neither_batch_nor_order(teacher, batch):
    module = PairSynthesis(teacher, size=32, seed=5)
    together = {(pair.concept, pair.id): pair for pair in module.predict_step(batch, 0)}
    module = PairSynthesis(teacher, size=32, seed=5)
    apart = module.predict_step(rows(batch, 2, 1), 0) + module.predict_step(rows(batch, 0), 1)
    for pair in apart:
        twin = together[pair.concept, pair.id]
        assert pair.seed == twin.seed
        assert torch.equal(pair.photo, twin.photo)
        assert torch.equal(pair.edit, twin.edit)
    other = PairSynthesis(teacher, size=32, seed=6).predict_step(batch, 0)
    assert other[0].seed != together[other[0].concept, other[0].id].seed


def test_only_missing_edits_are_made(teacher, batch):
    module = PairSynthesis(teacher, size=32)
    module.leave_out({"a": {"red"}, "b": {"red", "blue"}, "c": {"red"}})
    pairs = module.predict_step(batch, 0)
    assert [(pair.concept, pair.id) for pair in pairs] == [("blue", "a"), ("blue", "c")]
    assert teacher.asked == [("make it blue", 2)]


def test_an_empty_batch_gives_nothing(teacher):
    batch = {"photo": torch.empty(0, 3, 0, 0), "id": [], "source": [], "skipped": {}, "converted": {}}
    assert PairSynthesis(teacher).predict_step(batch, 0) == []
    assert teacher.asked == []


def test_settings_hold_each_prompts_own_beside_its_concept(teacher):
    module = PairSynthesis(teacher, size=32, concepts={"crimson": "make it red"}, seed=1)
    assert module.settings == {
        "teacher": {"name": "NoiseTeacher"},
        "size": 32,
        "seed": 1,
        "concepts": {"crimson": {"prompt": "make it red", "length": 11}},
    }


def test_a_teacher_without_concepts_takes_any_prompt(batch):
    pairs = PairSynthesis(NoiseTeacher({}), size=64, concepts={"x": "anything"}).predict_step(rows(batch, 0), 0)
    assert torch.equal(pairs[0].photo, batch["photo"][0])


def test_concepts_come_from_a_file(teacher, tmp_path):
    (tmp_path / "prompts.yaml").write_text("template: make it {}\nconcepts: {crimson: red}\n")
    module = PairSynthesis(teacher, size=32, concepts=tmp_path / "prompts.yaml")
    assert module.concepts == {"crimson": "make it red"}
    assert module.settings["concepts"] == {"crimson": {"prompt": "make it red", "length": 11}}


class MovingTeacher(NoiseTeacher):
    """Hands the photos back moved; withholds the second picture and overflows in the third."""

    def edit(self, photos, prompt, seeds):
        edits = photos.roll(6, dims=3)
        edits[1:2] = float("nan")
        edits[2:3, 0, 0, 0] = float("inf")
        return edits


def moving_batch():
    photos = torch.stack(real_photos(3, 128))
    return {"photo": photos, "id": list("abc"), "source": list("abc"), "skipped": {}, "converted": {}}


def test_what_is_no_number_is_stored_black_and_marked():
    red, withheld, overflown = PairSynthesis(MovingTeacher({}), 64, {"red": "red"}).predict_step(moving_batch(), 0)
    assert red.dropped is None
    assert (withheld.edit == -1).all()
    assert withheld.dropped.startswith("teacher: no usable edit, 100% of it is no number")
    assert (overflown.edit == -1).all()
    assert overflown.dropped.startswith("teacher: no usable edit")


def test_a_moved_edit_is_put_in_place_before_it_is_stored():
    batch = moving_batch()
    module = PairSynthesis(MovingTeacher({}), 64, {"red": "red"}, gates={"alignment": AlignmentGate(), "none": None})
    pair, withheld, _ = module.predict_step(batch, 0)
    assert pair.scores["alignment_corrected_px"] == pytest.approx(3, abs=0.1)
    assert (pair.edit - pair.photo)[:, 8:-8, 8:-8].abs().mean() < 0.03
    assert withheld.scores is None
    assert module.settings["gates"] == {"AlignmentGate": AlignmentGate().settings}
    (alone,) = module.predict_step(rows(batch, 0), 0)
    assert torch.equal(alone.edit, pair.edit)

    module = PairSynthesis(MovingTeacher({}), 64, {"red": "red"}, gates={"alignment": AlignmentGate(register=False)})
    pair, _, _ = module.predict_step(batch, 0)
    assert pair.scores is None
    assert "gates" not in module.settings


def test_bad_gates_are_refused_before_anything_is_made(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="no gate can be named 'teacher'"):
        PairSynthesis(NoiseTeacher({}), 64, {"red": "red"}, gates={"teacher": ExposureGate()})
    with pytest.raises(ValueError, match="gates one and two both write the score exposure_dark_share"):
        PairSynthesis(NoiseTeacher({}), 64, {"red": "red"}, gates={"one": ExposureGate(), "two": ExposureGate()})
    with pytest.raises(FileNotFoundError, match="hf download"):
        PairSynthesis(NoiseTeacher({}), 64, {"red": "red"}, gates={"meaning": SemanticsGate("someone/clip")})


@pytest.mark.parametrize(
    ("edits", "found"),
    [
        (torch.zeros(3, 3, 96, 64), r"\(3, 3, 96, 64\)"),
        (torch.zeros(3, 1, 128, 128), r"\(3, 1, 128, 128\)"),
        (torch.zeros(6, 3, 128, 128), r"\(6, 3, 128, 128\)"),
        ([torch.zeros(3, 128, 128)] * 3, "a list"),
    ],
)
def test_a_teacher_must_return_one_edit_of_the_photos_size(monkeypatch, edits, found):
    monkeypatch.setattr(NoiseTeacher, "edit", lambda *_: edits)
    with pytest.raises(ValueError, match=f"NoiseTeacher returned {found} for photos of"):
        PairSynthesis(NoiseTeacher({}), 64, {"red": "red"}).predict_step(moving_batch(), 0)


def test_misfits_are_refused(teacher, batch):
    with pytest.raises(ValueError, match="NoiseTeacher has no concepts of its own"):
        PairSynthesis(NoiseTeacher({}))
    with pytest.raises(ValueError, match=r"NoiseTeacher has no prompt 'green'(?s:.*)make it blue"):
        PairSynthesis(teacher, concepts={"x": "green"})
    with pytest.raises(ValueError, match="size is 8"):
        PairSynthesis(teacher, size=8)
    with pytest.raises(ValueError, match="photos are 64×64 pixels and cannot be stored at 128"):
        PairSynthesis(teacher, size=128).predict_step(batch, 0)
