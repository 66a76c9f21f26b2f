"""What turns a concept's prompt into tokens."""

from pocketgan.text.clip_text_encoder import CLIPTextEncoder
from pocketgan.text.concept_tokens import ConceptTokens
from pocketgan.text.encoded_prompts import EncodedPrompts
from pocketgan.text.prompts import as_prompts, read_prompts
from pocketgan.text.text_encoder import TextEncoder, stacked

__all__ = ["CLIPTextEncoder", "ConceptTokens", "EncodedPrompts", "TextEncoder", "as_prompts", "read_prompts", "stacked"]
