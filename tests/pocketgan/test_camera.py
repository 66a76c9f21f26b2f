"""Camera streams, for which films stand."""

import os
import signal
import threading
from contextlib import nullcontext

import av
import numpy as np
import pytest
from films import UNSTEADY, frames_of, level, levels, make_video

from pocketgan import camera as camera_module
from pocketgan.camera import edit_camera, is_camera, open_camera
from pocketgan.editor import Editor


@pytest.fixture
def editor():
    return Editor(lambda photos: -photos, size_divisor=8)


@pytest.fixture(autouse=True)
def _quiet():
    av.logging.set_level(av.logging.FATAL)


class Camera:
    """Stands for a camera: gives a film's frames, each after ``before(index)``, and then calls ``end``."""

    def __init__(self, path, before=lambda index: None, end=lambda: None):
        self.container = av.open(path)
        self.streams = self.container.streams
        self.before, self.end = before, end

    def decode(self, video):
        for index, frame in enumerate(self.container.decode(video=video)):
            self.before(index)
            yield frame
        self.end()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.container.close()


def test_a_camera_drops_what_comes_while_the_model_is_busy(tmp_path, monkeypatch):
    busy, came = threading.Event(), threading.Event()
    source = make_video(tmp_path / "film.mkv", UNSTEADY, sound=None)

    def model(photos):
        busy.set()
        assert came.wait(20)
        return -photos

    camera = Camera(source, lambda index: index == 1 and busy.wait(20), came.set)
    monkeypatch.setattr(camera_module, "open_camera", lambda _: camera)
    out = tmp_path / "out" / "camera.mp4"
    recording = edit_camera("camera", Editor(model, size_divisor=8), out)
    assert recording == (2, 8, pytest.approx(1 / 2.2))
    stamps, pictures = frames_of(out)
    assert stamps == pytest.approx([0, 2.2], abs=1e-4)
    np.testing.assert_allclose(levels(pictures), [255 - level(0), 255 - level(9)], atol=3)


@pytest.mark.parametrize("how", ["seconds", "interrupt"])
def test_a_camera_ends_by_seconds_or_by_interrupt(tmp_path, monkeypatch, how):
    begun = threading.Semaphore(0)
    calls = []

    def model(photos):
        begun.release()
        calls.append(photos)
        if how == "interrupt" and len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return -photos

    source = make_video(tmp_path / "film.mkv", range(5), sound=None)
    camera = Camera(source, lambda index: index and begun.acquire(timeout=20))
    monkeypatch.setattr(camera_module, "open_camera", lambda _: camera)
    before = signal.getsignal(signal.SIGINT)
    out = tmp_path / "camera.mp4"
    recording = edit_camera("camera", Editor(model, size_divisor=8), out, seconds=0.4 if how == "seconds" else None)
    assert recording == (4, 0, pytest.approx(10))
    stamps, pictures = frames_of(out)
    assert stamps == pytest.approx([0, 0.1, 0.2, 0.3], abs=1e-4)
    np.testing.assert_allclose(levels(pictures), [255 - level(index) for index in range(4)], atol=3)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_camera_that_gives_nothing_or_breaks_off(tmp_path, monkeypatch, editor):
    class Broken(Camera):
        def decode(self, video):
            yield from list(super().decode(video))[: self.number]
            raise OSError("unplugged")

    source = make_video(tmp_path / "film.mkv", sound=None)
    camera = Broken(source)
    camera.number = 0
    monkeypatch.setattr(camera_module, "open_camera", lambda _: camera)
    with pytest.raises(OSError, match=r"camera gave no frame \(unplugged\)"):
        edit_camera("camera", editor, tmp_path / "out" / "camera.mp4")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="0 seconds hold no frame; give more than 0"):
        edit_camera("camera", editor, tmp_path / "out" / "camera.mp4", seconds=0)
    camera = Broken(source)
    camera.number = 1
    with pytest.warns(UserWarning, match=r"camera broke off \(unplugged\)"):
        assert edit_camera("camera", editor, tmp_path / "camera.mp4").frames == 1


@pytest.fixture
def silence(monkeypatch):
    """What a camera that stops delivering waits for; the patience with it is short."""
    monkeypatch.setattr(camera_module, "LONGEST_SILENCE_SECONDS", 0.3, raising=False)
    monkeypatch.setattr(camera_module, "FIRST_FRAME_SECONDS", 0.3, raising=False)
    monkeypatch.setattr(camera_module, "_CLOSING_SECONDS", 0.1, raising=False)
    ended = threading.Event()
    yield ended
    ended.set()


@pytest.mark.parametrize("how", ["silence", "interrupt"])
def test_a_camera_that_stops_delivering_leaves_what_was_recorded(tmp_path, monkeypatch, silence, how):
    begun = threading.Semaphore(0)

    def model(photos):
        begun.release()
        return -photos

    def fall_silent():
        assert begun.acquire(timeout=20)
        if how == "interrupt":
            monkeypatch.setattr(camera_module, "LONGEST_SILENCE_SECONDS", 60)
            os.kill(os.getpid(), signal.SIGINT)
        silence.wait(60)

    source = make_video(tmp_path / "film.mkv", range(5), sound=None)
    camera = Camera(source, lambda index: index and begun.acquire(timeout=20), fall_silent)
    monkeypatch.setattr(camera_module, "open_camera", lambda _: camera)
    out = tmp_path / "out" / "camera.mp4"
    message = r"camera broke off \(no frame for 0.3 seconds\); .*camera\.mp4 holds what came before"
    with pytest.warns(UserWarning, match=message) if how == "silence" else nullcontext():
        assert edit_camera("camera", Editor(model, size_divisor=8), out) == (5, 0, pytest.approx(10))
    assert len(frames_of(out)[0]) == 5
    assert [path.name for path in out.parent.iterdir()] == ["camera.mp4"]


@pytest.mark.parametrize("hangs", ["opening", "reading"])
def test_a_camera_that_never_delivers_is_given_up(tmp_path, monkeypatch, silence, editor, hangs):
    camera = Camera(make_video(tmp_path / "film.mkv", sound=None), lambda _: silence.wait(60))
    monkeypatch.setattr(camera_module, "open_camera", lambda _: (hangs == "opening" and silence.wait(60)) or camera)
    with pytest.raises(OSError, match=r"camera gave no frame \(no frame for 0.3 seconds\); check that no"):
        edit_camera("camera", editor, tmp_path / "out" / "camera.mp4")
    assert not (tmp_path / "out").exists()


def test_which_inputs_are_cameras(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [tmp_path.__class__(name) for name in ("camera", "camera:1", "/dev/video3", "camera:x", "camera.mp4")]
    assert [is_camera(path) for path in paths] == [True, True, True, False, False]
    (tmp_path / "camera").mkdir()
    assert not is_camera(paths[0])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (av.error.FileNotFoundError(2, "none"), "camera:7: there is no camera at /dev/video7; found: "),
        (av.error.PermissionError(13, "no"), r"/dev/video7 may not be used; join the group video"),
        (av.error.OSError(16, "busy"), r"/dev/video7 does not open \(.*busy.*end other programs"),
    ],
)
def test_a_camera_that_does_not_open(monkeypatch, error, expected):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(camera_module.platform, "system", lambda: "Linux")
    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(OSError, match=expected):
        open_camera("camera:7")


@pytest.mark.parametrize(
    ("system", "name", "opened"),
    [
        ("Linux", "camera", ("/dev/video0", "v4l2")),
        ("Linux", "/dev/video2", ("/dev/video2", "v4l2")),
        ("Darwin", "camera:1", ("1:none", "avfoundation")),
        ("Windows", "camera", ("video=Front", "dshow")),
    ],
)
def test_each_system_opens_its_device(monkeypatch, system, name, opened):
    calls = []
    device = type("Device", (), {"name": "Front", "media_types": ["video"]})
    monkeypatch.setattr(camera_module.platform, "system", lambda: system)
    monkeypatch.setattr(av.device, "enumerate_input_devices", lambda _: [device])
    monkeypatch.setattr(av, "open", lambda path, **options: calls.append((path, options["format"])))
    open_camera(name)
    assert calls == [opened]
