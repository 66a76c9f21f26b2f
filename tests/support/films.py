"""Films whose frames tell their number by their brightness."""

from fractions import Fraction

import av
import numpy as np

SIZE = (64, 48)
FRAMES = 10
STEADY = range(FRAMES)
UNSTEADY = (0, 1, 3, 4, 9, 10, 11, 20, 21, 22)


def level(index):
    return 40 + 16 * index


_OPTIONS = {"libx264": {"crf": "1"}, "ffv1": {"g": "1"}}


def make_video(
    path, times=STEADY, size=SIZE, codec="libx264", sound="aac", pix_fmt="yuv420p", turn=0, colours=(), pictures=()
):
    """A film of 10 units a second; its left half is darker, so that turns show, unless ``pictures`` are given."""
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=10, options=_OPTIONS.get(codec, {}))
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = Fraction(1, 10)
        stream.codec_context.flags |= av.codec.context.Flags.frame_duration
        for name, value in dict(colours).items():
            setattr(stream.codec_context, name, value)
        if turn:
            stream.set_display_rotation(turn)
        audio = container.add_stream(sound, rate=48000, bit_rate=64000) if sound else None
        if audio:
            wave = (8000 * np.sin(np.arange(48000 * (times[-1] + 1) // 10) / 20)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(np.repeat(wave, 2)[None], format="s16", layout="stereo")
            frame.sample_rate, frame.pts = 48000, 0
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
        for index, time in enumerate(times):
            pixels = np.full((size[1], size[0], 3), level(index), np.uint8)
            pixels[:, : size[0] // 2] -= 20
            frame = av.VideoFrame.from_ndarray(pixels if not pictures else np.asarray(pictures[index])).reformat(
                format=pix_fmt, dst_colorspace=1 if colours else None
            )
            frame.pts, frame.time_base, frame.duration = time, Fraction(1, 10), 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def frames_of(path):
    """Times in seconds and pictures as RGB."""
    with av.open(path) as container:
        frames = list(container.decode(video=0))
        return [float(frame.pts * frame.time_base) for frame in frames], [
            frame.to_ndarray(format="rgb24") for frame in frames
        ]


def sound_of(path):
    with av.open(path) as container:
        return [
            (bytes(packet), float(packet.pts * packet.time_base))
            for packet in container.demux(audio=0)
            if packet.dts is not None
        ]


def levels(pictures):
    """Brightness of the right halves, which tells the frame."""
    return [picture[:, picture.shape[1] // 2 + 4 :].mean() for picture in pictures]
