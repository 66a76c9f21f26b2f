"""Camera streams through an editor, live."""

import platform
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.progress import Progress, TextColumn

from pocketgan.exporters.exporter import require
from pocketgan.files import whole_files
from pocketgan.video_frames import MP4, Colours, FrameWriter, is_turned, upright

if TYPE_CHECKING:
    from pocketgan.editor import Editor

CAMERA_FILE_NAME = "camera.mp4"
# a camera may have to be allowed first, in a dialogue of the system
FIRST_FRAME_SECONDS = 60.0
LONGEST_SILENCE_SECONDS = 10.0
_CLOSING_SECONDS = 2.0
_CAMERA_TIME_BASE = Fraction(1, 90_000)  # seconds


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
    writer: FrameWriter | None = None
    with ExitStack() as devices:
        stopped = devices.enter_context(_stopped_by_interrupt())
        latest = _LatestFrame(name, stopped)
        # once the recording has its name: a camera that hangs must not take it along
        devices.callback(latest.stop)
        with ExitStack() as stack:
            folder = stack.enter_context(whole_files(out.parent))
            target = stack.enter_context(
                av.open(folder / out.name, "w", format=MP4.name, container_options=MP4.options)
            )
            progress = stack.enter_context(
                Progress(TextColumn("{task.description}"), console=Console(stderr=True), refresh_per_second=4)
            )
            task = progress.add_task("waiting for the camera; Ctrl-C ends", total=None)
            first_time = last_time = 0.0
            while (frame := latest.take(LONGEST_SILENCE_SECONDS if writer else FIRST_FRAME_SECONDS)) is not None:
                picture = upright(frame)
                if writer is None:
                    first_time = frame.time
                    size, colours = picture.size, Colours.of(frame)
                    writer = FrameWriter(
                        av, target, MP4.codec, size, latest.stream, colours, _CAMERA_TIME_BASE, is_turned(frame)
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
