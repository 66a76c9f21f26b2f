"""A frozen CLIP text encoder, E2GAN's choice."""

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pocketgan.digest import weights_digest
from pocketgan.text.text_encoder import TextEncoder, stacked


class CLIPTextEncoder(TextEncoder):
    """Token features of the prompt from a frozen CLIP text encoder of transformers.

    A prompt may have any length. CLIP reads 77 tokens at once, 75 of the prompt between a begin and an end; a longer
    prompt is read in as many windows, each with its own begin and end, and their features are joined, as in diffusers'
    community pipeline ``lpw_stable_diffusion``. The last window is padded as CLIP was trained.

    Each prompt is encoded once, on the CPU, and kept. The encoder is no submodule: it enters neither the
    checkpoint nor the EMA.

    Args:
        model: Repo id (for example ``openai/clip-vit-large-patch14``) or local folder with tokenizer and encoder;
            of a diffusers pipeline, the folder that holds ``tokenizer`` and ``text_encoder``.

    Raises:
        FileNotFoundError: The model is neither a local folder nor can it be loaded by repo id.
    """

    learns = False

    def __init__(self, model: str) -> None:
        super().__init__()
        from transformers import CLIPTextModel, CLIPTokenizer

        folder = Path(model)
        pipeline = (folder / "text_encoder").is_dir()
        try:
            tokenizer = CLIPTokenizer.from_pretrained(model, **({"subfolder": "tokenizer"} if pipeline else {}))
            encoder = CLIPTextModel.from_pretrained(model, **({"subfolder": "text_encoder"} if pipeline else {}))
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"text encoder {model!r} could not be loaded ({str(error).splitlines()[0]}); give a repo id that this "
                "machine can reach or a folder saved by CLIPTextModel.save_pretrained and "
                "CLIPTokenizer.save_pretrained, or use ConceptTokens, which needs no download"
            ) from error
        self._encoder = (tokenizer, encoder.eval().requires_grad_(False))
        self._encoded: dict[str, Tensor] = {}
        self.token_size = encoder.config.hidden_size
        self._window = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)

    @cached_property
    def _weights_sha256(self) -> str:
        return weights_digest(self._encoder[1])

    @property
    def identity(self) -> str:
        """Its kind and weights; a name would differ between a repo id and a local folder."""
        return f"{super().identity}, weights {self._weights_sha256[:12]}"

    def add_concepts(self, concepts: list[str]) -> None:
        """Nothing to add: any prompt can be encoded."""

    def learn_only(self, concepts: list[str]) -> None:
        """Nothing to freeze: it never learns."""

    @torch.no_grad()
    def _encode(self, prompt: str) -> Tensor:
        tokenizer, encoder = self._encoder
        # not as one text: the tokenizer would cut it, or warn of its length
        words = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
        content = self._window - 2
        windows = []
        for start in range(0, max(len(words), 1), content):
            window = [tokenizer.bos_token_id, *words[start : start + content], tokenizer.eos_token_id]
            windows.append(window + [tokenizer.pad_token_id] * (self._window - len(window)))
        return encoder(torch.tensor(windows)).last_hidden_state.flatten(0, 1)

    def forward(self, concepts: list[str], prompts: list[str]) -> Tensor:  # noqa: ARG002
        """Encode prompts; see ``TextEncoder.forward``. Tokens are on the CPU; the caller moves them."""
        for prompt in set(prompts) - set(self._encoded):
            self._encoded[prompt] = self._encode(prompt)
        return stacked([self._encoded[prompt] for prompt in prompts])
