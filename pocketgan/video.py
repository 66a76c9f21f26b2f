"""Videos through an editor, frame by frame."""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from queue import Full, Queue
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pocketgan.exporters.exporter import require
from pocketgan.files import whole_files
from pocketgan.images import foreign_format, foreign_reason
from pocketgan.video_frames import CONTAINERS, HDR_TRANSFERS, Colours, Container, FrameWriter, is_turned, upright

if TYPE_CHECKING:
    from pocketgan.editor import Editor

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm", ".wmv"}
)
FRAMES_AHEAD = 8


class UnreadableVideoError(ValueError):
    """A file that cannot be edited as a video; the message names it and says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")


def video_name(name: str) -> str:
    """The name of a video's edit: its own, with the suffix .mp4 where the container is none that is written."""
    path = Path(name)
    return name if path.suffix.lower() in CONTAINERS else f"{path.stem}.mp4"


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
    if out.suffix.lower() not in CONTAINERS:
        raise ValueError(f"{out} would be no video; accepted are {', '.join(sorted(CONTAINERS))}")
    kind = CONTAINERS[out.suffix.lower()]
    problems: list[str] = []
    first = _first_frame(av, source)
    with ExitStack() as stack:
        folder = stack.enter_context(whole_files(out.parent))
        opened = stack.enter_context(av.open(source, metadata_errors="replace"))
        video = _picture_stream(av, opened)
        video.thread_type = "AUTO"
        copied, refused = _streams_to_copy(av, opened, kind)
        problems += [f"its {name} does not fit into {out.suffix} and is left out" for name in refused]
        if first.color_trc in HDR_TRANSFERS:
            problems.append("it is HDR and stored in 8 bits; smooth areas may show bands")
        target = stack.enter_context(av.open(folder / out.name, "w", format=kind.name, container_options=kind.options))
        target.metadata.update({name: value for name, value in opened.metadata.items() if name not in _OWN_TAGS})
        if chapters := opened.chapters():
            target.set_chapters(chapters)
        size = (first.height, first.width) if is_turned(first) else (first.width, first.height)
        writer = FrameWriter(av, target, kind.codec, size, video, Colours.of(first), video.time_base, is_turned(first))
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
            picture = upright(content)
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


def _pts(frame: Any, start: Fraction) -> int | None:
    return None if frame.pts is None else frame.pts - round(start / frame.time_base)


def _shift(packet: Any, start: Fraction) -> None:
    moved = round(start / packet.time_base)
    packet.pts = None if packet.pts is None else packet.pts - moved
    packet.dts -= moved


def _streams_to_copy(av: ModuleType, opened: Any, kind: Container) -> tuple[list[Any], list[str]]:
    """Sound and subtitles that a container takes, and what to call the others."""
    copied, refused = [], []
    for stream in (*opened.streams.audio, *opened.streams.subtitles):
        if _fits(av, stream, kind):
            copied.append(stream)
        else:
            codec = stream.codec_context.name if stream.codec_context else "unknown codec"
            refused.append(f"{'sound' if stream.type == 'audio' else 'subtitle'} ({codec})")
    return copied, refused


def _fits(av: ModuleType, stream: Any, kind: Container) -> bool:
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


def _missing_end(video: Any, writer: FrameWriter, start: Fraction) -> list[str]:
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
