"""Pairs from a teacher."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from typing_extensions import override

from datamodules.source_photos import PhotoBatch
from pocketgan.gates import TEACHER, Gate, PairGate
from pocketgan.gates.judgement import check_names
from pocketgan.images import to_image, to_tensor
from pocketgan.pair_set_writer import EditedPhoto
from pocketgan.teachers import Teacher
from pocketgan.text import as_prompts


class PairSynthesis(LightningModule):
    """A teacher edits photos, each with every concept. `PairWriter` puts the pairs on disk.

    Args:
        teacher: Makes the edits, at the size that the datamodule hands out.
        size: Side of the stored photos and edits, in pixels; both are scaled down to it with antialiasing.
        concepts: Edits to make: name to prompt, or a file of them, see ``pocketgan.text.read_prompts``; None for all
            that the teacher offers.
        seed: Seeds the edits. A pair's own seed comes of this one, the photo's id and the concept alone.
        gates: Checks that judge the stored pairs, by a name of your own; the first that refuses a pair marks it. One
            that is null is left out.

    Raises:
        FileNotFoundError: If there is no such file, or a gate's weights are missing.
        ValueError: If there are no concepts, one has a prompt that the teacher does not know, or a gate a bad name.
    """

    def __init__(
        self,
        teacher: Teacher,
        size: int = 256,
        concepts: dict[str, str] | Path | None = None,
        seed: int = 0,
        gates: dict[str, Gate | None] | None = None,
    ) -> None:
        super().__init__()
        offered = teacher.concepts
        self.concepts = as_prompts(concepts) or dict(offered)
        if not self.concepts:
            raise ValueError(
                f"{type(teacher).__name__} has no concepts of its own; give concepts as a mapping of name to "
                f"prompt, for example watercolour: turn it into a watercolour"
            )
        for name, prompt in self.concepts.items():
            if offered and prompt not in offered.values():
                known = "\n  ".join(offered.values())
                raise ValueError(
                    f"concept {name}: {type(teacher).__name__} has no prompt {prompt!r}; take one of\n  {known}"
                )
        if size < 32:
            raise ValueError(f"size is {size}; it must be at least 32")
        self.teacher = teacher.eval().requires_grad_(False)
        self.gates = {name: gate for name, gate in (gates or {}).items() if gate is not None}
        check_names(self.gates)
        for gate in self.gates.values():
            gate.prepare()
        # so that they go to the device
        self._gate_modules = nn.ModuleList(self.gates.values())
        self._size = size
        self._seed = seed
        self._done: Mapping[str, set[str]] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """What changes an edit's pixels, as plain JSON values."""
        teacher = dict(self.teacher.settings)
        # What belongs to one prompt goes to its concept, so that a set can be given further concepts.
        of_prompts = teacher.pop("prompts", {})
        of_gates = {type(gate).__name__: gate.settings for gate in self.gates.values() if gate.settings}
        return {
            **({"gates": of_gates} if of_gates else {}),
            "teacher": teacher,
            "size": self._size,
            "seed": self._seed,
            "concepts": {
                name: {"prompt": prompt, **of_prompts.get(prompt, {})} for name, prompt in self.concepts.items()
            },
        }

    def leave_out(self, done: Mapping[str, set[str]]) -> None:
        """Do not make these pairs again: photo id to concepts."""
        self._done = done

    @override
    def predict_step(self, batch: PhotoBatch, batch_idx: int) -> list[EditedPhoto]:
        """Make the missing edits of a batch.

        Returns:
            One entry per pair, on the CPU, at the stored size.

        Raises:
            ValueError: If the photos are smaller than the size to store, or the teacher returns anything but an edit of
                the same size for each.
        """
        pairs: list[EditedPhoto] = []
        small_photos = self._scaled_down(batch["photo"])
        for concept, prompt in self.concepts.items():
            missing = [row for row, name in enumerate(batch["id"]) if concept not in self._done.get(name, ())]
            if not missing:
                continue
            seeds = [self._pair_seed(batch["id"][row], concept) for row in missing]
            photos = batch["photo"][missing]
            edits = self.teacher.edit(photos, prompt, seeds)
            if not isinstance(edits, Tensor) or edits.shape != photos.shape:
                found = tuple(edits.shape) if isinstance(edits, Tensor) else f"a {type(edits).__name__}"
                raise ValueError(
                    f"{type(self.teacher).__name__} returned {found} for photos of {tuple(photos.shape)}; a teacher "
                    "must return one edit for each photo, of the photo's size"
                )
            for row, edit, small_edit, seed in zip(missing, edits, self._scaled_down(edits), seeds, strict=True):
                pair = EditedPhoto(
                    id=batch["id"][row],
                    concept=concept,
                    prompt=prompt,
                    photo=small_photos[row],
                    edit=small_edit,
                    source=batch["source"][row],
                    seed=seed,
                )
                pairs.append(self._corrected(pair, edit) if edit.isfinite().all() else _without_edit(pair, edit))
        return pairs

    def _corrected(self, pair: EditedPhoto, large_edit: Tensor) -> EditedPhoto:
        """Let the gates mend a pair's edit, as the teacher made it, and store what comes of it."""
        for gate in self.gates.values():
            if not isinstance(gate, PairGate) or type(gate).corrected is PairGate.corrected:
                continue
            corrected = gate.corrected(_eight_bit(pair.photo), _eight_bit(pair.edit), large_edit)
            if corrected is not None:
                large_edit, scores = corrected
                (edit,) = self._scaled_down(large_edit[None])
                pair = pair._replace(edit=edit, scores={**(pair.scores or {}), **scores})
        return pair

    def _pair_seed(self, photo_id: str, concept: str) -> int:
        digest = hashlib.sha256(f"{self._seed}/{photo_id}/{concept}".encode()).digest()
        return int.from_bytes(digest[:4])

    def _scaled_down(self, images: Tensor) -> list[Tensor]:
        """Scale each of (B, 3, H, W) by itself, so that the kernel chosen does not depend on the batch."""
        height, width = images.shape[-2:]
        if len(images) and min(height, width) < self._size:
            raise ValueError(
                f"photos are {height}×{width} pixels and cannot be stored at {self._size}; "
                f"set the datamodule's size to {self._size} or more"
            )
        images = images.float().cpu()
        if (height, width) == (self._size, self._size):
            return list(images)
        return [
            F.interpolate(image[None], (self._size, self._size), mode="bicubic", antialias=True)[0].clamp(-1, 1)
            for image in images
        ]


def _eight_bit(image: Tensor) -> Tensor:
    """A picture (3, H, W) as it will be read from its file."""
    return to_tensor(to_image(image))


def _without_edit(pair: EditedPhoto, edit: Tensor) -> EditedPhoto:
    """A black edit in place of one that holds NaN or infinite values."""
    share = 1 - edit.isfinite().float().mean().item()
    reason = (
        f"{TEACHER}: no usable edit, {share:.0%} of it is no number; the teacher broke down or withheld the picture"
    )
    return pair._replace(edit=torch.full_like(pair.photo, -1), dropped=reason)
