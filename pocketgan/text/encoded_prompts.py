"""Prompts that a text encoder has read already."""

from collections.abc import Callable

from torch import Tensor

from pocketgan.text.text_encoder import TextEncoder, stacked


class EncodedPrompts(TextEncoder):
    """Stands in for a frozen text encoder where the prompts' tokens are stored with the model.

    A trained model is used and measured without its text encoder. The encoder is opened when a prompt comes that is not
    stored, as in an adaptation.

    Args:
        token_size: D, features of a token.
        identity: Of the encoder that made the tokens.
        encoder: Opens that encoder.
    """

    learns = False

    def __init__(self, token_size: int, identity: str, encoder: Callable[[], TextEncoder]) -> None:
        super().__init__()
        self.token_size = token_size
        self._identity = identity
        self._open = encoder
        # in a tuple, so that it is no submodule and stays out of the checkpoint
        self._encoder: tuple[TextEncoder, ...] = ()
        self._encoded: dict[str, Tensor] = {}

    @property
    def identity(self) -> str:
        """That of the encoder that made the tokens."""
        return self._identity

    def remember(self, encoded: dict[str, Tensor]) -> None:
        """Take prompts with their tokens (L, D)."""
        self._encoded.update(encoded)

    def add_concepts(self, concepts: list[str]) -> None:
        """Nothing to add: any prompt can be encoded."""

    def learn_only(self, concepts: list[str]) -> None:
        """Nothing to freeze: it never learns."""

    def forward(self, concepts: list[str], prompts: list[str]) -> Tensor:
        """Look prompts up, or encode them; see ``TextEncoder.forward``.

        Raises:
            FileNotFoundError: A prompt is not stored and the encoder is not at hand.
            ValueError: A prompt is not stored and the encoder has other weights than the one that made the tokens.
        """
        for concept, prompt in zip(concepts, prompts, strict=True):
            if prompt not in self._encoded:
                self._encoded[prompt] = self._opened(prompt)([concept], [prompt])[0]
        return stacked([self._encoded[prompt] for prompt in prompts])

    def _opened(self, prompt: str) -> TextEncoder:
        if not self._encoder:
            try:
                encoder = self._open()
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"the prompt {prompt!r} is new to the base and has to be encoded as the base's were: {error}. The "
                    "base's config.yaml names the encoder as model.init_args.text_encoder; correct it there if the "
                    "encoder was moved"
                ) from error
            if encoder.identity != self._identity:
                raise ValueError(
                    f"the prompt {prompt!r} is new to the base, which was trained with {self._identity}; its "
                    f"config.yaml leads to {encoder.identity} now. Name the encoder that it was trained with as "
                    "model.init_args.text_encoder there"
                )
            self._encoder = (encoder,)
        return self._encoder[0]
