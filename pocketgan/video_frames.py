"""Frames of videos as pictures, and pictures as frames: colours, turns, containers and their codecs."""

from fractions import Fraction
from types import ModuleType
from typing import Any, NamedTuple

from PIL import Image


class Codec(NamedTuple):
    """An encoder of FFmpeg and its options."""

    name: str
    options: dict[str, str]


# H.264 plays everywhere. At a rate factor of 18 its losses are hardly seen; "veryfast" leaves the cores to the model,
# for larger files than the slower default's.
_H264 = Codec("libx264", {"crf": "18", "preset": "veryfast"})
# WebM takes no H.264
_VP9 = Codec("libvpx-vp9", {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "5", "row-mt": "1"})


class Container(NamedTuple):
    """A format of FFmpeg, the codec of pictures in it, and the muxer's options."""

    name: str
    codec: Codec
    options: dict[str, str]


# the index first, so that a browser can begin to play before it has all of the file
MP4 = Container("mp4", _H264, {"movflags": "+faststart"})
CONTAINERS = {
    ".m4v": MP4,
    ".mkv": Container("matroska", _H264, {}),
    ".mov": Container("mov", _H264, {"movflags": "+faststart"}),
    ".mp4": MP4,
    ".webm": Container("webm", _VP9, {}),
}

# FFmpeg's AVColorSpace to swscale's numbers; those of other matrices, and files that name none, go by their height
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
_BT709, _BT601 = 1, 5
_LIMITED, _FULL = 1, 2
HDR_TRANSFERS = {16, 18}  # PQ, HLG


class Colours(NamedTuple):
    """How a video stores colours: swscale's number of the matrix, FFmpeg's of the rest."""

    matrix: int
    range: int
    primaries: int
    transfer: int

    @classmethod
    def of(cls, frame: Any) -> "Colours":
        """The colours of PyAV's video frame."""
        by_height = _BT709 if frame.height >= 720 else _BT601
        full = frame.color_range == _FULL or frame.format.name.startswith("yuvj")
        return cls(
            _MATRICES.get(frame.colorspace, by_height),
            # what is stored as RGB has a full range, but players expect a limited one of YUV
            _FULL if full and not frame.format.is_rgb else _LIMITED,
            frame.color_primaries,
            frame.color_trc,
        )


class FrameWriter:
    """Encodes pictures of one size into a container.

    Args:
        av: PyAV.
        target: The container.
        codec: Of the pictures.
        size: (width, height) in pixels.
        source: The stream whose rate and shape of pixels are kept.
        colours: As the pictures are to be stored.
        time_base: Unit of the times, in seconds.
        turned: The pictures are a quarter turn from the source's frames.
    """

    def __init__(
        self,
        av: ModuleType,
        target: Any,
        codec: Codec,
        size: tuple[int, int],
        source: Any,
        colours: Colours,
        time_base: Fraction,
        turned: bool,
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
            context.sample_aspect_ratio = 1 / shape if turned else shape

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


def is_turned(frame: Any) -> bool:
    """Whether PyAV's video frame is shown a quarter turn from how it is stored."""
    return frame.rotation % 180 == 90


_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


def upright(frame: Any) -> Image.Image:
    """Turn PyAV's video frame into an upright RGB picture."""
    colours = Colours.of(frame)
    picture: Image.Image = (
        frame.to_image()
        if frame.format.is_rgb
        else frame.to_image(src_colorspace=colours.matrix, src_color_range=colours.range, dst_color_range=_FULL)
    )
    turn = _TURNS.get(frame.rotation % 360)
    return picture if turn is None else picture.transpose(turn)
