"""What turns a concept's prompt into tokens."""

from pocketgan.text.clip_text_encoder import CLIPTextEncoder
from pocketgan.text.concept_tokens import ConceptTokens
from pocketgan.text.text_encoder import TextEncoder

__all__ = ["CLIPTextEncoder", "ConceptTokens", "TextEncoder"]
