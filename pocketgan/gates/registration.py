"""How an edit lies on its photo: shift, scale and rotation, by edges that need not be of one colour or sign."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

Field = NDArray[np.complex64]
Plane = NDArray[np.float32]

COARSE_SIDE = 48
LARGEST_FINE_SIDE = 256
AGREEMENT_SIDE = 128
LARGEST_SCALE, SCALES = 1.25, 13
LARGEST_ROTATION_DEGREES, ROTATIONS = 18.0, 13
LARGEST_SHIFT = 0.15  # of the shorter side

_EDGE_SIGMA_PX = 0.7
_MARGIN = 0.06  # of the side: how far from the border a pixel counts in full
_STARTS = 2
_COARSE_STEPS, _FINE_STEPS = 6, 8
_LONGEST_STEP_PX = 1.5
_SMALL_STEP_PX = 0.003
_SAME_PX = 3.0


@dataclass(frozen=True)
class Similarity:
    """Where a picture's points have gone: from x, about the picture's centre, to shift + scale · rotation · x.

    Attributes:
        shift_x_px: To the right.
        shift_y_px: Downwards.
        scale: Above 1 where the picture is enlarged.
        rotation_degrees: Clockwise as seen on a screen.
    """

    shift_x_px: float = 0.0
    shift_y_px: float = 0.0
    scale: float = 1.0
    rotation_degrees: float = 0.0

    def displacement_px(self, height: int, width: int) -> float:
        """How far the pixels of a picture of (height, width) have gone: root of the mean square."""
        turned = self.scale * np.exp(1j * np.deg2rad(self.rotation_degrees)) - 1
        # the mean of |x|² over a grid of pixels about its centre
        spread = (height**2 + width**2 - 2) / 12
        return float(np.sqrt(self.shift_x_px**2 + self.shift_y_px**2 + abs(turned) ** 2 * spread))

    def rounded(self) -> "Similarity":
        """The same to a ten thousandth of a pixel, so that no pixel hangs on the last bits of a sum."""
        return Similarity(
            round(self.shift_x_px, 4), round(self.shift_y_px, 4), round(self.scale, 6), round(self.rotation_degrees, 4)
        )


def orientation_field(picture: Plane) -> Field:
    """A picture's edges as complex numbers: as long as the edge is strong, at twice its angle.

    Twice the angle leaves out which side is the lighter one, so a light roof before a dark sky agrees with its negative
    (Fitch, Kadyrov, Christmas and Kittler, "Orientation correlation", BMVC 2002, with the angle doubled as in a
    structure tensor). The colours are added up as in Di Zenzo's gradient of a colour image.

    Args:
        picture: (3, H, W) in [0, 1].

    Returns:
        (H, W).
    """
    sides = (
        ndimage.gaussian_filter(picture, (0, *[_EDGE_SIGMA_PX] * 2), order=order) for order in ((0, 0, 1), (0, 1, 0))
    )
    across, down = sides
    squared = ((across + 1j * down) ** 2).sum(0)
    return (squared / np.sqrt(np.abs(squared) + 1e-12)).astype(np.complex64)


def edge_agreement(photo: Plane, edit: Plane) -> float:
    """Correlation of two pictures' edges where they lie: 1 for equal ones, about 0 for unrelated ones.

    Pictures are reduced to 128 px, or a limit would mean another thing at each size: strokes, which are finer than the
    photo's outlines, lower it by half at 512 px.

    Args:
        photo: (3, H, W) in [0, 1].
        edit: Likewise.
    """
    factor = AGREEMENT_SIDE / min(photo.shape[1:])
    first, second = (orientation_field(_reduced(picture, factor)) for picture in (photo, edit))
    return _correlation(first, second, _window(*first.shape))


def estimate(photo: Plane, edit: Plane) -> tuple[Similarity, float]:
    """Find how an edit is moved against its photo.

    All shifts are tried at once by FFT at each of 13 scales and 13 rotations on pictures of 48 px, as a correlation
    over what both pictures show (Padfield, "Masked object registration in the Fourier domain", 2012). The best are
    refined to fractions of a pixel by maximising the correlation of the finer edges (Evangelidis and Psarakis,
    "Parametric image alignment using enhanced correlation coefficient maximization", 2008).

    Args:
        photo: (3, H, W) in [0, 1].
        edit: Likewise.

    Returns:
        The edit's movement in pixels of the photo, and the edges' correlation once it is undone: near 1 where the edit
        has the photo's edges, below 0.2 where what was found means nothing.
    """
    height, width = photo.shape[1:]
    factor = COARSE_SIDE / min(height, width)
    small_photo, small_edit = (orientation_field(_reduced(picture, factor)) for picture in (photo, edit))
    starts = [
        _refined(small_photo, small_edit, start, _COARSE_STEPS)[0] for start in _best_of_all(small_photo, small_edit)
    ]
    factor = min(1.0, LARGEST_FINE_SIDE / min(height, width))
    fine_photo, fine_edit = (orientation_field(_reduced(picture, factor)) for picture in (photo, edit))
    larger = _shifts_by(fine_photo.shape[0] / small_photo.shape[0])
    # most edits are not moved: where that is so, and small pictures show too little, it is found here
    apart = _apart([start * larger for start in (*starts, np.zeros(4))], *fine_photo.shape)
    climbed = [_refined(fine_photo, fine_edit, start, _FINE_STEPS) for start in apart]
    moved, agreement = max(climbed, key=lambda found: found[1])
    moved = moved * _shifts_by(height / fine_photo.shape[0])
    found = Similarity(float(moved[0]), float(moved[1]), float(np.exp(moved[2])), float(np.rad2deg(moved[3])))
    return found.rounded(), agreement


def moved_back(picture: Plane, movement: Similarity, width: int) -> Plane:
    """Undo a movement by cubic splines; what lies beyond the border is mirrored.

    Args:
        picture: (3, H, W).
        movement: As found on the same picture of another size.
        width: That other size's.

    Returns:
        (3, H, W).
    """
    height, own_width = picture.shape[1:]
    factor = own_width / width
    parameters = np.array(
        [
            movement.shift_x_px * factor,
            movement.shift_y_px * factor,
            np.log(movement.scale),
            np.deg2rad(movement.rotation_degrees),
        ]
    )
    places = _places(height, own_width, parameters)
    return np.stack([ndimage.map_coordinates(plane, places, order=3, mode="mirror") for plane in picture])


def _apart(starts: list[NDArray[np.float64]], height: int, width: int) -> list[NDArray[np.float64]]:
    """Leave out starts from which a climb would lead to where one from an earlier start does."""
    kept: list[NDArray[np.float64]] = []
    for start in starts:
        between = (_length(start - other, height, width) for other in kept)
        if all(distance > _SAME_PX for distance in between):
            kept.append(start)
    return kept


def _length(change: NDArray[np.float64], height: int, width: int) -> float:
    """How far a small change of a movement takes a picture's pixels: root of the mean square."""
    spread = (height**2 + width**2 - 2) / 12
    return float(np.sqrt((change[:2] ** 2).sum() + (change[2:] ** 2).sum() * spread))


def _shifts_by(factor: float) -> NDArray[np.float64]:
    """What takes a movement to a picture of another size."""
    return np.array([factor, factor, 1, 1])


def _reduced(picture: Plane, factor: float) -> Plane:
    if factor >= 1:
        return picture
    height, width = (round(side * factor) for side in picture.shape[1:])
    # a Gaussian as wide as what the smaller grid cannot show
    smooth = ndimage.gaussian_filter(picture, (0, *[0.5 / factor * np.sqrt(1 - factor**2)] * 2))
    rows = (np.arange(height) + 0.5) * picture.shape[1] / height - 0.5
    columns = (np.arange(width) + 0.5) * picture.shape[2] / width - 0.5
    grid = np.meshgrid(rows, columns, indexing="ij")
    return np.stack([ndimage.map_coordinates(plane, grid, order=1, mode="nearest") for plane in smooth])


def _places(height: int, width: int, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows and columns (2, H, W) to which a movement (right, down, log scale, angle) takes a picture's pixels."""
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    y, x = np.mgrid[:height, :width]
    y, x = y - middle_y, x - middle_x
    cosine, sine = np.exp(parameters[2]) * np.cos(parameters[3]), np.exp(parameters[2]) * np.sin(parameters[3])
    return np.stack(
        [sine * x + cosine * y + parameters[1] + middle_y, cosine * x - sine * y + parameters[0] + middle_x]
    )


@cache
def _window(height: int, width: int) -> Plane:
    """Weights (H, W) that fall to 0 at the border."""
    ramps = []
    for side in (height, width):
        inwards = np.minimum(np.arange(side) + 0.5, side - np.arange(side) - 0.5) / side
        ramps.append(0.5 - 0.5 * np.cos(np.pi * np.clip(inwards / _MARGIN, 0, 1)))
    return (ramps[0][:, None] * ramps[1]).astype(np.float32)


def _within(places: NDArray[np.float64]) -> Plane:
    """Weights (H, W) that fall to 0 where places leave the picture."""
    height, width = places.shape[1:]
    inwards = np.minimum.reduce([places[0], height - 1 - places[0], places[1], width - 1 - places[1]])
    return np.clip(inwards / (_MARGIN * min(height, width)), 0, 1).astype(np.float32)


def _correlation(first: Field, second: Field, weights: Plane) -> float:
    common = (np.real(first * np.conj(second)) * weights).sum(dtype=np.float64)
    powers = [(np.abs(field) ** 2 * weights).sum(dtype=np.float64) for field in (first, second)]
    # edges fainter than a thousandth of a level are none
    return float(common / (np.sqrt(powers[0] * powers[1]) + 1e-6 * weights.sum(dtype=np.float64)))


@cache
def _hypotheses(height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.complex64], Plane]:
    """All scales and rotations, and for each pixel under each its four neighbours, their weights and its own."""
    scales = np.linspace(-np.log(LARGEST_SCALE), np.log(LARGEST_SCALE), SCALES)
    angles = np.deg2rad(np.linspace(-LARGEST_ROTATION_DEGREES, LARGEST_ROTATION_DEGREES, ROTATIONS))
    parameters = np.array([(0, 0, scale, angle) for scale in scales for angle in angles], dtype=np.float64)
    places = np.stack([_places(height, width, each) for each in parameters], axis=1)
    within = np.stack([_within(places[:, number]) for number in range(len(parameters))])
    floor = np.floor(places).astype(np.int64)
    part = places - floor
    neighbours, weights = [], []
    for down in (0, 1):
        for right in (0, 1):
            rows, columns = np.clip(floor[0] + down, 0, height - 1), np.clip(floor[1] + right, 0, width - 1)
            neighbours.append(rows * width + columns)
            weights.append(np.abs(1 - down - part[0]) * np.abs(1 - right - part[1]))
    # an edge that is turned with its picture has another angle
    turned = np.exp(-2j * parameters[:, 3])[:, None, None]
    return parameters, np.stack(neighbours), (np.stack(weights) * turned).astype(np.complex64), within


def _best_of_all(photo: Field, edit: Field) -> list[NDArray[np.float64]]:
    """The best hypotheses, each with its best shift in whole pixels."""
    height, width = photo.shape
    reach = int(LARGEST_SHIFT * min(height, width))
    size = tuple(fft.next_fast_len(side + reach) for side in (height, width))
    parameters, neighbours, weights, within = _hypotheses(height, width)
    window = _window(height, width)
    of_photo = np.conj(fft.fft2(photo * window, size))
    of_power = np.conj(fft.rfft2(np.abs(photo) ** 2 * window, size))
    of_window = np.conj(fft.rfft2(window, size))
    near = np.r_[0 : reach + 1, -reach:0]
    found = []
    # one scale at a time, whose arrays a processor's cache can hold
    for first in range(0, len(parameters), ROTATIONS):
        some = slice(first, first + ROTATIONS)
        moved = (edit.ravel()[neighbours[:, some]] * weights[:, some]).sum(0)
        common = fft.ifft2(of_photo * fft.fft2(moved * within[some], size)).real
        photo_power = fft.irfft2(of_power * fft.rfft2(within[some], size), size)
        edit_power = fft.irfft2(of_window * fft.rfft2(np.abs(moved) ** 2 * within[some], size), size)
        agreement = common / np.sqrt(np.maximum(photo_power * edit_power, 1e-12))
        shown = agreement[:, near][:, :, near].reshape(len(moved), -1)
        for number, place in enumerate(shown.argmax(1)):
            down, right = np.divmod(place, len(near))
            start = parameters[first + number] + (near[right], near[down], 0, 0)
            found.append((float(shown[number, place]), start))
    found.sort(key=lambda each: -each[0])
    return [start for _, start in found[:_STARTS]]


def _refined(photo: Field, edit: Field, start: NDArray[np.float64], steps: int) -> tuple[NDArray[np.float64], float]:
    """Climb from a start to the greatest correlation.

    Returns:
        The movement and its correlation.
    """
    height, width = photo.shape
    window = _window(height, width)
    splines = [ndimage.spline_filter(part, 3, mode="mirror") for part in (edit.real, edit.imag)]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    parameters, best, greatest = start, start, -1.0
    for step in range(steps + 1):
        places = _places(height, width, parameters)
        real, imaginary = (
            ndimage.map_coordinates(part, places, order=3, mode="mirror", prefilter=False) for part in splines
        )
        turned = ((real + 1j * imaginary) * np.exp(-2j * parameters[3])).astype(np.complex64)
        weights = window * _within(places)
        agreement = _correlation(photo, turned, weights)
        if agreement > greatest:
            best, greatest = parameters, agreement
        if step == steps:
            break
        down, right = np.gradient(turned)
        slopes = np.stack([right, down, right * x + down * y, down * x - right * y - 2j * turned])
        change = _climb(photo, turned, slopes, weights)
        if change is None:
            break
        length = _length(change, height, width)
        change = change * min(1.0, _LONGEST_STEP_PX / max(length, 1e-9))
        ahead = np.exp(parameters[2] + 1j * parameters[3]) * (change[0] + 1j * change[1])
        parameters = parameters + np.array([ahead.real, ahead.imag, change[2], change[3]])
        if length < _SMALL_STEP_PX:
            break
    return best, greatest


def _climb(photo: Field, turned: Field, slopes: NDArray[np.complex64], weights: Plane) -> NDArray[np.float64] | None:
    """Evangelidis and Psarakis' step, their equations 19 and 20; None where there is none."""
    weighted = slopes.reshape(len(slopes), -1) * weights.ravel()

    # einsum, since the sums of a BLAS depend on its threads
    def products(field: NDArray[np.complex64]) -> NDArray[np.float64]:
        return np.einsum("in,n->i", weighted.conj(), field.ravel()).real.astype(np.float64)

    squares = np.einsum("in,jn->ij", weighted.conj(), slopes.reshape(len(slopes), -1)).real.astype(np.float64)
    if np.linalg.cond(squares) > 1e12:
        return None
    of_photo, of_edit = products(photo), products(turned)
    inverse = np.linalg.inv(squares)
    power = (np.abs(turned) ** 2 * weights).sum(dtype=np.float64) - of_edit @ inverse @ of_edit
    common = (np.real(photo * np.conj(turned)) * weights).sum(dtype=np.float64) - of_photo @ inverse @ of_edit
    if common <= 0:
        return None
    return inverse @ (power / common * of_photo - of_edit)
