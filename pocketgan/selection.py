"""Choice of concepts and photos by clustering, and the plain file that names what was chosen.

E2GAN (Gong et al. 2024, arXiv:2401.06127) trains its base on the concepts nearest the centres of a k-means over a
larger pool, and adapts on the photos nearest the centres of a k-means over the training side. It clusters features of
CLIP; here they are whatever the caller gives.
"""

import random
import warnings
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from pocketgan.files import explained_write_error, write_whole

_COMMENT = "#"


def check_count(count: int, total: int, what: str = "rows") -> None:
    """Refuse a count that cannot be chosen.

    Raises:
        ValueError: ``count`` is below 1 or above ``total``, the number of ``what`` there is.
    """
    if total < 1:
        raise ValueError(f"there are no {what} to choose from; give some")
    if not 1 <= count <= total:
        raise ValueError(f"count is {count}, but there are {total} {what} to choose from; give a count of 1 to {total}")


def nearest_to_centres(features: Tensor, count: int, seed: int) -> list[int]:
    """Choose rows that stand for all: of each cluster of a k-means the member nearest its centre.

    A choice is always a member of the cluster that it stands for, so that no row is chosen twice.

    Args:
        features: (N, D), finite.
        count: Number of clusters, and of rows to choose.
        seed: Of the k-means' starts, of which the best of ten is kept.

    Returns:
        ``count`` different indices, sorted.

    Raises:
        ValueError: ``count`` is below 1 or above N, or so many rows are equal that there are fewer clusters.
    """
    # here, since a training reads selections too, and sklearn brings an OpenMP runtime of its own
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    check_count(count, len(features))
    rows = features.detach().double().cpu().numpy()
    with warnings.catch_warnings():
        # of fewer clusters than asked for; said below as an error, with what to do
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters = KMeans(n_clusters=count, n_init=10, random_state=seed).fit(rows)
    found = len(set(clusters.labels_))
    if found < count:
        raise ValueError(
            f"count is {count}, but the {len(rows)} rows form no more than {found} clusters, since some are equal; "
            f"give a count of 1 to {found}, or choose at random"
        )
    distances = torch.from_numpy(clusters.transform(rows))  # (N, count)
    members = torch.from_numpy(clusters.labels_)[:, None] == torch.arange(count)
    return sorted(distances.where(members, torch.inf).argmin(0).tolist())


def at_random(total: int, count: int, seed: int) -> list[int]:
    """Choose rows at random, the control of :func:`nearest_to_centres`.

    Args:
        total: Number of rows there are.
        count: Number of rows to choose.
        seed: Of the draw.

    Returns:
        ``count`` different indices, sorted.

    Raises:
        ValueError: ``count`` is below 1 or above ``total``.
    """
    check_count(count, total)
    return sorted(random.Random(seed).sample(range(total), count))


def common_photos(photos: dict[str, list[str]]) -> set[str]:
    """Photos that every concept has an edit of: means over other photos would differ by the photos, too.

    Args:
        photos: Concept to the names of its photos.

    Raises:
        ValueError: There is no such photo.
    """
    common = set.intersection(*map(set, photos.values()))
    if not common:
        counts = ", ".join(f"{concept} has {len(names)}" for concept, names in photos.items())
        raise ValueError(
            f"no training photo has an edit of every candidate ({counts}); finish their synthesis with "
            "`pocketgan predict`, or leave some candidates out"
        )
    return common


def write_selection(file: Path, names: list[str], how: str) -> None:
    """Write what was chosen: one name a line, below comment lines that say how.

    Args:
        file: Made with its folder; an existing file is replaced.
        names: Concepts, or photos by their file names.
        how: How they were chosen, for people; may have several lines.

    Raises:
        ValueError: A name would not be read back as it is.
    """
    for name in names:
        if not name or name != name.strip() or name.startswith(_COMMENT) or len(name.splitlines()) != 1:
            raise ValueError(
                f"the name {name!r} cannot stand on a line of its own; "
                f"rename it so that it has no line break, no space at its ends and no {_COMMENT} in front"
            )
    lines = [*(f"{_COMMENT} {line}" for line in how.splitlines()), *names]
    with explained_write_error(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, "".join(f"{line}\n" for line in lines).encode())


def read_selection(file: Path) -> list[str]:
    """Read the names in a file of :func:`write_selection`; one written by hand will do as well.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no text, holds no name, or a name twice.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"selection file {file} does not exist; write it with `pocketgan select`, "
            "or give concepts as a list in brackets, such as '[style_04]'"
        )
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text file; give one that `pocketgan select` wrote") from error
    names = [line for line in lines if line and not line.startswith(_COMMENT)]
    if not names:
        raise ValueError(f"selection file {file} holds no names; write one name a line, or give another file")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(f"selection file {file} holds {', '.join(twice)} more than once; leave one line of each")
    return names
