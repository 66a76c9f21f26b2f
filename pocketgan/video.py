"""Videos and camera streams through an editor, frame by frame."""

import io
import platform
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from queue import Full, Queue
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pocketgan.exporters.exporter import require
from pocketgan.files import whole_files
from pocketgan.images import foreign_format, foreign_reason

if TYPE_CHECKING:
    from pocketgan.editor import Editor

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm", ".wmv"}
)
FRAMES_AHEAD = 8
CAMERA_FILE_NAME = "camera.mp4"
# a camera may have to be allowed first, in a dialogue of the system
FIRST_FRAME_SECONDS = 60.0
LONGEST_SILENCE_SECONDS = 10.0
_CLOSING_SECONDS = 2.0
_CAMERA_TIME_BASE = Fraction(1, 90_000)  # seconds


class _Codec(NamedTuple):
    name: str
    options: dict[str, str]


# H.264 plays everywhere. At a rate factor of 18 its losses are hardly seen; "veryfast" leaves the cores to the model,
# for larger files than the slower default's.
_H264 = _Codec("libx264", {"crf": "18", "preset": "veryfast"})
# WebM takes no H.264
_VP9 = _Codec("libvpx-vp9", {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "5", "row-mt": "1"})


class _Container(NamedTuple):
    name: str
    codec: _Codec
    options: dict[str, str]


# the index first, so that a browser can begin to play before it has all of the file
_MP4 = _Container("mp4", _H264, {"movflags": "+faststart"})
_CONTAINERS = {
    ".m4v": _MP4,
    ".mkv": _Container("matroska", _H264, {}),
    ".mov": _Container("mov", _H264, {"movflags": "+faststart"}),
    ".mp4": _MP4,
    ".webm": _Container("webm", _VP9, {}),
}

# FFmpeg's AVColorSpace to swscale's numbers; those of other matrices, and files that name none, go by their height
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
_BT709, _BT601 = 1, 5
_LIMITED, _FULL = 1, 2
_UNSPECIFIED = 2
_HDR_TRANSFERS = {16, 18}  # PQ, HLG


class UnreadableVideoError(ValueError):
    """A file that cannot be edited as a video; the message names it and says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")


class CameraRecording(NamedTuple):
    """What came of a camera stream.

    Attributes:
        frames: Edited and written.
        dropped: Frames that came while the model was busy.
        frames_per_second: Written, by the camera's clock.
    """

    frames: int
    dropped: int
    frames_per_second: float


class _Colours(NamedTuple):
    """How a video stores colours: swscale's number of the matrix, FFmpeg's of the rest."""

    matrix: int
    range: int
    primaries: int
    transfer: int

    @classmethod
    def of(cls, frame: Any) -> "_Colours":
        by_height = _BT709 if frame.height >= 720 else _BT601
        full = frame.color_range == _FULL or frame.format.name.startswith("yuvj")
        return cls(
            _MATRICES.get(frame.colorspace, by_height),
            # what is stored as RGB has a full range, but players expect a limited one of YUV
            _FULL if full and not frame.format.is_rgb else _LIMITED,
            frame.color_primaries,
            frame.color_trc,
        )


def video_name(name: str) -> str:
    """The name of a video's edit: its own, with the suffix .mp4 where the container is none that is written."""
    path = Path(name)
    return name if path.suffix.lower() in _CONTAINERS else f"{path.stem}.mp4"


def edit_video(
    source: Path,
    editor: "Editor",
    out: Path,
    strength: float = 1.0,
    progress: Progress | None = None,
    stopped: threading.Event | None = None,
) -> int:
    """Edit each frame of a video at its own size; the file appears whole or not at all.

    Frames keep their order and their times, variable rates too. They are turned upright, and the rotation is no longer
    stored. Colour matrix, range, primaries and transfer stay as they are, a matrix that the file does not name is
    BT.709 from 720 lines on and BT.601 below, as players take it. Pixels are stored in 8 bits, transparency is lost,
    and interlaced frames are edited as they are. Sound, subtitles, chapters and tags are copied, not encoded anew. The
    picture becomes H.264, and VP9 in WebM. Frames are decoded ahead in a thread of their own while the model works, at
    most 8, so that a long video takes no more memory than a short one.

    A video that is cut off, or damaged in places, is edited as far as it can be decoded.

    Args:
        source: The video.
        editor: Edits each frame.
        out: File to write, its suffix one of .mp4, .m4v, .mov, .mkv, .webm; its folder is made, an existing file is
            replaced.
        strength: Share of the edit in the result, 0 to 1; the rest is the frame.
        progress: Shows how far it is, beside other videos; one of its own if None.
        stopped: Breaks it off once it is set.

    Returns:
        The number of frames.

    Raises:
        ImportError: PyAV is not installed.
        InterruptedError: ``stopped`` was set; nothing is written.
        OSError: The file cannot be written; nothing is then.
        UnreadableVideoError: The source is no video, holds no picture, or its frames are smaller than 32 pixels a side.
        ValueError: ``out`` has another suffix.

    Warns:
        UserWarning: The video is cut off or damaged, a sound or subtitle does not fit the container, or it is HDR.
    """
    av = require("av", "Editing videos", "video")
    if out.suffix.lower() not in _CONTAINERS:
        raise ValueError(f"{out} would be no video; accepted are {', '.join(sorted(_CONTAINERS))}")
    kind = _CONTAINERS[out.suffix.lower()]
    problems: list[str] = []
    first = _first_frame(av, source)
    with ExitStack() as stack:
        folder = stack.enter_context(whole_files(out.parent))
        opened = stack.enter_context(av.open(source, metadata_errors="replace"))
        video = _picture_stream(av, opened)
        video.thread_type = "AUTO"
        copied, refused = _streams_to_copy(av, opened, kind)
        problems += [f"its {name} does not fit into {out.suffix} and is left out" for name in refused]
        if first.color_trc in _HDR_TRANSFERS:
            problems.append("it is HDR and stored in 8 bits; smooth areas may show bands")
        target = stack.enter_context(av.open(folder / out.name, "w", format=kind.name, container_options=kind.options))
        target.metadata.update({name: value for name, value in opened.metadata.items() if name not in _OWN_TAGS})
        if chapters := opened.chapters():
            target.set_chapters(chapters)
        size = (first.height, first.width) if _is_turned(first) else (first.width, first.height)
        writer = _FrameWriter(
            av, target, kind.codec, size, video, _Colours.of(first), video.time_base, _is_turned(first)
        )
        stream_of = {stream.index: _copy_stream(target, stream) for stream in copied}
        # another container need not begin at the times of this one, which may be hours in a broadcast
        moves = source.suffix.lower() != out.suffix.lower() and opened.start_time is not None
        start = Fraction(opened.start_time, av.time_base) if moves else Fraction(0)
        shown = stack.enter_context(video_progress()) if progress is None else progress
        task = shown.add_task(f"Editing {source.name}", total=_expected_frames(video))
        if progress is not None:
            stack.callback(progress.remove_task, task)
        contents = stack.enter_context(_ahead(_contents(av, opened, video, copied, problems)))
        for content in contents:
            if stopped is not None and stopped.is_set():
                raise InterruptedError(f"{source}: broken off")
            if isinstance(content, av.Packet):
                _shift(content, start)
                content.stream = stream_of[content.stream_index]
                target.mux_one(content)
                continue
            picture = _upright(content)
            edit = editor.edit(picture, strength)
            # a stream may change its size, a file's track may not
            writer.write(edit if edit.size == size else edit.resize(size), _pts(content, start), content.duration)
            shown.advance(task)
        writer.finish()
        problems += _missing_end(video, writer, start)
    if problems:
        warnings.warn(f"{source}: {'; '.join(problems)}", stacklevel=2)
    return writer.frames


# what the muxer says itself
_OWN_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder"}


def _first_frame(av: ModuleType, source: Path) -> Any:
    """Open a video and decode its first frame, or say why it is none."""
    from pocketgan.editor import MINIMUM_SIDE

    if source.stat().st_size == 0:
        raise UnreadableVideoError(source, "is empty, 0 bytes; copy it again from where it came")
    if (name := foreign_format(source)) is not None:
        raise UnreadableVideoError(source, foreign_reason(name))
    try:
        with av.open(source, metadata_errors="replace") as opened:
            video = _picture_stream(av, opened)
            if video is None:
                kinds = ", ".join(sorted({stream.type for stream in opened.streams} - {"video"})) or "nothing"
                raise UnreadableVideoError(source, f"holds no video, only {kinds}; give a file with pictures")
            if video.codec_context is None:
                raise UnreadableVideoError(source, "is in a codec that this FFmpeg cannot decode; convert it to H.264")
            frame = next(_contents(av, opened, video, [], []), None)
    except av.error.FFmpegError as error:
        reason = f"is no video that FFmpeg can read, or is damaged at its beginning ({error.strerror})"
        raise UnreadableVideoError(source, reason) from error
    if frame is None:
        raise UnreadableVideoError(source, "holds no frame that can be decoded")
    if min(frame.width, frame.height) < MINIMUM_SIDE:
        reason = f"its frames are {frame.width}×{frame.height} pixels; both must be at least {MINIMUM_SIDE}"
        raise UnreadableVideoError(source, reason)
    return frame


def _picture_stream(av: ModuleType, opened: Any) -> Any:
    """The first stream of pictures that is no cover of a sound file; None if there is none."""
    covers = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    return next((stream for stream in opened.streams.video if not stream.disposition & covers), None)


def _contents(av: ModuleType, opened: Any, video: Any, copied: list[Any], problems: list[str]) -> Iterator[Any]:
    """Frames of a video and packets of other streams, as they come in the file; what is wrong goes to ``problems``."""
    damaged = 0
    packets = opened.demux(video, *copied)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as error:
            problems.append(f"it cannot be read to its end ({error.strerror}); what comes before is edited")
            break
        if packet is None:
            break
        if packet.stream_index != video.index:
            if packet.dts is not None:  # the last one only says that there is no more
                yield packet
            continue
        try:
            yield from packet.decode()
        except av.error.FFmpegError:
            damaged += 1
    if damaged:
        problems.append(f"{damaged} of its packets are damaged, and their frames left out")


Item = TypeVar("Item")


@contextmanager
def _ahead(items: Iterator[Item]) -> Iterator[Iterator[Item]]:
    """Let a thread fetch items ahead of whoever takes them, in their order."""
    fetched: Queue[tuple[Item | None, BaseException | None]] = Queue(FRAMES_AHEAD)
    stopped = threading.Event()

    def put(item: Item | None, error: BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                fetched.put((item, error), timeout=0.1)
            except Full:
                continue
            return True
        return False

    def fetch() -> None:
        try:
            for item in items:
                if not put(item, None):
                    return
            put(None, None)
        except BaseException as error:  # raised again where the items are taken
            put(None, error)

    def taken() -> Iterator[Item]:
        while True:
            item, error = fetched.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    thread = threading.Thread(target=fetch, name="decoder", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stopped.set()
        thread.join()


class _FrameWriter:
    """Encodes pictures of one size into a container.

    Args:
        av: PyAV.
        target: The container.
        codec: Of the pictures.
        size: (width, height) in pixels.
        source: The stream whose rate and shape of pixels are kept.
        colours: As the pictures are to be stored.
        time_base: Unit of the times, in seconds.
        is_turned: The pictures are a quarter turn from the source's frames.
    """

    def __init__(
        self,
        av: ModuleType,
        target: Any,
        codec: _Codec,
        size: tuple[int, int],
        source: Any,
        colours: _Colours,
        time_base: Fraction,
        is_turned: bool,
    ) -> None:
        self._av, self._target, self._colours = av, target, colours
        self.frames, self.last_pts = 0, -1
        rate = source.average_rate or source.guessed_rate or Fraction(30)
        self.time_base = time_base
        self._stream = target.add_stream(codec.name, rate=rate, options=codec.options)
        self._step = max(round(1 / (rate * self.time_base)), 1)
        context = self._stream.codec_context
        self._stream.width, self._stream.height = size
        # halved colours need even sides; H.264 in full colour has them odd, for players that decode it in software
        odd = any(side % 2 for side in size)
        self._stream.pix_fmt = "yuv444p" if odd and codec is _H264 else "yuv420p"
        self._stream.time_base = context.time_base = self.time_base
        context.flags |= av.codec.context.Flags.frame_duration
        context.colorspace = {1: 1, 4: 4, 5: 6, 7: 7, 9: 9}[colours.matrix]
        context.color_range = colours.range
        context.color_primaries, context.color_trc = colours.primaries, colours.transfer
        if shape := source.sample_aspect_ratio:
            context.sample_aspect_ratio = 1 / shape if is_turned else shape

    def write(self, picture: Image.Image, pts: int | None, duration: int) -> None:
        """Encode an RGB picture.

        Args:
            picture: Of the writer's size.
            pts: Its time in units of ``time_base``; a step after the last if None.
            duration: Likewise, 0 if unknown.
        """
        # muxers take no frame at or before the time of another
        pts = self.last_pts + self._step if pts is None else pts
        self.last_pts = pts if not self.frames else max(pts, self.last_pts + 1)
        frame = self._av.VideoFrame.from_image(picture).reformat(
            format=self._stream.pix_fmt, dst_colorspace=self._colours.matrix, dst_color_range=self._colours.range
        )
        frame.color_primaries, frame.color_trc = self._colours.primaries, self._colours.transfer
        frame.pts, frame.time_base, frame.duration = self.last_pts, self.time_base, duration
        self._target.mux(self._stream.encode(frame))
        self.frames += 1

    def finish(self) -> None:
        """Write what the encoder still holds."""
        self._target.mux(self._stream.encode(None))


def _is_turned(frame: Any) -> bool:
    return frame.rotation % 180 == 90


_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


def _upright(frame: Any) -> Image.Image:
    """Turn a frame into an upright RGB picture."""
    colours = _Colours.of(frame)
    picture: Image.Image = (
        frame.to_image()
        if frame.format.is_rgb
        else frame.to_image(src_colorspace=colours.matrix, src_color_range=colours.range, dst_color_range=_FULL)
    )
    turn = _TURNS.get(frame.rotation % 360)
    return picture if turn is None else picture.transpose(turn)


def _pts(frame: Any, start: Fraction) -> int | None:
    return None if frame.pts is None else frame.pts - round(start / frame.time_base)


def _shift(packet: Any, start: Fraction) -> None:
    moved = round(start / packet.time_base)
    packet.pts = None if packet.pts is None else packet.pts - moved
    packet.dts -= moved


def _streams_to_copy(av: ModuleType, opened: Any, kind: _Container) -> tuple[list[Any], list[str]]:
    """Sound and subtitles that a container takes, and what to call the others."""
    copied, refused = [], []
    for stream in (*opened.streams.audio, *opened.streams.subtitles):
        if _fits(av, stream, kind):
            copied.append(stream)
        else:
            codec = stream.codec_context.name if stream.codec_context else "unknown codec"
            refused.append(f"{'sound' if stream.type == 'audio' else 'subtitle'} ({codec})")
    return copied, refused


def _fits(av: ModuleType, stream: Any, kind: _Container) -> bool:
    # some misfits are refused when a stream is added, others when the header is written
    try:
        with av.open(io.BytesIO(), "w", format=kind.name) as trial:
            _copy_stream(trial, stream)
            trial.start_encoding()
    except (av.error.FFmpegError, ValueError):
        return False
    return True


def _copy_stream(target: Any, stream: Any) -> Any:
    copy = target.add_stream_from_template(stream)
    copy.metadata.update(stream.metadata)
    copy.disposition = stream.disposition
    return copy


def _expected_frames(video: Any) -> int | None:
    if video.frames:
        return int(video.frames)
    if video.duration and video.average_rate:
        return round(video.duration * video.time_base * video.average_rate)
    return None


def _missing_end(video: Any, writer: _FrameWriter, start: Fraction) -> list[str]:
    """Say where a video ends that ought to be longer: some containers end without an error where they are cut off."""
    duration = video.duration * video.time_base if video.duration else None
    if duration is None and video.container.duration:
        duration = Fraction(video.container.duration, 1_000_000)
    if duration is None:
        return []
    reached = float(writer.last_pts * writer.time_base + start - (video.start_time or 0) * video.time_base)
    # sound may end later than the picture, by little
    if reached > 0.9 * float(duration) - 1:
        return []
    return [f"its picture ends after {reached:.1f} of {float(duration):.1f} seconds; it seems cut off"]


def video_progress() -> Progress:
    """Bars for videos, in frames."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def is_camera(entry: Path) -> bool:
    """Whether an input means a camera: ``camera``, ``camera:1``, ``/dev/video0``; unless a file is called so."""
    name = str(entry)
    if name.startswith("/dev/video"):
        return True
    first, _, number = name.partition(":")
    return first == "camera" and (not number or number.isdigit()) and not entry.exists()


def open_camera(name: str) -> Any:
    """Open a camera by FFmpeg's device of the system: v4l2, avfoundation or dshow.

    Args:
        name: ``camera``, the first; ``camera:1``, the second; or on Linux its device, ``/dev/video0``.

    Returns:
        PyAV's input container.

    Raises:
        ImportError: PyAV is not installed.
        OSError: There is no such camera, it may not be used, or another program uses it.
    """
    av = require("av", "A camera", "video")
    number = int(name.partition(":")[2] or 0)
    system = platform.system()
    options: dict[str, str] = {}
    if system == "Darwin":
        # the device has no default rate that every camera takes
        device, form, options = f"{number}:none", "avfoundation", {"framerate": "30"}
    elif system == "Windows":
        found = [each.name for each in av.device.enumerate_input_devices("dshow") if "video" in each.media_types]
        if number >= len(found):
            raise FileNotFoundError(f"{name}: there is no such camera; found: {', '.join(found) or 'none'}")
        device, form = f"video={found[number]}", "dshow"
    else:
        device, form = name if name.startswith("/dev/") else f"/dev/video{number}", "v4l2"
    try:
        return av.open(device, format=form, options=options)
    except PermissionError as error:
        raise PermissionError(
            f"{name}: {device} may not be used; join the group video (sudo usermod -aG video $USER, then log in "
            "again), or allow the terminal to use the camera in the system's privacy settings"
        ) from error
    except FileNotFoundError as error:
        found = sorted(map(str, Path("/dev").glob("video*")))
        raise FileNotFoundError(
            f"{name}: there is no camera at {device}; found: {', '.join(found) or 'none'}; plug one in, or choose "
            "another, such as camera:1"
        ) from error
    except (OSError, ValueError, av.error.FFmpegError) as error:
        raise OSError(
            f"{name}: {device} does not open ({error}); end other programs that use the camera, or choose another, "
            "such as camera:1"
        ) from error


def edit_camera(
    name: str, editor: "Editor", out: Path, strength: float = 1.0, seconds: float | None = None
) -> CameraRecording:
    """Edit a camera's stream live into a file, until Ctrl-C or for some seconds.

    A frame that comes while the model is busy takes the place of the one that waits, so that the edit is never more
    than a frame behind. Each frame has the camera's time of it. Ctrl-C ends the file properly, also while the camera is
    silent; a camera that gives nothing for 10 seconds, or for 60 at first, ends it, too.

    Args:
        name: As for ``open_camera``.
        editor: Edits each frame.
        out: The MP4 file to write, whole or not at all; its folder is made, an existing file is replaced.
        strength: Share of the edit in the result, 0 to 1; the rest is the frame.
        seconds: How long by the camera's clock; until Ctrl-C if None.

    Returns:
        Frames written and dropped, and frames per second.

    Raises:
        OSError: The camera does not open, gives no frame before Ctrl-C or in 60 seconds, or breaks down before its
            first; or the file cannot be written.
        ValueError: Its frames are smaller than 32 pixels a side, or ``seconds`` is none.

    Warns:
        UserWarning: The camera broke off or fell silent; what came before is written.
    """
    av = require("av", "A camera", "video")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"{seconds:g} seconds hold no frame; give more than 0, or leave it out to end by Ctrl-C")
    writer: _FrameWriter | None = None
    with ExitStack() as devices:
        stopped = devices.enter_context(_stopped_by_interrupt())
        latest = _LatestFrame(name, stopped)
        # once the recording has its name: a camera that hangs must not take it along
        devices.callback(latest.stop)
        with ExitStack() as stack:
            folder = stack.enter_context(whole_files(out.parent))
            target = stack.enter_context(
                av.open(folder / out.name, "w", format=_MP4.name, container_options=_MP4.options)
            )
            progress = stack.enter_context(
                Progress(TextColumn("{task.description}"), console=Console(stderr=True), refresh_per_second=4)
            )
            task = progress.add_task("waiting for the camera; Ctrl-C ends", total=None)
            first_time = last_time = 0.0
            while (frame := latest.take(LONGEST_SILENCE_SECONDS if writer else FIRST_FRAME_SECONDS)) is not None:
                picture = _upright(frame)
                if writer is None:
                    first_time = frame.time
                    size, colours = picture.size, _Colours.of(frame)
                    writer = _FrameWriter(
                        av, target, _MP4.codec, size, latest.stream, colours, _CAMERA_TIME_BASE, _is_turned(frame)
                    )
                if seconds is not None and frame.time - first_time >= seconds:
                    break
                last_time = frame.time
                writer.write(editor.edit(picture, strength), round((last_time - first_time) / writer.time_base), 0)
                rate = _rate(writer.frames, last_time - first_time)
                progress.update(
                    task,
                    description=f"{writer.frames} frames, {rate:.1f} per second, {latest.dropped} dropped; Ctrl-C ends",
                )
            if writer is None:
                reason = latest.error or ("ended before its first" if stopped.is_set() else "")
                raise OSError(
                    f"{name} gave no frame{f' ({reason})' if reason else ''}; check that no other program uses it, and "
                    "plug it in anew"
                )
            writer.finish()
    if latest.error:
        warnings.warn(f"{name} broke off ({latest.error}); {out} holds what came before", stacklevel=2)
    return CameraRecording(writer.frames, latest.dropped, _rate(writer.frames, last_time - first_time))


def _rate(frames: int, seconds: float) -> float:
    # so many frames have one gap fewer between them
    return (frames - 1) / seconds if seconds > 0 else 0.0


class _LatestFrame:
    """Opens, reads and closes a camera in a thread of its own and keeps the newest frame.

    All in that thread, since a camera without frames may hang in each of the three, and none may be closed while it is
    read.

    Args:
        name: As for ``open_camera``.
        stopped: Ends the reading once it is set.

    Attributes:
        dropped: Frames that another took the place of.
        error: Why the camera ended before it was told to.
        stream: PyAV's, once there is a frame.
    """

    def __init__(self, name: str, stopped: threading.Event) -> None:
        self.dropped, self.error = 0, ""
        self.stream: Any = None
        self._name, self._stopped = name, stopped
        self._frame: Any = None
        self._refusal: Exception | None = None
        self._has_ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="camera", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            camera = open_camera(self._name)
        except Exception as error:  # raised again where the frames are taken
            self._refusal = error
        else:
            try:
                with camera:
                    self.stream = camera.streams.video[0]
                    for frame in camera.decode(video=0):
                        if self._stopped.is_set():
                            break
                        with self._changed:
                            self.dropped += self._frame is not None
                            self._frame = frame
                            self._changed.notify()
            except Exception as error:  # told where the frames are taken
                self.error = str(error) or type(error).__name__
        with self._changed:
            self._has_ended = True
            self._changed.notify()

    def take(self, timeout_seconds: float) -> Any:
        """Wait for a frame that was not taken yet; None once the camera, the user or the patience has ended.

        Raises:
            Exception: The camera did not open; what ``open_camera`` raised.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            # a signal's handler cannot notify: the lock may be held where it comes in
            while self._frame is None and not self._has_ended and not self._stopped.is_set():
                if time.monotonic() > deadline:
                    self.error = f"no frame for {timeout_seconds:g} seconds"
                    break
                self._changed.wait(0.1)
            frame, self._frame = self._frame, None
        if self._refusal is not None:
            raise self._refusal
        return None if self._stopped.is_set() else frame

    def stop(self) -> None:
        """End the reading; one that hangs is left to the end of the process."""
        self._stopped.set()
        self._thread.join(_CLOSING_SECONDS)


@contextmanager
def _stopped_by_interrupt() -> Iterator[threading.Event]:
    """Let the first Ctrl-C set an event rather than break off; a second one does."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals come to the main thread alone
        yield stopped
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)

    before = signal.getsignal(signal.SIGINT) or signal.default_int_handler
    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
