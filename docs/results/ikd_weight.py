"""Draws ikd_weight.png from ikd_weight.json: accuracy and spread within classes against the weight of IKD.

python docs/results/ikd_weight.py
"""
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent


def main():
    rows = sorted((row for row in json.loads((HERE / "ikd_weight.json").read_text())["rows"]
                   if row["method"] == "kd" and row["intra_T"] == 1), key=lambda row: row["avg"])
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
    for ax, key, words, colour in ((panels[0], "last", "test accuracy after epoch 20, %", "#0072B2"),
                                   (panels[1], "spread", "mean spread within classes", "#D55E00")):
        held = [row for row in rows if row.get(key) is not None]
        ax.plot([row["avg"] for row in held], [row[key] for row in held], marker="o", color=colour)
        ax.set(xlabel="weight of IKD (--avg)", ylabel=words)
        ax.set_xscale("symlog", linthresh=0.5)
        ax.set_xticks([row["avg"] for row in held], [f"{row['avg']:g}" for row in held])
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "ikd_weight.png", dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    main()
