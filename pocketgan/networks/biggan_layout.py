"""Which layouts BigGAN's two networks have (BigGAN-PyTorch, BigGAN.py, G_arch and D_arch)."""

# size of the images: channels before each block and after the last, in widths
GENERATOR_MULTIPLIERS: dict[int, tuple[int, ...]] = {
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
}
# size of the images: channels after each block, in widths
DISCRIMINATOR_MULTIPLIERS: dict[int, tuple[int, ...]] = {
    32: (4, 4, 4, 4),
    64: (1, 2, 4, 8, 16),
    128: (1, 2, 4, 8, 16, 16),
    256: (1, 2, 4, 8, 8, 16, 16),
}
# how many of the first blocks halve the side; the others keep it
HALVING_BLOCKS = {32: 2, 64: 4, 128: 5, 256: 6}
FIRST_SIDE = 4  # of the first feature map in pixels


def check_layout(network: str, size: int, width: int, classes: int) -> None:
    """Refuse what neither of BigGAN's networks can be.

    Args:
        network: Its name, for the message.
        size: Side of the images in pixels.
        width: The unit of the channel counts.
        classes: Number of classes.

    Raises:
        ValueError: There is no such network.
    """
    if size not in GENERATOR_MULTIPLIERS:
        raise ValueError(
            f"{network} has no layout for {size} px; use one of {', '.join(map(str, GENERATOR_MULTIPLIERS))}"
        )
    if width < 1:
        raise ValueError(f"width is {width}; at least 1 is needed")
    if classes < 1:
        raise ValueError(
            f"{network} is class-conditional and classes is {classes}; give the number of classes, 1 if all images "
            f"are of one kind"
        )


def attention_sides(asked: tuple[int, ...] | None, sides: list[int]) -> set[int]:
    """The sides after which attention stands.

    Args:
        asked: Sides in pixels; None for 64 where it is among ``sides``.
        sides: Those that blocks of the network put out.

    Raises:
        ValueError: No block puts out a side that was asked for.
    """
    if asked is None:
        return {64} & set(sides)
    if unknown := set(asked) - set(sides):
        raise ValueError(
            f"attention_sizes has {', '.join(map(str, sorted(unknown)))}, which no block puts out; use some of "
            f"{', '.join(map(str, sorted(set(sides))))}, or an empty list for none"
        )
    return set(asked)
