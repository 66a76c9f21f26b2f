"""Edits that lie beside their photo."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from pocketgan.gates.gate import PairGate, Scores, as_plane
from pocketgan.gates.registration import Similarity, estimate, moved_back

_REMEMBERED_PAIRS = 1024


class AlignmentGate(PairGate):
    """Measures shift, scale and rotation of an edit against its photo, undoes small ones and refuses the rest.

    An image-to-image GAN learns pixel by pixel, and some editors return the picture shifted or zoomed. A movement is
    measured on the stored pictures (``registration.estimate``), as the root mean square of how far pixels have gone.
    Where the edges do not agree well enough once it is undone, it means nothing: such an edit is not moved, and is
    refused only on request; ``StructureGate`` is there for edits that have lost their photo. benchmarks/alignment_gate
    says how far all this can be trusted.

    An edit is moved back at the size at which the teacher made it; what comes in at the border is mirrored.

    Args:
        register: Undo small movements. This and the next three change stored pixels, so they are part of the set's
            settings.
        least_correction_px: Movements up to this are left: the estimate itself may be wrong by as much.
        largest_correction_px: Movements from here on are not undone.
        least_agreement: Correlation of the edges, once the movement is undone, that makes an estimate trusted; edges
            of pictures that have nothing in common come to 0.12.
        largest_displacement_px: A pair is refused if what is left moves its pixels by more.
        refuse_unmeasurable: Refuse pairs with an estimate that is not trusted.

    Raises:
        ValueError: The limits of the correction do not follow one another, or that of the displacement is 0.
    """

    score_names = (
        "alignment_displacement_px",
        "alignment_agreement",
        "alignment_shift_x_px",
        "alignment_shift_y_px",
        "alignment_scale",
        "alignment_rotation_degrees",
    )

    def __init__(
        self,
        register: bool = True,
        least_correction_px: float = 0.5,
        largest_correction_px: float = 4.0,
        least_agreement: float = 0.17,
        largest_displacement_px: float = 0.75,
        refuse_unmeasurable: bool = False,
    ) -> None:
        super().__init__()
        if largest_displacement_px <= 0:
            raise ValueError(f"largest_displacement_px is {largest_displacement_px}; it must be above 0")
        if not 0 <= least_correction_px < largest_correction_px:
            raise ValueError(
                f"least_correction_px {least_correction_px} and largest_correction_px {largest_correction_px} must be "
                "0 or more, the first below the second; register: false leaves all movements as they are"
            )
        self.register = register
        self.least_correction_px, self.largest_correction_px = least_correction_px, largest_correction_px
        self.least_agreement = least_agreement
        self.largest_displacement_px = largest_displacement_px
        self.refuse_unmeasurable = refuse_unmeasurable
        self._estimates: OrderedDict[bytes, tuple[Similarity, float]] = OrderedDict()

    @property
    @override
    def settings(self) -> dict[str, Any]:
        if not self.register:
            return {}
        return {
            "least_correction_px": self.least_correction_px,
            "largest_correction_px": self.largest_correction_px,
            "least_agreement": self.least_agreement,
        }

    @override
    def scores(self, photo: Tensor, edit: Tensor, concept: str, prompt: str) -> Scores:
        movement, agreement = self._estimate(photo, edit)
        return {
            "alignment_shift_x_px": movement.shift_x_px,
            "alignment_shift_y_px": movement.shift_y_px,
            "alignment_scale": movement.scale,
            "alignment_rotation_degrees": movement.rotation_degrees,
            "alignment_displacement_px": movement.displacement_px(*photo.shape[1:]),
            "alignment_agreement": agreement,
        }

    @override
    def corrected(self, photo: Tensor, edit: Tensor, large_edit: Tensor) -> tuple[Tensor, Scores] | None:
        if not self.register:
            return None
        movement, agreement = self._estimate(photo, edit)
        displacement = movement.displacement_px(*photo.shape[1:])
        if agreement < self.least_agreement:
            return None
        if not self.least_correction_px < displacement <= self.largest_correction_px:
            return None
        moved = moved_back(as_plane(large_edit), movement, photo.shape[2])
        return torch.from_numpy(moved).mul(2).sub(1).clamp(-1, 1), {"alignment_corrected_px": displacement}

    def _estimate(self, photo: Tensor, edit: Tensor) -> tuple[Similarity, float]:
        """Estimate a pair once: it is asked for before the edit is stored, and mostly for the same pixels after."""
        planes = as_plane(photo), as_plane(edit)
        key = hashlib.sha256(planes[0].tobytes() + planes[1].tobytes()).digest()
        if key not in self._estimates:
            self._estimates[key] = estimate(*planes)
        if len(self._estimates) > _REMEMBERED_PAIRS:
            self._estimates.popitem(last=False)
        return self._estimates[key]

    @override
    def margin(self, scores: Mapping[str, float]) -> float:
        if scores["alignment_agreement"] < self.least_agreement:
            return -1.0 if self.refuse_unmeasurable else 0.0
        return 1 - scores["alignment_displacement_px"] / self.largest_displacement_px

    @override
    def refusal(self, scores: Mapping[str, float]) -> str | None:
        if scores["alignment_agreement"] < self.least_agreement:
            if not self.refuse_unmeasurable:
                return None
            agreement = scores["alignment_agreement"]
            return f"cannot be measured: edges agree by {agreement:.2f}, least {self.least_agreement:g}"
        if scores["alignment_displacement_px"] <= self.largest_displacement_px:
            return None
        shift = f"{scores['alignment_shift_x_px']:+.1f} {scores['alignment_shift_y_px']:+.1f} px"
        scale, rotation = scores["alignment_scale"], scores["alignment_rotation_degrees"]
        return (
            f"moved by {scores['alignment_displacement_px']:.2f} px, at most {self.largest_displacement_px:g} "
            f"({shift}, scale {scale:.3f}, {rotation:+.1f}°)"
        )
