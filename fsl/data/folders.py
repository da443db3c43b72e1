"""Looks through a folder of images before loading, and reports or refuses what would be left out or mislabelled."""

import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from fsl.data.class_names import some
from fsl.errors import DataError

log = logging.getLogger(__name__)

# `datasets` recognises splits by these words in folder names, in lower case only.
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_WORD = re.compile(rf"(?:^|[-._ 0-9])({'|'.join(_SPLITS)})(?:$|[-._ 0-9])")
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_LAYOUT = "put each image into a folder that is named after its class, as train/cat/1.png or cat/1.png"


@dataclass(frozen=True)
class Images:
    """The files of a folder, by their paths in it."""

    images: Sequence[PurePath]
    parquet: Sequence[PurePath]
    others: Sequence[PurePath]  # files that are no images, by their names
    empty: Sequence[PurePath]  # empty folders
    links: Sequence[PurePath]  # links to folders, which nobody follows
    described: bool  # whether a metadata file has the labels


def look(path: Path) -> Images:
    """List all files of a folder except hidden ones."""
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    suffixes = set(ImageFolder.EXTENSIONS)
    images: list[PurePath] = []
    parquet: list[PurePath] = []
    others: list[PurePath] = []
    empty: list[PurePath] = []
    links: list[PurePath] = []
    described = False
    for folder, folders, files in os.walk(path):
        here = Path(folder).relative_to(path)
        folders[:] = [name for name in sorted(folders) if not name.startswith((".", "__"))]
        links += [here / name for name in folders if (path / here / name).is_symlink()]
        shown = [name for name in sorted(files) if not name.startswith(".")]
        if not folders and not shown and here.parts:
            empty.append(here)
        for name in shown:
            suffix = PurePath(name).suffix.lower()
            if name in _METADATA:
                described = True
            elif suffix == ".parquet":
                parquet.append(here / name)
            else:
                (images if suffix in suffixes else others).append(here / name)
    return Images(images, parquet, others, empty, links, described)


def check_folder(found: Images, where: str, given: bool = False) -> None:
    """Raise DataError for an ambiguous folder: each image's class is the name of its folder.

    With `given` the classes are known from elsewhere, and the folder may lack some.
    """
    if found.parquet and found.images:
        raise DataError(
            f"{where} holds both Parquet files ({found.parquet[0]}, ...) and images ({found.images[0]}, ...); give a "
            "folder with one kind"
        )
    if found.links:
        raise DataError(
            f"{where}: '{found.links[0]}' is a symbolic link to a folder, which is not followed; give the folder "
            "itself, or link its files one by one"
        )
    capital = [p.parts[0] for p in found.images if len(p.parts) > 1 and _is_capital(p.parts[0])]
    if capital:
        raise DataError(
            f"{where}: the folder '{capital[0]}' would not count as a split, and its images would be mixed with the "
            f"others'; name it '{capital[0].lower()}'"
        )
    if not found.described and found.images:
        _check_classes(found, where, given)
    if found.empty:
        log.warning("%s: no images in %s, which is no class then", where, some(found.empty))
    if found.others and found.images:
        shown = some(found.others)
        log.warning(
            "%s: files that are no images by their names are not read (%d: %s)", where, len(found.others), shown
        )


def check_all_read(found: Images, rows: int, where: str) -> None:
    """Log images that are in no split."""
    if not found.described and 0 < rows < len(found.images):
        log.warning("%s: only %d of %d images belong to a split, others are not read", where, rows, len(found.images))


def _check_classes(found: Images, where: str, given: bool) -> None:
    kinds = {p: _split_of(p) for p in found.images}
    split = any(kinds.values())
    inside = [p for p in found.images if not split or kinds[p]]
    bare = [p for p in inside if not p.parent.parts or (split and _WORD.search(p.parent.name))]
    if len(bare) == len(inside):
        reason = f" directly in '{bare[0].parent}', which is read as a split," if split else ""
        raise DataError(f"{where} has images{reason} without a folder for each class ({bare[0]}, ...); {_LAYOUT}")
    depths = Counter(len(p.parts) for p in inside)
    if len(depths) > 1:
        usual = depths.most_common(1)[0][0]
        odd = next(p for p in inside if len(p.parts) != usual)
        side = "deeper" if len(odd.parts) > usual else "less deep"
        raise DataError(
            f"{where}: '{odd}' lies {side} than most images, so that folders are no classes; move it, and {_LAYOUT}"
        )
    classes: dict[str, dict[str, PurePath]] = {}
    for p in inside:
        first = classes.setdefault(kinds[p] or "train", {}).setdefault(p.parent.name, p.parent)
        if first != p.parent and _without_split(first) != _without_split(p.parent):
            raise DataError(
                f"{where}: folders '{first}' and '{p.parent}' have the same name, and would be one class; give each "
                "class one folder, with another name"
            )
    if not given:
        _check_splits(classes, where)


def _check_splits(classes: Mapping[str, Mapping[str, PurePath]], where: str) -> None:
    """Raise DataError for classes of another split that training lacks."""
    train = classes.get("train", {})
    if len({name for each in classes.values() for name in each}) == 1:
        name = next(name for each in classes.values() for name in each)
        raise DataError(f"{where} has images of one class only ('{name}'); classification needs at least 2")
    for kind, names in classes.items():
        if train and (unknown := sorted(names.keys() - train.keys())):
            raise DataError(
                f"{where}: the {kind} images have classes that training has not ({some(unknown)}); add images of them "
                "to training, or leave them out"
            )
        if missing := sorted(train.keys() - names.keys()):
            log.warning("%s: no %s images of the classes %s", where, kind, some(missing))


def _split_of(path: PurePath) -> str | None:
    """Returns a file's split by the names of its folders; None where none names one."""
    words = (match[1] for part in path.parts[:-1] if (match := _WORD.search(part)))
    return next((_SPLITS[word] for word in words), None)


def _without_split(folder: PurePath) -> tuple[str, ...]:
    return tuple(part for part in folder.parts if not _WORD.search(part))


def _is_capital(name: str) -> bool:
    return name not in _SPLITS and name.lower() in _SPLITS
