"""Run-length encoding of masks as COCO has it: runs down the columns, zeros first, as text of six bits a letter."""

from __future__ import annotations

import numpy as np

MOST_LETTERS = 7  # of a number: 35 bits


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


def read_counts(counts: object, pixels: int) -> np.ndarray:
    """The lengths of runs, as a list or as text, of a mask of so many pixels -> (n,) int64, zeros first.

    Raises ValueError that says what is wrong.
    """
    if isinstance(counts, str):
        found = _numbers(counts)
    elif isinstance(counts, list) and all(type(count) is int and 0 <= count <= pixels for count in counts):
        found = np.array(counts, np.int64)
    else:
        raise ValueError(f"counts is {counts!r:.40}; it takes a text, or a list of whole numbers of 0..{pixels:,}")
    if len(found) and not 0 <= found.min() <= found.max() <= pixels:
        raise ValueError(f"counts has a run of {found.min() if found.min() < 0 else found.max():,} pixels")
    if (total := int(found.sum())) != pixels:
        raise ValueError(f"its runs have {total:,} pixels, its size {pixels:,}")
    return found


def _numbers(text: str) -> np.ndarray:
    """`_text` read back."""
    letters = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int64) - 48
    if not len(letters):
        return np.zeros(0, np.int64)
    ends = np.flatnonzero(letters & 32 == 0)
    if letters.min() < 0 or letters.max() > 63 or not len(ends) or ends[-1] != len(letters) - 1:
        raise ValueError(f"counts is {text!r:.40}; it is no text of run lengths")
    begins = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends + 1 - begins
    if lengths.max() > MOST_LETTERS:
        raise ValueError(f"counts has a number of {lengths.max()} letters; at most {MOST_LETTERS} are read")
    place = np.arange(len(letters)) - np.repeat(begins, lengths)
    numbers = np.add.reduceat((letters & 31) << 5 * place, begins)
    numbers -= np.where(letters[ends] & 16, 1 << 5 * lengths, 0)
    for first in (1, 2):  # each is a difference to the one before the last; but the first three are not
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers
