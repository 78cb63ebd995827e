"""Curves of test accuracy over epochs, with bands over trials (matplotlib, one of the extras)."""
import importlib.util
import io

import numpy as np

from scripts.tables.aggregate import Row

# Okabe and Ito's colours, which differ for every kind of colour vision; without black and yellow, which one of the
# page's two themes hides.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
# Stands for the page's text colour in what matplotlib draws.
TEXT = "#010203"


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def accuracy_curves(pair: str, rows: list[Row]) -> str:
    """An SVG element: of each row the mean test accuracy by epoch, and a band of one standard deviation over its
    trials. Texts and axes have the colour of the text around it."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    style = {"svg.hashsalt": pair, "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10,
             **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), TEXT)}
    with matplotlib.rc_context(style):
        lines = 1 + (len(rows) + 1) // 3
        figure = Figure(figsize=(7.2, 3.6 + 0.2 * lines), layout="constrained")
        axes = figure.add_subplot()
        for i, row in enumerate(rows):
            _curve(axes, row, COLOURS[i % len(COLOURS)], DASHES[(i + i // len(COLOURS)) % len(DASHES)])
        teachers = {record.final["teacher_top1"] for row in rows if row.method != "ce" for record in row.records}
        if len(teachers) == 1:
            axes.axhline(*teachers, color=TEXT, linewidth=0.9, linestyle=(0, (1, 3)), label="teacher")
        # The first fifth of a long schedule climbs from far below where the rows differ.
        starts = [row.records[0].curve("test_top1") for row in rows]
        if min(map(len, starts)) >= 30:
            axes.set_ylim(bottom=min(curve[len(curve) // 5] for curve in starts))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel="test accuracy, %")
        axes.grid(alpha=0.2, color=TEXT)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    return svg[svg.index("<svg"):].replace(TEXT, "currentColor")


def _curve(axes, row, colour, dashes):
    curves = [record.curve("test_top1") for record in row.records]
    length = min(map(len, curves))
    epochs, values = range(1, length + 1), np.array([curve[:length] for curve in curves])
    means = values.mean(axis=0)
    axes.plot(epochs, means, color=colour, linestyle=dashes, linewidth=1.5, marker="." if length < 30 else None,
              label=f"{row.name}, {len(curves)} trial{'s' * (len(curves) != 1)}")
    if len(curves) > 1:
        spread = values.std(axis=0, ddof=1)
        axes.fill_between(epochs, means - spread, means + spread, color=colour, alpha=0.15, linewidth=0)
