"""Run as a script, this file is the process that the tests kill or start twice."""

import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from callbacks.pair_writer import PairWriter
from datamodules.source_photos import SourcePhotos
from lightning_modules.pair_synthesis import PairSynthesis
from pocketgan.gates import AlignmentGate, ExposureGate, NearDuplicateGate
from pocketgan.pair_set import PairSetWriter, read_manifest, read_pairs
from pocketgan.teachers import Teacher

CONCEPTS = ("red", "blue")


class NoiseTeacher(Teacher):
    """Adds noise that depends on the pair's seed; fails at an edit when told to."""

    def __init__(self, concepts=CONCEPTS, edits_before_failure=None):
        super().__init__()
        self.names = concepts
        self.edits = 0
        self.edits_before_failure = edits_before_failure

    @property
    def concepts(self):
        return {name: f"make it {name}" for name in self.names}

    @property
    def settings(self):
        return {"name": "NoiseTeacher"}

    def edit(self, photos, prompt, seeds):
        if self.edits == self.edits_before_failure:
            raise RuntimeError("the teacher failed")
        self.edits += len(photos)
        noise = [torch.rand(photos[0].shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return (photos * len(prompt) / 12 + torch.stack(noise)).clamp(-1, 1)


class OtherModule(LightningModule):
    def forward(self, batch):
        return batch


def gates(**limits):
    return {
        "alignment": AlignmentGate(),
        "exposure": ExposureGate(**limits),
        "near_duplicate": NearDuplicateGate(),
    }


def synthesize(root, photos, teacher=None, trainer=None, gates=None, **changes):
    settings = {"size": 64, "batch_size": 2, "minimum_side": 32, **changes}
    trainer_settings = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    loop = Trainer(**{**trainer_settings, **(trainer or {})}, callbacks=[PairWriter(root)])
    module = PairSynthesis(teacher or NoiseTeacher(), size=32, gates=gates)
    datamodule = SourcePhotos(photos, **settings)
    returned = loop.predict(module, datamodule=datamodule)
    return returned, module, datamodule


def content(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number in range(5):
        pixels = random.integers(0, 256, (64, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def expected(photos, tmp_path_factory):
    root = tmp_path_factory.mktemp("expected") / "set"
    synthesize(root, photos)
    return content(root)


@pytest.fixture(scope="module")
def judged(photos, tmp_path_factory):
    root = tmp_path_factory.mktemp("judged") / "set"
    synthesize(root, photos, gates=gates())
    return content(root)


def script(*arguments):
    """Start this file as a process, or several."""
    repository = Path(__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if name not in {"LOCAL_RANK", "WORLD_SIZE"}}
    subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        check=True,
        env={**environment, "PYTHONPATH": str(repository)},
        cwd=repository,
        timeout=300,
    )


def test_a_set_is_written_and_nothing_is_kept_in_memory(tmp_path, photos, capsys):
    root = tmp_path / "set"
    returned, _, _ = synthesize(root, photos)
    assert returned is None
    assert len(read_pairs(root)) == 10
    manifest = read_manifest(root)
    assert manifest["photos"] == {"size": 64, "crop": "centred square"}
    assert manifest["versions"]["torch"] == version("torch")
    assert f"10 pairs written to {root}, which now holds 10 (5 photos, 2 concepts); 0 photos" in capsys.readouterr().out


def test_gates_change_no_picture_and_pairs_are_judged_by_the_current_ones(tmp_path, photos, expected, judged, capsys):
    pictures = {name for name in expected if name.endswith(".png")}
    assert {name: judged[name] for name in pictures} == {name: expected[name] for name in pictures}
    assert set(judged) - set(expected) == {"gates.json"}
    assert b'"alignment_agreement": ' in judged["pairs.jsonl"]

    root = tmp_path / "set"
    strict = gates(least_spread_levels=200)
    synthesize(root, photos, gates=strict, limit=3)
    assert read_pairs(root) == []
    assert "; 6 pairs are dropped (exposure 6): see `pocketgan pairs inspect" in capsys.readouterr().out
    assert "flat: a spread of" in read_pairs(root, include_dropped=True)[0].dropped
    synthesize(root, photos, gates=gates())
    assert content(root) == judged
    with pytest.raises(ValueError, match=r"gates: the set has \{'alignment'.* this run None"):
        synthesize(root, photos)


def test_a_set_without_gates_is_measured_when_it_gets_some(tmp_path, photos, judged):
    root = tmp_path / "set"
    some = {name: gate for name, gate in gates().items() if name != "alignment"}
    synthesize(root, photos, limit=2)
    synthesize(root, photos, gates=some)
    pairs = read_pairs(root, include_dropped=True)
    assert all(set(pair.scores) >= set(NearDuplicateGate.score_names) for pair in pairs)
    assert len(pairs) == 10
    before = content(root)
    synthesize(root, photos)  # without gates, nothing is judged
    assert content(root) == before
    with pytest.raises(ValueError, match=r"gates: the set has None, this run \{'alignment'"):
        synthesize(root, photos, gates=gates())


def test_a_complete_set_is_left_alone(tmp_path, photos, expected, capsys):
    root = tmp_path / "set"
    synthesize(root, photos)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.suffix != ".lock"}
    _, module, _ = synthesize(root, photos)
    assert module.teacher.edits == 0
    assert times == {path: path.stat().st_mtime_ns for path in times}
    assert content(root) == expected
    assert "0 pairs written" in capsys.readouterr().out


def test_an_error_releases_the_set_and_the_rest_alone_is_made(tmp_path, photos, expected):
    root = tmp_path / "set"
    with pytest.raises(RuntimeError, match="the teacher failed"):
        synthesize(root, photos, NoiseTeacher(edits_before_failure=6))
    _, module, _ = synthesize(root, photos, batch_size=3)
    # The first batch, two photos with two concepts, was on disk; the second was lost with its first edits.
    assert module.teacher.edits == 6
    assert content(root) == expected


def test_concepts_and_photos_can_be_added(tmp_path, photos, expected):
    root = tmp_path / "set"
    synthesize(root, photos, NoiseTeacher(("red",)), limit=2)
    _, module, _ = synthesize(root, photos)
    assert module.teacher.edits == 8
    assert content(root) == expected


def test_unreadable_photos_are_counted(tmp_path, photos, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in photos.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "truncated.png").write_bytes((folder / "0.png").read_bytes()[:5000])
    with pytest.warns(UserWarning, match=r"1 photos skipped(?s:.*)truncated\.png"):
        _, _, datamodule = synthesize(tmp_path / "set", folder)
    assert set(datamodule.skipped) == {"truncated.png"}
    assert len(read_pairs(tmp_path / "set")) == 10
    assert "1 photos skipped" in capsys.readouterr().out


def test_other_settings_and_a_second_writer_are_refused(tmp_path, photos):
    root = tmp_path / "set"
    synthesize(root, photos, limit=1)
    with pytest.raises(ValueError, match="photos: the set has"):
        synthesize(root, photos, size=32)
    manifest = read_manifest(root)
    writer = PairSetWriter(root, {key: value for key, value in manifest.items() if key not in {"format", "hash"}})
    with pytest.raises(RuntimeError, match="another process"):
        synthesize(root, photos)
    writer.close()


def test_misfits_are_refused(tmp_path, photos):
    with pytest.raises(ValueError, match="precision is bf16-mixed"):
        synthesize(tmp_path / "set", photos, trainer={"precision": "bf16-mixed"})
    loop = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[PairWriter(tmp_path)])
    with pytest.raises(TypeError, match="needs SourcePhotos as the datamodule, not NoneType"):
        loop.predict(PairSynthesis(NoiseTeacher()), torch.utils.data.DataLoader([0]))
    with pytest.raises(TypeError, match="not of OtherModule"):
        loop.predict(OtherModule(), datamodule=SourcePhotos(photos))


def test_killed_at_any_moment_the_set_is_resumed_to_the_same_bytes(tmp_path, photos, expected):
    script("kill", tmp_path, photos)
    moments = sorted(tmp_path.iterdir())
    assert len(moments) > 10
    for root in moments:
        assert content(root) == expected, root.name


def test_killed_at_any_moment_the_set_is_judged_alike(tmp_path, photos, judged):
    script("kill judged", tmp_path, photos)
    moments = sorted(tmp_path.iterdir())
    assert len(moments) > 3
    for root in moments:
        assert content(root) == judged, root.name


def test_two_processes_make_the_set_of_one(tmp_path, photos, expected, judged):
    script("two", tmp_path, photos)
    assert content(tmp_path / "set") == expected
    assert content(tmp_path / "judged") == judged
    assert len(read_pairs(tmp_path / "one photo")) == 2


def die_at(moment):
    """Have the process killed at the given one of all the times that something reaches the disk."""
    seen = 0

    def count(function):
        def counted(*arguments):
            nonlocal seen
            result = function(*arguments)
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted

    os.fsync = count(os.fsync)
    Path.replace = count(Path.replace)


def killed(moment, root, photos, gates):
    child = os.fork()
    if child == 0:
        die_at(moment)
        synthesize(root, photos, gates=gates)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def kill_at_many_moments(folder, photos, gates=None, step=4):
    # Forking is safe only while no thread pool has been started.
    torch.set_num_threads(1)
    moment = 1
    while killed(moment, folder / f"{moment:03d}", photos, gates):
        # Killed twice: also soon after the resumption.
        killed(3, folder / f"{moment:03d}", photos, gates)
        moment += step
    for root in folder.iterdir():
        synthesize(root, photos, gates=gates)


def kill_judged(folder, photos):
    kill_at_many_moments(folder, photos, gates(), step=13)


def run_two_processes(folder, photos):
    trainer = {"strategy": "ddp", "devices": 2}
    synthesize(folder / "set", photos, trainer=trainer)
    synthesize(folder / "judged", photos, trainer=trainer, gates=gates())
    synthesize(folder / "one photo", photos, trainer=trainer, limit=1)


if __name__ == "__main__":
    modes = {"kill": kill_at_many_moments, "kill judged": kill_judged, "two": run_two_processes}
    modes[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
