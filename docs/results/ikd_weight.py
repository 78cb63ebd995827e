"""Draws ikd_weight.png from ikd_weight.json: accuracy and spread within classes against the weight of IKD.

python docs/results/ikd_weight.py
"""
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
BASE = {"method": "kd", "intra_T": 1, "means": "epoch"}
# Label, rows, marker, colour: what is trained with several weights is a line.
SERIES = (("kd + IKD", BASE, "o-", "#0072B2"), ("dkd + IKD", BASE | {"method": "dkd"}, "D--", "#D55E00"),
          ("kd + IKD, intra_T 4", BASE | {"intra_T": 4}, "^", "#009E73"),
          ("kd + smoothed labels", BASE | {"means": "smooth"}, "s", "#CC79A7"))


def main():
    rows = sorted(json.loads((HERE / "ikd_weight.json").read_text())["rows"], key=lambda row: row["avg"])
    weights = sorted({row["avg"] for row in rows})
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
    for ax, key, words in ((panels[0], "last", "test accuracy after epoch 20, %"),
                           (panels[1], "spread", "mean spread within classes")):
        for label, wanted, look, colour in SERIES:
            held = [row for row in rows if wanted.items() <= row.items() and row[key] is not None]
            ax.plot([row["avg"] for row in held], [row[key] for row in held], look, color=colour, label=label)
        ax.set(xlabel="weight of IKD (--avg)", ylabel=words)
        ax.set_xscale("symlog", linthresh=0.5)
        ax.set_xticks(weights, [f"{weight:g}" for weight in weights])
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize="small")
    figure.savefig(HERE / "ikd_weight.png", dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    main()
