"""Edits that changed nothing, or kept nothing."""

from collections.abc import Mapping

from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure
from typing_extensions import override

from pocketgan.gates.gate import PairGate, Scores, as_plane
from pocketgan.gates.registration import edge_agreement


class StructureGate(PairGate):
    """Keeps what lies between the photo itself and a picture that has nothing of it.

    Args:
        largest_similarity: SSIM over the three colours (Wang et al. 2004, as torchmetrics computes it) above which an
            edit counts as unchanged. An autoencoder's round trip alone is below 0.98.
        least_agreement: Correlation of the edges (``registration.edge_agreement``) below which a picture counts as
            destroyed. Pictures that have nothing in common lie around 0, at most at 0.15.

    Raises:
        ValueError: A limit is outside what its score can be.
    """

    score_names = ("structure_similarity", "structure_agreement")

    def __init__(self, largest_similarity: float = 0.98, least_agreement: float = 0.18) -> None:
        super().__init__()
        if not -1 <= least_agreement < 1 or not 0 < largest_similarity <= 1:
            raise ValueError(
                f"least_agreement is {least_agreement}, it must be from -1 to below 1; largest_similarity is "
                f"{largest_similarity}, it must be above 0 and at most 1"
            )
        self.largest_similarity, self.least_agreement = largest_similarity, least_agreement

    @override
    def scores(self, photo: Tensor, edit: Tensor, concept: str, prompt: str) -> Scores:
        # in double precision, where threads that add in another order do not show
        first, second = (picture.detach().cpu().double()[None] for picture in (edit, photo))
        similarity = structural_similarity_index_measure(first, second, data_range=2.0)
        assert isinstance(similarity, Tensor), "no map was asked for"
        return {
            "structure_similarity": similarity.item(),
            "structure_agreement": edge_agreement(as_plane(photo), as_plane(edit)),
        }

    @override
    def margin(self, scores: Mapping[str, float]) -> float:
        changed = self.largest_similarity - scores["structure_similarity"]
        agreement = scores["structure_agreement"] - self.least_agreement
        return min(changed / self.largest_similarity, agreement / (1 - self.least_agreement))

    @override
    def refusal(self, scores: Mapping[str, float]) -> str | None:
        similarity, agreement = scores["structure_similarity"], scores["structure_agreement"]
        if similarity > self.largest_similarity:
            return f"unchanged: similarity {similarity:.3f}, at most {self.largest_similarity:g}"
        if agreement < self.least_agreement:
            return f"destroyed: edges agree by {agreement:.2f}, least {self.least_agreement:g}"
        return None
