"""The class table of a diffusion transformer: one for all blocks, new rows for new classes."""

import torch
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor, nn

NEW_CLASS_DEVIATION = 0.02  # of DiT's own initialisation (facebookresearch/DiT, models.py)


def class_tables(transformer: nn.Module) -> list[LabelEmbedding]:
    """Class tables of a transformer, each object once."""
    return [module for module in transformer.modules() if isinstance(module, LabelEmbedding)]


def prepare_classes(transformer: nn.Module, classes: int, new: bool) -> None:
    """Make a transformer's class table ready for training.

    - diffusers keeps a copy of DiT's one table in each block, 28 in DiT-XL/2. Where the copies are still equal, as in
      the converted checkpoints, the blocks share one again: 0.12 M parameters for 101 classes instead of 3.29 M.
    - diffusers drops labels for guidance in each block by itself, so that one pass mixes both. DiT drops a label once
      (models.py, ``LabelEmbedder``); here the caller does, by giving ``null_label``.
    - New classes get new rows; the row for "no class", which means the same for all data, stays the base's. That is
      our choice: the paper says nothing of it.

    Args:
        transformer: Changed in place; its ``num_embeds_ada_norm`` in the config stays that of the base.
        classes: Number of classes of the data.
        new: Whether the rows are made anew, or the base's classes are kept.

    Raises:
        ValueError: There is no class table or none with a row for "no class", or kept classes differ in number.
    """
    tables = class_tables(transformer)
    if not tables:
        raise ValueError(
            f"{type(transformer).__name__} has no class table (diffusers' LabelEmbedding); give a transformer that is "
            "conditioned on classes, such as DiTTransformer2DModel"
        )
    weights = [table.embedding_table.weight for table in tables]
    if any(len(weight) != table.num_classes + 1 for table, weight in zip(tables, weights, strict=True)):
        raise ValueError("the class table has no row for 'no class'; guidance needs one, give a DiT that has it")
    if not new and classes != tables[0].num_classes:
        raise ValueError(
            f"the transformer knows {tables[0].num_classes} classes, the data hold {classes}; set new_classes to true, "
            "or give data of the same classes in the same order"
        )
    for table in tables:
        table.dropout_prob = 0.0
    if all(_alike(weight, weights[0]) for weight in weights):
        for module in list(transformer.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, LabelEmbedding):
                    setattr(module, name, tables[0])
        tables = tables[:1]
    if new:
        for table in tables:
            _renew(table, classes)


def null_label(transformer: nn.Module) -> int:
    """The label that means "no class"."""
    return class_tables(transformer)[0].num_classes


def _alike(one: Tensor, other: Tensor) -> bool:
    # nothing is known of values on the meta device, where only sizes are asked for
    return one.is_meta or one is other or torch.equal(one, other)


def _renew(table: LabelEmbedding, classes: int) -> None:
    old = table.embedding_table.weight.detach()
    weight = torch.empty(classes + 1, old.shape[1], dtype=old.dtype, device=old.device)
    with torch.no_grad():
        nn.init.normal_(weight, std=NEW_CLASS_DEVIATION)
        weight[classes] = old[table.num_classes]
    table.embedding_table = nn.Embedding.from_pretrained(weight, freeze=False)
    table.num_classes = classes
