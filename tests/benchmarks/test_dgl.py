"""The arms of the DGL benchmark and its pictures."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.dgl import GUIDED, ONE_STAGE, PLAIN, RANDOM, SIZE, STAGE_ONE, Benchmark, make_crops
from benchmarks.runs import paired_difference


def test_crops_are_squares_of_every_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.dgl.PICTURES", 4)
    colours = [(255, 0, 0), (0, 0, 255)]
    for number, colour in enumerate(colours):
        Image.new("RGB", (80, 64), colour).save(tmp_path / f"{number}.png")
    crops = tmp_path / "crops"
    crops.mkdir()
    make_crops(sorted(tmp_path.glob("*.png")), crops)
    found = [Image.open(file) for file in sorted(crops.iterdir())]
    assert [picture.size for picture in found] == [(SIZE, SIZE)] * 4
    assert [picture.getpixel((0, 0)) for picture in found] == colours * 2


def test_arms_see_the_same_images_and_differ_as_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.dgl.make_once", lambda folder, make: None)
    monkeypatch.setattr("benchmarks.dgl.commit", lambda: "0")
    benchmark = Benchmark(tmp_path, tmp_path / "out", 2)
    for system in benchmark.systems:
        teacher = f"--model.teacher={benchmark.teacher(system).folder}"
        for student in system.students:
            arms = benchmark.arms(system, student, 1)
            start = f"--model.start={arms[STAGE_ONE].folder}"
            assert {arm for arm, run in arms.items() if start in run.arguments} == {PLAIN, GUIDED, RANDOM}
            # the last word on the command line counts
            assert arms[PLAIN].arguments[-1] == "--model.teacher=null"
            assert all(teacher in arms[arm].arguments for arm in (GUIDED, RANDOM, ONE_STAGE))
            assert "--model.random_teacher=true" in arms[RANDOM].arguments
            second = {arms[arm].images for arm in (PLAIN, GUIDED, RANDOM)}
            assert second == {(system.images[1],)}
            assert arms[ONE_STAGE].images[0] == arms[STAGE_ONE].images[0] + system.images[1]
            folders = {run.folder for seed in range(2) for run in benchmark.arms(system, student, seed).values()}
            assert len(folders) == 10


def test_difference_is_paired_and_says_what_the_spread_carries() -> None:
    assert paired_difference([1.0, 2.0, 4.0], [2.0, 3.0, 4.0], digits=1) == "-0.7 ± 0.6 (2/3)"
    assert paired_difference([1.0, 2.0, 4.0], [2.0, 3.0, 4.0], sign=-1, digits=1) == "-0.7 ± 0.6 (0/3)"
    assert Benchmark.difference([1.0, 2.1, 3.2], [2.0, 3.0, 4.2]).endswith("; -31.5 %; better")
    assert Benchmark.difference([1.0, 2.0, 4.0], [2.0, 3.0, 4.0]).endswith("; -22.2 %; not told")
