"""Photos that came twice, and edits that came out the same for different photos."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from typing_extensions import override

from pocketgan.gates.gate import Scores, SetGate

if TYPE_CHECKING:
    from pocketgan.pair_set import Pair

_SIDE = 16
_BLOCK = 2048
# as far apart as two pictures can be; what the first one of all gets
_FARTHEST_LEVELS = 255.0


class NearDuplicateGate(SetGate):
    """Refuses a pair if its photo is nearly that of an earlier id, or its edit nearly another one of its concept.

    Pictures are compared as 16×16 RGB, by the root of their mean squared difference in levels of 255. Of several alike
    the first id is kept, and it counts as earlier whether another gate dropped it or not: scores know no thresholds.
    The first id of all has 255. A collapsed teacher shows as many equal edits. The time grows with the square of the
    number of photos.

    Args:
        least_photo_levels: Nearest earlier photo that is another one.
        least_edit_levels: Nearest earlier edit of the concept that is another one.
    """

    score_names = ("near_duplicate_photo_levels", "near_duplicate_edit_levels")

    def __init__(self, least_photo_levels: float = 2.0, least_edit_levels: float = 2.0) -> None:
        super().__init__()
        self.least_photo_levels, self.least_edit_levels = least_photo_levels, least_edit_levels

    @override
    def scores_of_set(self, root: Path, pairs: "Sequence[Pair]") -> list[Scores]:
        photos = {pair.id: root / pair.photo_file_name for pair in sorted(pairs, key=lambda pair: pair.id)}
        of_photo = dict(zip(photos, _nearest_earlier(list(photos.values())), strict=True))
        of_edit: dict[tuple[str, str], float] = {}
        for concept in sorted({pair.concept for pair in pairs}):
            edits = {pair.id: root / pair.edit_file_name for pair in pairs if pair.concept == concept}
            ordered = sorted(edits)
            distances = _nearest_earlier([edits[name] for name in ordered])
            of_edit.update({(concept, name): levels for name, levels in zip(ordered, distances, strict=True)})
        return [
            {
                "near_duplicate_photo_levels": of_photo[pair.id],
                "near_duplicate_edit_levels": of_edit[pair.concept, pair.id],
            }
            for pair in pairs
        ]

    @override
    def margin(self, scores: Mapping[str, float]) -> float:
        photo, edit = scores["near_duplicate_photo_levels"], scores["near_duplicate_edit_levels"]
        return min(
            (photo - self.least_photo_levels) / max(photo, self.least_photo_levels, 1e-9),
            (edit - self.least_edit_levels) / max(edit, self.least_edit_levels, 1e-9),
        )

    @override
    def refusal(self, scores: Mapping[str, float]) -> str | None:
        photo, edit = scores["near_duplicate_photo_levels"], scores["near_duplicate_edit_levels"]
        if photo < self.least_photo_levels:
            return f"photo {photo:.1f} levels from an earlier one, least {self.least_photo_levels:g}"
        if edit < self.least_edit_levels:
            return f"edit {edit:.1f} levels from an earlier one, least {self.least_edit_levels:g}"
        return None


def _nearest_earlier(files: Sequence[Path]) -> list[float]:
    """Distance of each picture to the nearest one before it, in levels."""
    pictures = np.stack([_thumbnail(file) for file in files])
    least = np.full(len(pictures), _FARTHEST_LEVELS**2 * pictures.shape[1])
    starts = range(0, len(pictures), _BLOCK)
    for row in starts:
        # whole numbers, which float64 adds exactly in any order
        these = pictures[row : row + _BLOCK].astype(np.float64)
        for column in starts[: row // _BLOCK + 1]:
            others = pictures[column : column + _BLOCK].astype(np.float64)
            squares = (these**2).sum(1)[:, None] + (others**2).sum(1) - 2 * these @ others.T
            later = np.arange(column, column + len(others)) >= np.arange(row, row + len(these))[:, None]
            nearest = np.where(later, np.inf, squares).min(1)
            least[row : row + _BLOCK] = np.minimum(least[row : row + _BLOCK], nearest)
    distances: list[float] = np.sqrt(least / pictures.shape[1]).tolist()
    return distances


def _thumbnail(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as picture:
        small = picture.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.uint8).ravel()
