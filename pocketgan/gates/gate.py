"""The slots for checks of pairs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from pocketgan.digest import constructor_arguments
from pocketgan.metrics import FrozenModule

if TYPE_CHECKING:
    from pocketgan.gates.registration import Plane
    from pocketgan.pair_set import Pair

Scores = dict[str, float]


class Gate(FrozenModule, ABC):
    """One check of pairs: scores, measured on the stored pictures, and what they may be.

    Whether a pair is kept depends on its scores and the thresholds alone, so other thresholds need no new pictures. A
    subclass keeps each argument of its constructor under the argument's name.

    Attributes:
        score_names: The scores that it writes, each with its unit.
    """

    score_names: ClassVar[tuple[str, ...]]

    @property
    def settings(self) -> dict[str, Any]:
        """What changes a stored pixel, as plain JSON values for the manifest; empty where nothing does."""
        return {}

    @property
    def measurement(self) -> dict[str, Any]:
        """What changes a score, as plain JSON values: when it is another one, pairs are measured anew."""
        return {}

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments, as plain JSON values."""
        return constructor_arguments(self)

    def prepare(self) -> None:
        """Load what measuring needs; called before the first measurement.

        Raises:
            FileNotFoundError: Weights are missing.
        """

    @abstractmethod
    def refusal(self, scores: Mapping[str, float]) -> str | None:
        """Say why a pair of these scores is dropped, with number and limit; None if it is kept."""

    @abstractmethod
    def margin(self, scores: Mapping[str, float]) -> float:
        """How far a pair is from being dropped: below 0 it is, at 1 it could not be better. Ranks pairs to look at."""


class PairGate(Gate):
    """A check of one pair by itself."""

    @abstractmethod
    def scores(self, photo: Tensor, edit: Tensor, concept: str, prompt: str) -> Scores:
        """Measure a pair.

        Args:
            photo: (3, H, W) in [-1, 1], of 8 bits, as stored.
            edit: Likewise.
            concept: The edit's name.
            prompt: What the teacher was asked for.
        """

    def corrected(self, photo: Tensor, edit: Tensor, large_edit: Tensor) -> tuple[Tensor, Scores] | None:  # noqa: ARG002
        """Mend an edit before it is stored. A gate that does says in ``settings`` how.

        Args:
            photo: (3, H, W) in [-1, 1], of 8 bits, as stored.
            edit: Likewise.
            large_edit: (3, G, V) in [-1, 1], the edit as the teacher made it.

        Returns:
            The mended ``large_edit``, and scores that say what was mended; None where nothing is.
        """
        return None


class SetGate(Gate):
    """A check of each pair against the others of its set."""

    @abstractmethod
    def scores_of_set(self, root: Path, pairs: "Sequence[Pair]") -> list[Scores]:
        """Measure all pairs.

        Args:
            root: The pair set.
            pairs: Its pairs, kept and dropped, sorted by concept and id; the result must not depend on anything else.

        Returns:
            As many.
        """


def as_plane(picture: Tensor) -> "Plane":
    """Turn (3, H, W) in [-1, 1] into NumPy's (3, H, W) in [0, 1]."""
    return picture.detach().cpu().float().div(2).add(0.5).numpy()


def rounded(scores: Mapping[str, float]) -> Scores:
    """Round to 6 significant digits, so that sums in another order write the same bytes."""
    return {name: float(f"{value:.6g}") for name, value in sorted(scores.items())}
