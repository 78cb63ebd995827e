"""Draws ikd.png: what KD and the IKD term pull a student's logits toward. A sketch of points drawn at random.

python docs/figures/ikd.py
"""
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Okabe and Ito's colours, distinct for all kinds of sight.
COLOURS = {"cat": "#0072B2", "dog": "#D55E00", "ship": "#009E73"}
CENTRES = {"cat": (0.0, 0.0), "dog": (2.6, 0.5), "ship": (1.1, 2.5)}


def main():
    generator = np.random.default_rng(3)
    figure, ax = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    for name, centre in CENTRES.items():
        points = generator.normal(centre, (0.46, 0.36), (28, 2))
        ax.scatter(points[:, 0], points[:, 1], s=14, color=COLOURS[name], alpha=0.45, linewidths=0)
        x, y = points.mean(0)
        ax.scatter(x, y, s=130, marker="X", color=COLOURS[name], edgecolors="white", zorder=3)
        label(ax, f"mean of {name}, $m_{{{name}}}$", (x, y), (0, 12), color=COLOURS[name], weight="bold")
    mean, teacher, student = np.array(CENTRES["cat"]), np.array((0.75, -0.55)), np.array((-1.5, -0.75))
    ax.scatter(teacher[0], teacher[1], s=60, color=COLOURS["cat"], edgecolors="black", zorder=4)
    ax.scatter(student[0], student[1], s=70, marker="s", color="black", zorder=4)
    label(ax, "teacher's logits\nof this image", teacher, (12, -12), ha="left")
    label(ax, "student's logits\nof this image", student, (-12, -12), ha="right")
    for end, words, style, place in ((teacher, "KD", "--", (0, -16)), (mean, "IKD", "-", (-8, 7))):
        ax.annotate("", student + 0.93 * (end - student), student + 0.06 * (end - student),
                    arrowprops={"arrowstyle": "-|>", "linestyle": style, "linewidth": 1.6, "color": "black"})
        label(ax, words, (student + end) / 2, place, weight="bold", fontsize=11)
    ax.set(xticks=[], yticks=[], xlim=(-3.2, 4.1), ylim=(-1.5, 3.6), xlabel="a direction of the logits",
           ylabel="another direction")
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=150, metadata={"Software": None})


def label(ax, words, place, offset, ha="center", fontsize=9, **how):
    """Words beside a place, on a pale ground where points lie below them."""
    ax.annotate(words, place, offset, textcoords="offset points", ha=ha, fontsize=fontsize, zorder=5,
                bbox={"boxstyle": "square,pad=0.1", "color": "white", "alpha": 0.75, "linewidth": 0}, **how)


if __name__ == "__main__":
    main()
