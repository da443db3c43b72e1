"""Folders of images whose colour says their class."""

import numpy as np
from PIL import Image

LEVEL = {"ant": 20, "bee": 110, "cat": 220, "dog": 250}


def fill(folder, names, count=6, mode="RGB", level=LEVEL):
    """Images whose colour says their class."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((4, 6, 3), level[name] + i % 2, dtype=np.uint8)).convert(mode).save(
                folder / name / f"{i}.png"
            )
    return folder
