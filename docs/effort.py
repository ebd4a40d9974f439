"""Draw what distillation brings for which effort: dB over the student alone against hours, coloured by pictures.

python docs/effort.py docs/effort.json docs/effort.png   (measured figures; a .png or .svg file to write)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {7: "#0b8457", 154: "#3b82f6"}


def main(figures: str, out: str) -> None:
    """`figures`: [{"pictures", "hours", "student", "what", "gain", "spread"}], gains in dB of luma PSNR; no
    spread (null) of one seed."""
    rows = json.loads(Path(figures).read_text())
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for row in rows:
        colour = COLOURS[row["pictures"]]
        axes.errorbar(row["hours"], row["gain"], row["spread"], fmt="o", color=colour, capsize=3)
        label = f"{row['student']}: {row['what']}"
        left = row["hours"] > 0.2  # names point to the middle
        axes.annotate(
            label,
            (row["hours"], row["gain"]),
            (-8, 4) if left else (8, -12),
            textcoords="offset points",
            ha="right" if left else "left",
            fontsize=8,
        )
    for pictures, colour in COLOURS.items():
        axes.plot([], [], "o", color=colour, label=f"{pictures} training pictures")
    axes.axhline(0, color="#8b93a1", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(0.03, 2)
    axes.set_xticks([0.05, 0.1, 0.2, 0.5, 1, 2], labels=["0.05", "0.1", "0.2", "0.5", "1", "2"])
    axes.minorticks_off()
    axes.set_xlabel("hours on two cores, teachers included")
    axes.set_ylabel("dB over the student alone")
    axes.grid(color="#e3e6eb")
    axes.legend(loc="upper right", frameon=False)
    figure.savefig(out, dpi=120)


main(*sys.argv[1:])
