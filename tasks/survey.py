"""Text tables about labels, for the report of `prepare.py check`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

BAR = 30  # characters of the longest bar


def share_table(names: Sequence[str], columns: Mapping[str, np.ndarray]) -> list[str]:
    """A row for each name: its share in per cent of each split, {split: (names,) counts}, and a bar for all splits."""
    total = sum(columns.values())
    shares = {split: 100 * values / max(1, values.sum()) for split, values in columns.items()}
    name_width = max(map(len, names))
    widths = {split: max(7, len(split) + 2) for split in columns}
    lines = [" " * (name_width + 2) + "".join(f"{split:>{widths[split]}}" for split in columns)]
    for row, name in enumerate(names):
        if total[row]:
            present = {split: f"{shares[split][row]:.2f}" if values[row] else "-" for split, values in columns.items()}
            cells = "".join(f"{present[split]:>{widths[split]}}" for split in columns)
            lines.append(f"  {name:{name_width}}{cells}  {'#' * round(BAR * total[row] / total.max())}".rstrip())
    never = [name.strip() for row, name in enumerate(names) if not total[row]]
    return lines + ([f"  none at all: {', '.join(never)}"] if never else [])
