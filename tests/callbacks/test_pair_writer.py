"""Run as a script, this file is the process that the tests kill or start twice."""

import errno
import os
import re
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
from tiny import TINY_CONFIGS

from callbacks import PairEstimate, PairWriter
from datamodules.source_photos import SourcePhotos
from lightning_modules.pair_synthesis import PairSynthesis
from pocketgan.cli import main
from pocketgan.gates import AlignmentGate, ExposureGate, NearDuplicateGate
from pocketgan.pair_set import is_unfinished, read_manifest, read_pairs, set_hash
from pocketgan.pair_set_writer import PairSetWriter
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


def synthesize(root, photos, teacher=None, trainer=None, gates=None, workers=4, **changes):
    settings = {"size": 64, "batch_size": 2, "minimum_side": 32, **changes}
    trainer_settings = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    loop = Trainer(**{**trainer_settings, **(trainer or {})}, callbacks=[PairWriter(root, workers=workers)])
    module = PairSynthesis(teacher or NoiseTeacher(), size=32, gates=gates)
    datamodule = SourcePhotos(photos, **settings)
    returned = loop.predict(module, datamodule=datamodule)
    return returned, module, datamodule


def estimate(root, photos, trainer):
    """What `pocketgan predict --dry-run` does."""
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "limit_predict_batches": 3}
    loop = Trainer(**settings, **trainer, callbacks=[PairEstimate.of(PairWriter(root))])
    module = PairSynthesis(NoiseTeacher(), size=32)
    loop.predict(module, datamodule=SourcePhotos(photos, size=64, batch_size=1, minimum_side=32))


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
    """Start this file as a process, or several; return what it prints."""
    repository = Path(__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if name not in {"LOCAL_RANK", "WORLD_SIZE"}}
    path = os.pathsep.join((str(repository), str(repository / "tests" / "support")))
    ended = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        check=True,
        env={**environment, "PYTHONPATH": path},
        cwd=repository,
        timeout=300,
        stdout=subprocess.PIPE,
        text=True,
    )
    return ended.stdout


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
    assert "judged by this command's gates, which differ from those that the set had" in capsys.readouterr().out
    assert content(root) == judged
    synthesize(root, photos, gates=gates())
    assert "differ" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r'gates: the set has \{"AlignmentGate".* this run none'):
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
    with pytest.raises(ValueError, match=r'gates: the set has none, this run \{"AlignmentGate"'):
        synthesize(root, photos, gates=gates())


def test_the_manifest_keeps_model_and_licence(tmp_path, photos, monkeypatch):
    root = tmp_path / "set"
    monkeypatch.setattr(NoiseTeacher, "origin", {"model": "noise", "licence": "mit"})
    synthesize(root, photos, limit=2)
    monkeypatch.setattr(NoiseTeacher, "origin", {"model": "noise", "licence": "unknown"})  # as without network
    synthesize(root, photos)
    assert read_manifest(root)["origin"] == {"model": "noise", "licence": "mit"}
    monkeypatch.undo()
    synthesize(tmp_path / "unnamed", photos)
    assert set_hash(tmp_path / "unnamed") == set_hash(root)
    assert len(read_pairs(root)) == 10


def test_pairs_of_a_killed_run_are_judged_even_if_the_next_one_fails(tmp_path, photos):
    root = tmp_path / "set"
    with pytest.raises(RuntimeError, match="the teacher failed"):
        synthesize(root, photos, NoiseTeacher(edits_before_failure=4), gates=gates(least_spread_levels=200))
    assert is_unfinished(root)
    with pytest.raises(RuntimeError, match="the teacher failed"):
        synthesize(root, photos, NoiseTeacher(edits_before_failure=0), gates=gates(least_spread_levels=200))
    assert not read_pairs(root)
    assert len(read_pairs(root, include_dropped=True)) == 4


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


@pytest.mark.parametrize("workers", [0, 1])
def test_threads_change_nothing(tmp_path, photos, judged, workers):
    synthesize(tmp_path / "set", photos, gates=gates(), workers=workers)
    assert content(tmp_path / "set") == judged


@pytest.mark.parametrize("batch_size", [2, 5])
def test_a_disk_that_fills_up_ends_the_run_and_it_can_be_resumed(tmp_path, photos, expected, monkeypatch, batch_size):
    root = tmp_path / "set"
    fsync, calls = os.fsync, []

    def fail_later(descriptor):
        calls.append(descriptor)
        if len(calls) > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_later)
        with pytest.raises(OSError, match="the disk is full"):
            synthesize(root, photos, batch_size=batch_size)
    synthesize(root, photos)
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
    with pytest.raises(ValueError, match=r"photos\.size: the set has 64, this run 32"):
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


@pytest.mark.extended
def test_killed_at_any_moment_the_set_is_resumed_to_the_same_bytes(tmp_path, photos, expected):
    script("kill", tmp_path, photos)
    moments = sorted(tmp_path.iterdir())
    assert len(moments) > 10
    for root in moments:
        assert content(root) == expected, root.name


@pytest.mark.extended
def test_killed_at_any_moment_the_set_is_judged_alike(tmp_path, photos, judged):
    script("kill judged", tmp_path, photos)
    moments = sorted(tmp_path.iterdir())
    assert len(moments) > 3
    for root in moments:
        assert content(root) == judged, root.name


@pytest.mark.extended
def test_two_processes_make_the_set_of_one(tmp_path, photos, expected, judged):
    shown = script("two", tmp_path, photos)
    assert "pairs to make  10 of 10" in shown
    assert re.search(r"on 2 processes: .* s a pair and process, timed on 3 pairs\n", shown)
    assert content(tmp_path / "set") == expected
    assert content(tmp_path / "judged") == judged
    assert len(read_pairs(tmp_path / "one photo")) == 2


@pytest.mark.extended
@pytest.mark.parametrize(
    "kills", [[(2, 1, 10)], pytest.param([(3, 2, 10), (2, 0, 8)], marks=pytest.mark.slow)], ids=["one", "two"]
)
def test_killed_processes_leave_a_set_that_any_number_resumes(tmp_path, kills):
    """By the command line: of so many processes one is killed at a moment; in the end one process makes the rest."""
    config = TINY_CONFIGS / "synthesize" / "style_transfer.yaml"
    words = ["predict", f"-c={config}", "--data.crops_per_photo=4", "--data.limit=24"]
    main([*words, f"--trainer.default_root_dir={tmp_path / 'expected'}"])
    root = tmp_path / "set"
    words.append(f"--trainer.default_root_dir={root}")
    made = 0
    for processes, killed, moment in kills:
        ended = command_line(killed, moment, *words, f"--trainer.devices={processes}", "--trainer.strategy=ddp")
        assert ended.returncode != 0
        assert made < len(read_pairs(root)) < 24
        made = len(read_pairs(root))
        assert is_unfinished(root)
    main(words)
    assert content(root) == content(tmp_path / "expected")


def test_a_process_ends_when_the_one_that_started_it_has(tmp_path, photos, monkeypatch):
    loop = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[PairWriter(tmp_path / "set")])
    parents = iter([7, 7, 1])
    monkeypatch.setattr("callbacks.pair_writer.os.getppid", lambda: next(parents))
    monkeypatch.setattr(Trainer, "local_rank", 1)
    datamodule = SourcePhotos(photos, size=64, minimum_side=32, batch_size=1)
    with pytest.raises(RuntimeError, match="the process that started rank 0 has ended; start the same command again"):
        loop.predict(PairSynthesis(NoiseTeacher(), size=32), datamodule=datamodule)
    assert len(read_pairs(tmp_path / "set")) == 4


def test_all_ranks_deal_the_photos_by_the_first_ones_list(tmp_path, photos):
    root = tmp_path / "set"
    loop = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[PairWriter(root)])
    done = {photo_id: {"red", "blue"} for photo_id in ids_of(photos)[:2]}
    loop.strategy.broadcast = lambda shared: (shared[0], done)
    loop.predict(PairSynthesis(NoiseTeacher(), size=32), datamodule=SourcePhotos(photos, size=64, minimum_side=32))
    assert {pair.id for pair in read_pairs(root)} == set(ids_of(photos)[2:])


def ids_of(photos):
    datamodule = SourcePhotos(photos, size=64, minimum_side=32)
    datamodule.setup("predict")
    return datamodule.ids


def test_in_one_line_what_was_refused(tmp_path, photos, monkeypatch):
    root = tmp_path / "p"
    words = ["predict", f"-c={TINY_CONFIGS / 'synthesize' / 'style_transfer.yaml'}"]
    words += [f"--trainer.default_root_dir={root}", "--data.limit=1"]
    main(words)
    settings = {key: value for key, value in read_manifest(root).items() if key not in {"format", "hash"}}
    writer = PairSetWriter(root, settings)
    monkeypatch.setattr(sys, "argv", ["pocketgan", *words])
    with pytest.raises(
        SystemExit, match=r"^pocketgan predict: pair set .* another process, which holds .*\.writer\.lock"
    ):
        main()
    writer.close()
    sys.argv.append("--model.teacher.size=160")
    with pytest.raises(SystemExit, match=r"settings:\n  teacher\.size: the set has 128, this run 160\nuse its"):
        main()


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


def command_line(killed_rank, moment, *words):
    """Run the command line on several processes, one of which is killed; return when all have ended."""
    repository = Path(__file__).parents[2]
    path = os.pathsep.join((str(repository), str(repository / "tests" / "support")))
    arguments = [sys.executable, __file__, "command", str(killed_rank), str(moment), *words]
    # whoever is left holds the pipe's end
    return subprocess.run(
        arguments, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}, timeout=300
    )


def killed_command_line(killed_rank, moment, *words):
    if os.environ.get("LOCAL_RANK", "0") == killed_rank:
        die_at(int(moment))
    main(list(words))


def run_two_processes(folder, photos):
    trainer = {"strategy": "ddp", "devices": 2}
    estimate(folder / "set", photos, trainer)
    assert not (folder / "set").exists()
    synthesize(folder / "set", photos, trainer=trainer)
    synthesize(folder / "judged", photos, trainer=trainer, gates=gates())
    synthesize(folder / "one photo", photos, trainer=trainer, limit=1)


if __name__ == "__main__":
    if sys.argv[1] == "command":
        killed_command_line(*sys.argv[2:])
    else:
        modes = {"kill": kill_at_many_moments, "kill judged": kill_judged, "two": run_two_processes}
        modes[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
