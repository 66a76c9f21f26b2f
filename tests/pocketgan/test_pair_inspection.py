"""What gates kept and dropped, other limits without generating again, and the contact sheet."""

import json

import pytest
import torch
from PIL import Image
from tiny import TINY_CONFIGS, real_photos

from pocketgan.cli import main
from pocketgan.gates import AlignmentGate, ExposureGate, NearDuplicateGate, SemanticsGate, StructureGate, read_gates
from pocketgan.gates.judgement import judged, outdated_scores, refusal
from pocketgan.pair_inspection import contact_sheet, inspect_pairs
from pocketgan.pair_set import locked, read_pairs, set_gates
from pocketgan.pair_set_writer import EditedPhoto, PairSetWriter

YAML = """
alignment: {class_path: AlignmentGate, init_args: {largest_displacement_px: 0.75}}
structure: {class_path: StructureGate}
exposure: {class_path: ExposureGate}
near_duplicate: {class_path: NearDuplicateGate}
"""


def gates(**limits):
    return {
        "alignment": AlignmentGate(**limits),
        "structure": StructureGate(),
        "exposure": ExposureGate(),
        "near_duplicate": NearDuplicateGate(),
    }


def make(root, gates=None):
    """Of one concept: two good pairs, one shifted, one unchanged, one black, the first once more, one without edit."""
    photos = real_photos(6, 64)
    edits = [-photos[0], -photos[1], -photos[2].roll(2, dims=2), photos[3], torch.full_like(photos[4], -1)]
    pictures = [*zip(photos[:5], edits, strict=True), (photos[0], -photos[0]), (photos[5], -photos[5])]
    settings = {
        "teacher": {"name": "by hand"},
        "photos": {},
        "size": 64,
        "image_format": "png",
        "seed": 0,
        "versions": {},
        "concepts": {"ink": {"prompt": "in ink"}},
    }
    writer = PairSetWriter(root, settings, gates=gates)
    for number, (photo, edit) in enumerate(pictures):
        dropped = "teacher: no usable edit" if number == 6 else None
        writer.write([EditedPhoto(f"photo-{number}", "ink", "in ink", photo, edit, dropped=dropped)])
    writer.close()
    return root


def content(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def reasons(root):
    return [(pair.dropped or "kept").split(":")[0] for pair in read_pairs(root, include_dropped=True)]


@pytest.fixture
def limits(tmp_path):
    file = tmp_path / "gates.yaml"
    file.write_text(YAML)
    return file


def test_pairs_are_judged_when_they_are_written(tmp_path):
    root = make(tmp_path / "set", gates())
    expected = ["kept", "kept", "alignment", "structure", "structure", "near_duplicate", "teacher"]
    assert reasons(root) == expected
    assert len(read_pairs(root)) == 2
    assert {name: type(gate) for name, gate in set_gates(root).items()} == {n: type(g) for n, g in gates().items()}
    assert set_gates(root)["alignment"].arguments == AlignmentGate().arguments


def test_an_old_set_is_measured_and_marked_as_a_new_one(tmp_path, limits):
    root = make(tmp_path / "old")
    before = content(root)
    inspection = inspect_pairs(root, limits)
    assert content(root) == before
    assert [pair.id for pair in inspection.newly_dropped] == ["photo-2", "photo-3", "photo-4", "photo-5"]
    inspect_pairs(root, limits, apply=True)
    assert content(root) == content(make(tmp_path / "new", gates()))


def test_other_limits_give_what_they_would_have_given(tmp_path, limits):
    root = make(tmp_path / "set", gates())
    limits.write_text("alignment: {class_path: AlignmentGate, init_args: {largest_displacement_px: 3}}")
    before = content(root)
    inspection = inspect_pairs(root, limits)
    assert [pair.id for pair in inspection.taken_back] == ["photo-2"]
    assert inspection.newly_dropped == []
    assert content(root) == before
    assert inspect_pairs(root, limits, apply=True).applied
    assert content(root) == content(make(tmp_path / "fresh", gates(largest_displacement_px=3.0)))
    assert inspect_pairs(root).is_unchanged

    limits.write_text("structure: null")
    inspect_pairs(root, limits, apply=True)
    assert reasons(root)[3:] == ["kept", "exposure", "near_duplicate", "teacher"]
    assert "structure" not in set_gates(root)


def test_a_killed_synthesis_can_be_inspected(tmp_path, limits):
    root = make(tmp_path / "set")
    whole = (root / "pairs.jsonl").read_bytes().splitlines(keepends=True)
    (root / "pairs.jsonl").write_bytes(b"".join(whole[:3]))
    (root / "journal-0.jsonl").write_bytes(b"".join(whole[3:]) + b'{"id": "torn')
    inspect_pairs(root, limits, apply=True)
    assert content(root) == content(make(tmp_path / "fresh", gates()))


def test_a_pair_without_files_stays_as_it_is(tmp_path):
    root = make(tmp_path / "set")
    (root / "edits" / "ink" / "photo-0.png").unlink()
    first, *others = judged(root, read_pairs(root, include_dropped=True), gates())
    assert (first.scores, first.dropped) == (None, None)
    assert others[-2].dropped is None  # the earlier of the two is gone
    assert all(pair.scores for pair in others)


def test_scores_of_another_model_are_forgotten():
    before, now = ({"meaning": SemanticsGate(model), "exposure": ExposureGate()} for model in ("small", "large"))
    assert outdated_scores(now, before) == {"semantics_direction"}
    assert outdated_scores(now, now) == outdated_scores(now, {}) == set()
    stricter = {"meaning": SemanticsGate("small", least_direction=0.3)}
    assert outdated_scores(stricter, before) == set()


def test_the_command_prints_and_draws(tmp_path, limits, capsys):
    root = make(tmp_path / "set")
    out = tmp_path / "sheets" / "sheet.png"
    main(["pairs", "inspect", str(root), f"--gates={limits}", f"--out={out}"])
    printed = capsys.readouterr().out
    assert "alignment  structure" in " ".join(printed.split("\n")).replace("   ", "  ")
    assert "4 more pairs are dropped than before and 0 fewer; the set stays as it is" in printed
    assert "exposure_spread_levels" in printed
    inspection = inspect_pairs(root, limits)
    sheet = contact_sheet(inspection)
    with Image.open(out) as written:
        assert written.size == sheet.size
        colours = written.convert("RGB").resize((1, 1)).getpixel((0, 0))
    assert colours != (255, 255, 255)
    main(["pairs", "inspect", str(root), f"--gates={limits}", f"--out={out}", "--apply"])
    assert reasons(root).count("kept") == 2
    assert "is marked accordingly" in capsys.readouterr().out


def test_a_set_without_scores_can_be_looked_at(tmp_path, capsys):
    root = make(tmp_path / "set")
    main(["pairs", "inspect", str(root), f"--out={tmp_path / 'sheet.png'}"])
    assert "no pair has scores" in capsys.readouterr().out


def test_misuse_is_explained(tmp_path, limits):
    root = make(tmp_path / "set")
    with pytest.raises(SystemExit, match="has no gates to apply"):
        main(["pairs", "inspect", str(root), "--apply"])
    with pytest.raises(SystemExit, match="is not a pair set"):
        main(["pairs", "inspect", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match=r"ends in \.png"):
        main(["pairs", "inspect", str(root), "--out=sheet"])
    with locked(root), pytest.raises(RuntimeError, match="another process"):
        inspect_pairs(root, limits, apply=True)
    with pytest.raises(FileNotFoundError, match=r"none\.yaml does not exist"):
        read_gates(tmp_path / "none.yaml")
    for text in ("exposure: {class_path: NoGate}", "exposure: {class_path: ExposureGate, init_args: {x: 1}}", "- a"):
        limits.write_text(text)
        with pytest.raises(ValueError, match="does not name gates"):
            read_gates(limits)
    limits.write_text("'a: b': {class_path: ExposureGate}")
    with pytest.raises(ValueError, match="no gate can be named 'a: b'"):
        read_gates(limits)
    with pytest.raises(ValueError, match=r"gate exposure needs exposure_dark_share.*pairs inspect ROOT --apply"):
        refusal({"exposure": ExposureGate()}, {})


def test_gates_by_yaml_and_command_line(tmp_path):
    """A number of a gate is changed by its path; a gate that changes pixels belongs to the set's settings."""
    blocks = {"model": {"init_args": {"gates": {"exposure": {"class_path": "ExposureGate"}}}}}
    extra = tmp_path / "extra.yaml"
    extra.write_text(json.dumps(blocks))
    words = [
        "predict",
        f"-c={TINY_CONFIGS / 'synthesize' / 'style_transfer.yaml'}",
        f"-c={extra}",
        f"--trainer.default_root_dir={tmp_path / 'pairs'}",
        "--data.limit=2",
    ]
    main([*words, "--model.gates.exposure.least_spread_levels=200", "--model.gates.near_duplicate=NearDuplicateGate"])
    assert read_pairs(tmp_path / "pairs") == []
    assert (
        json.loads((tmp_path / "pairs" / "gates.json").read_text())["exposure"]["init_args"]["least_spread_levels"]
        == 200
    )
    main(words)
    assert len(read_pairs(tmp_path / "pairs")) == 2
    with pytest.raises(ValueError, match="gates: the set has none"):
        main([*words, "--model.gates.alignment=AlignmentGate"])
    with pytest.raises(SystemExit):
        main([*words, "--model.gates.exposure.largest_shift=1"])
