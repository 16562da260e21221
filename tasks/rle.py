"""Run-length encoding of masks as COCO has it: runs down the columns, zeros first, as text of six bits a letter."""

from __future__ import annotations

import numpy as np


def encode_mask(mask: np.ndarray) -> dict[str, object]:
    """mask (H, W) bool -> {"size": [H, W], "counts": text}, which pycocotools and others decode."""
    flat = np.concatenate([[False], mask.T.ravel(), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    if len(runs) > 1 and edges[-1] == mask.size:  # the last pixel is set: no zeros follow
        runs.pop()
    return {"size": list(mask.shape), "counts": _text(runs)}


def _text(runs: list[int]) -> str:
    """Each run as its difference to the one before the last, five bits a letter, the lowest first; the sixth bit says
    that more follow, and the sign is that of the highest bit."""
    letters = []
    for place, run in enumerate(runs):
        rest = run - runs[place - 2] if place > 2 else run
        more = True
        while more:
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)
            letters.append(chr((bits | 32 if more else bits) + 48))
    return "".join(letters)
