"""Edits that changed as their prompt says, by CLIP."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from typing_extensions import override

from pocketgan.gates.gate import PairGate, Scores


class SemanticsGate(PairGate):
    """CLIP's directional similarity: does the picture change as the words do?

    The cosine between the step from photo to edit and the step from the photo's caption to the edit's, both in CLIP's
    space (Gal et al., StyleGAN-NADA, arXiv 2108.00946; InstructPix2Pix, arXiv 2211.09800, filters its pairs by it, with
    0.2 as the least). Pairs are measured one by one, so a score does not depend on a batch.

    Args:
        model: Repo id, for example ``openai/clip-vit-large-patch14``, or a local folder saved by
            ``CLIPModel.save_pretrained`` and ``CLIPTokenizer.save_pretrained``.
        source_caption: What a photo is, in the words that captions begin with.
        captions: Concept to what its edits show, where the prompt is an instruction: an editor is told "turn it into a
            watercolour", a caption says "a watercolour"; the prompt where there is none.
        least_direction: Cosine below which a pair is refused.
    """

    score_names = ("semantics_direction",)

    def __init__(
        self,
        model: str = "openai/clip-vit-large-patch14",
        source_caption: str = "a photo",
        captions: dict[str, str] | None = None,
        least_direction: float = 0.05,
    ) -> None:
        super().__init__()
        self.model, self.source_caption, self.captions = model, source_caption, captions
        self.least_direction = least_direction
        self._clip: Any = None
        self._steps: dict[str, Tensor] = {}

    @property
    @override
    def measurement(self) -> dict[str, Any]:
        return {"model": self.model, "source_caption": self.source_caption, "captions": self.captions}

    @override
    def prepare(self) -> None:
        if self._clip is not None:
            return
        from transformers import CLIPTokenizer

        from pocketgan.personalization.image_embedding import load_clip

        self._clip = load_clip(self.model)
        self._tokenizer = CLIPTokenizer.from_pretrained(self.model)
        # transformers 5 makes a tokenizer without words where there are no files
        if len(self._tokenizer) <= len(self._tokenizer.all_special_tokens):
            self._clip = None
            raise FileNotFoundError(
                f"CLIP model {self.model!r} has no tokenizer beside its weights; save it to the same folder by "
                "CLIPTokenizer.save_pretrained, or download the whole repo"
            )

    @override
    @torch.no_grad()
    def scores(self, photo: Tensor, edit: Tensor, concept: str, prompt: str) -> Scores:
        from pocketgan.personalization.image_embedding import clip_pixels

        self.prepare()
        caption = (self.captions or {}).get(concept, prompt)
        if caption not in self._steps:
            before, after = self._embedded_text(self.source_caption), self._embedded_text(caption)
            self._steps[caption] = after - before
        vision, projection = self._clip.vision_model, self._clip.visual_projection
        features = []
        for picture in (photo, edit):
            pixels = clip_pixels(picture[None].to(self._clip.device), vision.config.image_size)
            embedded = projection(vision(pixel_values=pixels).pooler_output)
            features.append(embedded / embedded.norm(dim=-1, keepdim=True))
        direction = cosine_similarity(features[1] - features[0], self._steps[caption].to(features[0]))
        return {"semantics_direction": round(float(direction), 4)}

    def _embedded_text(self, caption: str) -> Tensor:
        longest = self._clip.config.text_config.max_position_embeddings
        tokens = self._tokenizer(caption, truncation=True, max_length=longest, return_tensors="pt")
        text = self._clip.text_model(input_ids=tokens.input_ids.to(self._clip.device))
        embedded = self._clip.text_projection(text.pooler_output)
        normalised: Tensor = embedded / embedded.norm(dim=-1, keepdim=True)
        return normalised

    @override
    def margin(self, scores: Mapping[str, float]) -> float:
        return scores["semantics_direction"] - self.least_direction

    @override
    def refusal(self, scores: Mapping[str, float]) -> str | None:
        direction = scores["semantics_direction"]
        if direction >= self.least_direction:
            return None
        return f"changed otherwise than its prompt: direction {direction:.3f}, least {self.least_direction:g}"
