"""How wide StyleGAN2's layers are."""


def stylegan2_widths(size: int, channel_base: int, channel_max: int, channel_multiplier: float = 1.0) -> dict[int, int]:
    """Channels at each size from 4 px up: min(channel_base / size, channel_max) · channel_multiplier.

    Args:
        size: Side of the images in pixels.
        channel_base: Channels times pixels of a side.
        channel_max: Most channels, before the multiplier.
        channel_multiplier: Share of them that is kept, DGL-GAN's "channels_fraction" inverted.

    Raises:
        ValueError: The size is no power of two from 8, or a width comes out as no whole number from 1.
    """
    if size < 8 or size & (size - 1):
        raise ValueError(f"size {size} is not a power of two from 8; use 64, 128, 256, 512 or 1024")
    widths = {}
    side = 4
    while side <= size:
        full = min(channel_base // side, channel_max)
        width = full * channel_multiplier
        if width < 1 or width != int(width):
            raise ValueError(
                f"channel_multiplier {channel_multiplier} makes {width:g} of {full} channels at {side} px; use 1, 0.5, "
                "0.25 or 0.125, or a channel_base and channel_max that they divide"
            )
        widths[side] = int(width)
        side *= 2
    return widths
