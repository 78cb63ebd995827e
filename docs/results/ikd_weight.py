"""Draws ikd_weight.png from ikd_weight.json: accuracy and spread within classes against the weight of IKD.

python docs/results/ikd_weight.py
"""
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
CLASS_MEANS = {"method": "kd", "intra_T": 1, "means": "epoch"}
# What else was trained with kd: drawn as single points.
OTHERS = (("intra_T 4", CLASS_MEANS | {"intra_T": 4}, "^"), ("smoothed labels", CLASS_MEANS | {"means": "smooth"}, "s"))


def rows_with(rows, wanted):
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def main():
    rows = sorted(json.loads((HERE / "ikd_weight.json").read_text())["rows"], key=lambda row: row["avg"])
    line = rows_with(rows, CLASS_MEANS)
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
    for ax, key, words, colour in ((panels[0], "last", "test accuracy after epoch 20, %", "#0072B2"),
                                   (panels[1], "spread", "mean spread within classes", "#D55E00")):
        ax.plot([row["avg"] for row in line], [row[key] for row in line], marker="o", color=colour, label="class means")
        for label, wanted, marker in OTHERS:
            found = rows_with(rows, wanted)
            ax.plot([row["avg"] for row in found], [row[key] for row in found], marker, color=colour, mfc="white",
                    label=label)
        ax.set(xlabel="weight of IKD (--avg)", ylabel=words)
        ax.set_xscale("symlog", linthresh=0.5)
        ax.set_xticks([row["avg"] for row in line], [f"{row['avg']:g}" for row in line])
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    panels[1].legend(frameon=False)
    figure.savefig(HERE / "ikd_weight.png", dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    main()
