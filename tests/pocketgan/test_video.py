"""Videos, on films whose frames tell their number by their brightness."""

import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from films import FRAMES, SIZE, STEADY, UNSTEADY, frames_of, level, levels, make_video, sound_of
from PIL import Image
from tiny import real_photos

from lightning_modules import load_concepts
from pocketgan import camera as camera_module
from pocketgan import editor as editor_module
from pocketgan import load, video
from pocketgan.cli import main
from pocketgan.editor import Editor, edit_files
from pocketgan.exporters.concept_pack import PackedConcept, write_pack
from pocketgan.images import to_image
from pocketgan.video import UnreadableVideoError, edit_video, video_name


def inverted(photos):
    return -photos


@pytest.fixture
def editor():
    return Editor(inverted, size_divisor=8)


@pytest.fixture(autouse=True)
def _quiet():
    av.logging.set_level(av.logging.FATAL)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".m4v"])
@pytest.mark.parametrize("times", [STEADY, UNSTEADY], ids=["steady", "unsteady"])
def test_frames_keep_their_order_and_times_and_sound_its_packets(tmp_path, editor, suffix, times):
    source = make_video(tmp_path / f"film{suffix}", times)
    out = tmp_path / "out" / source.name
    assert edit_video(source, editor, out) == FRAMES
    stamps, pictures = frames_of(out)
    assert stamps == pytest.approx([time / 10 for time in times])
    assert pictures[0].shape == (48, 64, 3)
    np.testing.assert_allclose(levels(pictures), [255 - level(index) for index in STEADY], atol=3)
    assert sound_of(out) == sound_of(source)
    with av.open(out) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.audio[0].codec_context.name == "aac"
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_webm_stays_webm(tmp_path, editor):
    source = make_video(tmp_path / "film.webm", codec="libvpx-vp9", sound="libopus")
    edit_video(source, editor, tmp_path / "out.webm")
    stamps, pictures = frames_of(tmp_path / "out.webm")
    assert stamps == pytest.approx([time / 10 for time in STEADY])
    np.testing.assert_allclose(levels(pictures), [255 - level(index) for index in STEADY], atol=6)
    assert sound_of(tmp_path / "out.webm") == sound_of(source)


def test_other_containers_become_mp4(tmp_path, editor):
    source = make_video(tmp_path / "film.avi", codec="mpeg4", sound="mp3")
    assert video_name("film.AVI") == "film.mp4"
    assert video_name("film.MOV") == "film.MOV"
    edit_video(source, editor, tmp_path / "film.mp4")
    stamps, pictures = frames_of(tmp_path / "film.mp4")
    assert stamps == pytest.approx(frames_of(source)[0])
    np.testing.assert_allclose(levels(pictures), [255 - level(index) for index in STEADY], atol=6)
    assert [content for content, _ in sound_of(tmp_path / "film.mp4")] == [content for content, _ in sound_of(source)]


def test_a_broadcast_that_begins_late_is_moved_to_the_beginning(tmp_path, editor):
    source = make_video(tmp_path / "film.mts", range(36000, 36010), sound=None)
    edit_video(source, editor, tmp_path / "film.mp4")
    stamps, _ = frames_of(tmp_path / "film.mp4")
    assert stamps == pytest.approx([time / 10 for time in STEADY])


def test_sound_that_the_container_lacks_is_left_out_and_named(tmp_path, editor):
    source = make_video(tmp_path / "film.wmv", codec="wmv2", sound="wmav2")
    with pytest.warns(UserWarning, match=r"film\.wmv: its sound \(wmav2\) does not fit into \.mp4 and is left out"):
        edit_video(source, editor, tmp_path / "out.mp4")
    with av.open(tmp_path / "out.mp4") as container:
        assert not container.streams.audio
    assert len(frames_of(tmp_path / "out.mp4")[0]) == FRAMES


@pytest.mark.parametrize("turn", [90, 180, -90])
def test_a_turned_video_is_edited_and_stored_upright(tmp_path, turn):
    seen = []

    def model(photos):
        seen.append(photos)
        return photos

    source = make_video(tmp_path / "film.mp4", turn=turn, sound=None)
    edit_video(source, Editor(model, size_divisor=8), tmp_path / "out.mp4")
    with av.open(tmp_path / "out.mp4") as container:
        frame = next(container.decode(video=0))
    assert frame.rotation == 0
    assert (frame.width, frame.height) == (SIZE if turn == 180 else SIZE[::-1])
    # the dark left half comes to the bottom by 90 degrees counterclockwise
    dark = {90: np.s_[40:], 180: np.s_[:, 40:], -90: np.s_[:24]}[turn]
    picture = frame.to_ndarray(format="rgb24")
    assert picture[dark].mean() == pytest.approx(level(0) - 20, abs=3)
    assert (seen[0][0].permute(1, 2, 0)[dark].mean() + 1) * 127.5 == pytest.approx(level(0) - 20, abs=3)


@pytest.mark.parametrize("full", [False, True])
def test_colours_are_stored_as_they_were(tmp_path, full):
    # BT.709 in a small picture, where players would take BT.601
    path, colours = tmp_path / "film.mp4", {"colorspace": 1, "color_range": 2 if full else 1}
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height = SIZE
        for name, value in colours.items():
            setattr(stream.codec_context, name, value)
        red = av.VideoFrame.from_ndarray(np.full((48, 64, 3), (200, 30, 60), np.uint8))
        red = red.reformat(format="yuv420p", dst_colorspace=1, dst_color_range=colours["color_range"])
        container.mux(stream.encode(red))
        container.mux(stream.encode(None))
    seen = []

    def model(photos):
        seen.append((photos[0, :, 20, 20] + 1) * 127.5)
        return photos

    edit_video(path, Editor(model, size_divisor=8), tmp_path / "out.mp4")
    np.testing.assert_allclose(seen[0], (200, 30, 60), atol=4)
    with av.open(path) as before, av.open(tmp_path / "out.mp4") as after:
        first, edited = next(before.decode(video=0)), next(after.decode(video=0))
    for name, value in colours.items():
        assert getattr(edited, name) == value
    for plane, other in zip(first.planes, edited.planes, strict=True):
        assert int(np.asarray(plane)[0]) == pytest.approx(int(np.asarray(other)[0]), abs=2)


@pytest.mark.parametrize("pix_fmt", ["gray", "bgr0", "yuv420p10le", "yuv422p"])
def test_other_kinds_of_pixels(tmp_path, editor, pix_fmt):
    source = make_video(tmp_path / "film.mkv", codec="ffv1", sound=None, pix_fmt=pix_fmt)
    edit_video(source, editor, tmp_path / "out.mkv")
    pictures = frames_of(tmp_path / "out.mkv")[1]
    np.testing.assert_allclose(levels(pictures), [255 - level(index) for index in STEADY], atol=3)


def test_hdr_is_said_and_the_shape_of_pixels_kept(tmp_path, editor):
    source = make_video(
        tmp_path / "film.mp4", sound=None, turn=90, colours={"color_trc": 16, "sample_aspect_ratio": Fraction(4, 3)}
    )
    with pytest.warns(UserWarning, match=r"film\.mp4: it is HDR and stored in 8 bits"):
        edit_video(source, editor, tmp_path / "out.mp4")
    with av.open(tmp_path / "out.mp4") as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(3, 4)
        assert next(container.decode(video=0)).color_trc == 16


def test_damaged_packets_are_left_out_and_counted(tmp_path, editor):
    source = make_video(tmp_path / "film.mkv", codec="ffv1", sound=None)
    with av.open(source) as container:
        packet = list(container.demux(video=0))[4]
    content = source.read_bytes()
    place = content.index(bytes(packet))
    source.write_bytes(content[:place] + b"\xff" * packet.size + content[place + packet.size :])
    with pytest.warns(UserWarning, match=r"film\.mkv: 1 of its packets are damaged, and their frames left out"):
        assert edit_video(source, editor, tmp_path / "out.mkv") == FRAMES - 1
    stamps, _ = frames_of(tmp_path / "out.mkv")
    assert stamps == pytest.approx([time / 10 for time in STEADY if time != 4])


def test_the_cover_of_a_sound_file_is_no_video(tmp_path, editor):
    with av.open(tmp_path / "song.mp4", "w") as container:
        audio = container.add_stream("aac", rate=48000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = *SIZE, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 96000), np.int16), format="s16", layout="stereo")
        frame.sample_rate = 48000
        picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8)).reformat(format="yuvj420p")
        container.mux([*cover.encode(picture), *cover.encode(None), *audio.encode(frame), *audio.encode(None)])
    with pytest.raises(UnreadableVideoError, match=r"song\.mp4: holds no video, only audio"):
        edit_video(tmp_path / "song.mp4", editor, tmp_path / "out.mp4")


def test_odd_sides_stay(tmp_path, editor):
    source = make_video(tmp_path / "film.mp4", size=(65, 49), pix_fmt="yuv444p", sound=None)
    edit_video(source, editor, tmp_path / "out.mp4")
    assert frames_of(tmp_path / "out.mp4")[1][0].shape == (49, 65, 3)


def test_strength_mixes(tmp_path, editor):
    source = make_video(tmp_path / "film.mp4", sound=None)
    edit_video(source, editor, tmp_path / "out.mp4", strength=0.25)
    expected = [0.75 * level(index) + 0.25 * (255 - level(index)) for index in STEADY]
    np.testing.assert_allclose(levels(frames_of(tmp_path / "out.mp4")[1]), expected, atol=3)


def test_what_is_no_video_is_refused_by_name(tmp_path, editor):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no film" * 100)
    (tmp_path / "photo.mp4").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with av.open(tmp_path / "sound.mp4", "w") as container:
        audio = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 96000), np.int16), format="s16", layout="stereo")
        frame.sample_rate = 48000
        container.mux([*audio.encode(frame), *audio.encode(None)])
    whole = make_video(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "headless.mp4").write_bytes(whole[: len(whole) // 2])
    make_video(tmp_path / "tiny.mp4", size=(32, 16), sound=None)
    # the tracks are declared, and no frame follows
    with av.open(tmp_path / "none.mkv", "w") as container:
        container.add_stream("libx264", rate=10)
        container.start_encoding()
    reasons = {
        "empty": "is empty, 0 bytes",
        "text": "is no video that FFmpeg can read",
        "photo": "is HEIC, which is not read here; convert it as JPEG or PNG",
        "sound": "holds no video, only audio",
        "headless": "damaged at its beginning",
        "tiny": "32×16 pixels; both must be at least 32",
        "none": "holds no frame that can be decoded|is no video",
    }
    for name, reason in reasons.items():
        (path,) = tmp_path.glob(f"{name}.*")
        with pytest.raises(UnreadableVideoError, match=rf"{path.name}: .*({reason})"):
            edit_video(path, editor, tmp_path / "out" / "film.mp4")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"film\.gif would be no video; accepted are \.m4v"):
        edit_video(tmp_path / "whole.mp4", editor, tmp_path / "film.gif")


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_video_that_is_cut_off_is_edited_as_far_as_it_goes(tmp_path, editor, suffix):
    times = range(60)
    options = {"movflags": "+faststart"} if suffix == ".mp4" else {}
    path = tmp_path / f"film{suffix}"
    with av.open(path, "w", container_options=options) as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "5", "bf": "0", "crf": "1"})
        stream.width, stream.height = SIZE
        noise = np.random.default_rng(0)
        for _ in times:
            frame = av.VideoFrame.from_ndarray(noise.integers(0, 255, (48, 64, 3), dtype=np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match=r"film.*(seems cut off|cannot be read to its end)"):
        count = edit_video(path, editor, tmp_path / f"out{suffix}")
    assert 20 < count < 40
    assert len(frames_of(tmp_path / f"out{suffix}")[0]) == count


def test_an_interruption_leaves_nothing(tmp_path):
    calls = []

    def model(photos):
        calls.append(photos)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return photos

    source = make_video(tmp_path / "film.mp4")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "film.mp4").write_bytes(b"precious")
    with pytest.raises(KeyboardInterrupt):
        edit_video(source, Editor(model, size_divisor=8), tmp_path / "out" / "film.mp4")
    assert [path.read_bytes() for path in (tmp_path / "out").iterdir()] == [b"precious"]
    assert not [thread for thread in threading.enumerate() if thread.name == "decoder"]


def test_few_frames_are_decoded_ahead(tmp_path):
    decoded = []

    def items():
        for index in range(100):
            decoded.append(index)
            yield index + 1

    with video._ahead(items()) as ahead:
        assert next(ahead) == 1
        # one taken, those that wait, one in the thread's hands
        assert len(decoded) <= video.FRAMES_AHEAD + 2
        assert list(ahead) == list(range(2, 101))
    with pytest.raises(ZeroDivisionError), video._ahead(1 / index for index in (1, 0)) as ahead:
        list(ahead)


def test_folders_of_pictures_and_videos(tmp_path, editor):
    photos = tmp_path / "photos"
    (photos / "trip").mkdir(parents=True)
    Image.new("RGB", SIZE, "red").save(photos / "a.png")
    make_video(photos / "trip" / "b.MOV", sound=None)
    make_video(photos / "trip" / "c.avi", codec="mpeg4", sound=None)
    (photos / "trip" / "d.mp4").write_text("no film")
    with pytest.warns(UserWarning, match=r"(?s)skipped 1 of 4 pictures and videos:.*d\.mp4: is no video"):
        written = edit_files([photos], editor, tmp_path / "out")
    assert [path.relative_to(tmp_path / "out").as_posix() for path in written] == ["a.png", "trip/b.MOV", "trip/c.mp4"]
    assert len(frames_of(written[1])[0]) == len(frames_of(written[2])[0]) == FRAMES
    with pytest.raises(FileExistsError, match="--overwrite"):
        edit_files([photos / "trip" / "b.MOV"], editor, tmp_path / "out" / "trip")


def test_videos_are_edited_at_the_same_time_to_the_same_files(tmp_path):
    both = threading.Barrier(2, timeout=60)

    def model(photos):
        both.wait()  # breaks unless two come
        return -photos

    films = tmp_path / "films"
    films.mkdir()
    for name in "abcd":
        make_video(films / f"{name}.mp4", UNSTEADY if name < "c" else STEADY)
    written = edit_files([films], Editor(model, size_divisor=8), tmp_path / "two", jobs=2)
    assert [path.name for path in written] == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    one_by_one = edit_files([films], Editor(inverted, size_divisor=8), tmp_path / "one", jobs=1)
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in one_by_one]


def test_an_error_breaks_off_all_videos(tmp_path, monkeypatch):
    stopped, calls = threading.Event(), []

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            stopped.set()
            super().shutdown(wait)

    def model(photos):
        calls.append(photos)
        if len(calls) == 2:
            raise KeyboardInterrupt
        assert stopped.wait(60)
        return photos

    monkeypatch.setattr(editor_module, "ThreadPoolExecutor", Pool)
    films = tmp_path / "films"
    films.mkdir()
    for name in "abc":
        make_video(films / f"{name}.mp4", sound=None)
    with pytest.raises(KeyboardInterrupt):
        edit_files([films], Editor(model, size_divisor=8), tmp_path / "out", jobs=2)
    assert len(calls) <= 3
    assert list(tmp_path.iterdir()) == [films]


def test_a_missing_package_is_named(tmp_path, editor, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "film.mp4").write_bytes(b"0")
    with pytest.raises(ImportError, match=r"Editing videos needs the package av; .*pocketgan\[video\]"):
        edit_files([tmp_path / "film.mp4"], editor, tmp_path / "out")


@pytest.mark.extended
def test_a_concept_of_a_pack_edits_a_video(trained, tmp_path):
    switchable = load_concepts(trained["base"], [trained["adapter"]])
    torch.manual_seed(0)
    for delta in switchable.changes("sepia").deltas.values():  # some steps of training leave B near 0
        delta.b.normal_(0, 0.3)
    pack, concepts = tmp_path / "pack", ["inverted", "sepia"]
    write_pack(switchable, [PackedConcept(name, name) for name in concepts], pack, 32, 8)
    pictures = [to_image(photo) for photo in real_photos(FRAMES, 64)]
    source = make_video(tmp_path / "film.mp4", size=(64, 64), codec="libx264", pictures=pictures)
    frames = [Image.fromarray(frame) for frame in frames_of(source)[1]]
    model = load(pack)
    expected = {name: [np.asarray(model.edit(frame, name), int) for frame in frames] for name in concepts}
    for name, other in (concepts, concepts[::-1]):
        out = tmp_path / name
        main(["edit", str(source), f"--model={pack}", f"--concept={name}", f"--out={out}"])
        stamps, edits = frames_of(out / "film.mp4")
        assert stamps == pytest.approx([time / 10 for time in STEADY])
        assert sound_of(out / "film.mp4") == sound_of(source)
        for index, edit in enumerate(edits):
            to_own, to_other = ([np.abs(edit - each).mean() for each in expected[kind]] for kind in (name, other))
            assert np.argmin(to_own) == index
            assert to_own[index] < min(to_other)
    with pytest.raises(SystemExit, match="needs a concept; choose one with --concept: inverted, sepia"):
        main(["edit", str(source), f"--model={pack}", f"--out={tmp_path / 'out'}"])


def test_the_command_edits_videos_and_cameras(trained, tmp_path, monkeypatch, capsys):
    source = make_video(tmp_path / "film.mp4")
    words = ["edit", str(source), f"--model={trained['adapter']}", f"--out={tmp_path / 'out'}"]
    main(words)
    assert "1 video written to" in capsys.readouterr().out
    assert sound_of(tmp_path / "out" / "film.mp4") == sound_of(source)
    with pytest.raises(SystemExit, match="--seconds is for a camera"):
        main([*words, "--seconds=1"])
    monkeypatch.setattr(camera_module, "open_camera", lambda _: av.open("testsrc=size=64x48:rate=25", format="lavfi"))
    camera = ["edit", "camera", *words[2:], "--seconds=0.5"]
    main(camera)
    assert "camera.mp4: " in (printed := capsys.readouterr().out)
    assert "per second" in printed
    assert frames_of(tmp_path / "out" / "camera.mp4")[0]
    with pytest.raises(SystemExit, match=r"camera\.mp4 exists; .*--overwrite"):
        main(camera)
    with pytest.raises(SystemExit, match="a camera is edited alone"):
        main(["edit", "camera", str(source), *words[2:]])
    with pytest.raises(SystemExit, match="strength is 2"):
        main([*words, "--strength=2", "--overwrite"])
