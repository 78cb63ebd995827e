"""The pictures of scripts/analyze.py: pure functions of figures to PNG.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart; networks, loss terms and classes
also differ by marker or dashes, so that a grey print still reads. Signed values have a diverging map, white at 0.
Needs matplotlib (requirements-extras.txt), imported where something is drawn.
"""
from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from helper.util.errors import printable
from scripts.analysis.metrics import Reliability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = {
    "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.fontsize": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#666666",
    "axes.linewidth": 0.7, "xtick.color": "#333333", "ytick.color": "#333333", "xtick.major.width": 0.7,
    "ytick.major.width": 0.7, "grid.color": "#e4e4e4", "grid.linewidth": 0.7, "axes.axisbelow": True,
    "legend.frameon": False, "figure.facecolor": "white",
}
SIGNED, UNSIGNED = "RdBu_r", "Greys"
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000", "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7")
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
DASHES = ("--", "-.", ":", (0, (6, 1.5, 1, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 3)))
MARKERS = "os^Dvp*XP<"
WIDTH, RARE, QUIET = 10.0, 0.01, "#767676"
# Colour, marker and dashes of each network's role in a comparison.
LOOKS = {"teacher": (BLACK, "|", "--"), "against": (VERMILION, "o", "-."), "student": (BLUE, "D", "-")}


class Look(NamedTuple):
    """How a network appears in every picture."""

    label: str
    colour: str
    marker: str
    line: str


class Layout(NamedTuple):
    """The order of the classes on an axis.

    order: the classes' numbers; names: their names, in that order
    groups: (name, first, end) of each stretch of a superclass; none where the data has no superclasses
    """

    order: list[int]
    names: list[str]
    groups: list[tuple[str, int, int]]

    def part(self, most: int) -> Layout:
        """At most so many of the classes, evenly spaced in the order; without groups if any is left out."""
        count = len(self.order)
        if count <= most:
            return self
        kept = [k * count // most for k in range(most)]
        return Layout([self.order[k] for k in kept], [self.names[k] for k in kept], [])


def layout_of(classes: tuple[str, ...], superclasses: tuple[str, ...]) -> Layout:
    """Classes by superclass and name; without superclasses in their own order."""
    if not superclasses:
        return Layout(list(range(len(classes))), [_words(name) for name in classes], [])
    order = sorted(range(len(classes)), key=lambda c: (superclasses[c], classes[c]))
    sorted_names = sorted(superclasses)
    firsts = {name: sorted_names.index(name) for name in sorted_names}
    groups = [(_words(name), first, first + sorted_names.count(name)) for name, first in firsts.items()]
    return Layout(order, [_words(classes[c]) for c in order], groups)


def png(draw, *arguments) -> bytes:
    """The figure that `draw(*arguments)` returns, in this module's style, as the bytes of a PNG file."""
    import matplotlib

    with matplotlib.rc_context(matplotlib.rcParamsDefault | STYLE):
        buffer = io.BytesIO()
        draw(*arguments).savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()


def _words(name):
    """A class's name as text: matplotlib would read a formula between dollar signs."""
    return printable(name).replace("_", " ").replace("$", r"\$")


def _figure(height):
    from matplotlib.figure import Figure

    # Of one width, so that letters have one size where the page fits the pictures to its own width.
    return Figure(figsize=(WIDTH, height), layout="constrained")


def _curve(ax, trials, value, label, band=True, **style):
    """The mean over trials by epoch, and a band of one standard deviation; what is 0 in every trial is left out."""
    epochs = [line["epoch"] for line in trials[0]]
    series = np.array([[value(line) for line in lines] for lines in trials])
    middle = np.where((series == 0).all(0), np.nan, series.mean(0))
    ax.plot(epochs, middle, label=label, marker="o" if len(epochs) == 1 else None, **style)
    if band and len(series) > 1:
        deviation = series.std(0, ddof=1)
        ax.fill_between(epochs, middle - deviation, middle + deviation, color=style["color"], alpha=0.18, linewidth=0)
    return middle


def curves(runs: list[tuple[Look, list[list[dict]]]], teacher: tuple[Look, float] | None) -> Figure:
    """Losses of the last run, and accuracies of all.

    runs: of each run its look and its trials' log lines, as many in each trial
    teacher: its look and its accuracy in percent
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = _figure(4.2)
    left, right = figure.subplots(1, 2)
    _, trials = runs[-1]
    terms, drawn = list(trials[0][0]["losses"]), []
    if len(terms) > 1:
        drawn.append(_curve(left, trials, lambda line: line["loss"], "total", color=BLACK, linewidth=1.6))
    for i, term in enumerate(terms):
        drawn.append(_curve(left, trials, lambda line, term=term: line["losses"][term], term, linewidth=1.4,
                            color=COLOURS[i % len(COLOURS)], linestyle=DASHES[i % len(DASHES)]))
    drawn.append(_curve(left, trials, lambda line: line["test_loss"], "test cross-entropy", color=QUIET,
                        linewidth=1.2))
    left.set(title=f"loss terms (weighted) in training, {runs[-1][0].label}", xlabel="epoch", ylabel="loss")
    lowest, highest = np.nanmin(drawn), np.nanmax(drawn)
    if lowest > 0:  # VID's loss may be negative
        # The limits follow the lines: on this scale a band may reach down to 0.
        left.set(yscale="log", ylim=(lowest / 1.5, highest * 1.5))
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.yaxis.set_major_formatter("{x:g}")
        left.yaxis.set_minor_formatter(NullFormatter())
    for look, lines in runs:
        _curve(right, lines, lambda line: line["test_top1"], f"{look.label}, test", color=look.colour, linewidth=1.6,
               linestyle=look.line)
        _curve(right, lines, lambda line: line["train_top1"], f"{look.label}, training", band=False,
               color=look.colour, linewidth=1.1, linestyle=":")
    if teacher:
        look, top1 = teacher
        right.axhline(top1, color=look.colour, linewidth=1, linestyle=look.line, label=f"{look.label}, test")
    right.set(title="top-1 accuracy", xlabel="epoch", ylabel="top-1 accuracy, %")
    for ax in (left, right):
        ax.grid(True)
        # Below the axes, where it covers no line.
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3 if ax is left else 2)
        ax.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _class_ticks(axis, layout, size):
    """Superclasses, or where there are none classes, as the ticks of an axis."""
    if layout.groups:
        places, names = [(a + b - 1) / 2 for _, a, b in layout.groups], [name for name, _, _ in layout.groups]
    else:
        step = -(-len(layout.names) // 40)
        places, names = [float(k) for k in range(0, len(layout.names), step)], layout.names[::step]
    upright = axis.axis_name == "x" and max(map(len, names)) > 2
    axis.set_ticks(places, names, fontsize=size, rotation=90 if upright else 0)
    axis.set_tick_params(length=0)


def _matrix(ax, values, layout, title, limits, size, ticks="xy"):
    """A matrix over the classes, thin lines between superclasses; ticks: the axes that have names.

    limits: of the shades; those of signed values have 0 in their middle
    """
    image = ax.imshow(values, cmap=SIGNED if limits[0] < 0 else UNSIGNED, vmin=limits[0], vmax=limits[1],
                      interpolation="nearest")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks([])
        if axis.axis_name in ticks:
            _class_ticks(axis, layout, size)
    for _, start, _ in layout.groups[1:]:
        ax.axvline(start - 0.5, color="#bbbbbb", linewidth=0.5)
        ax.axhline(start - 0.5, color="#bbbbbb", linewidth=0.5)
    ax.set_title(title)
    ax.spines[:].set(visible=True, color="#bbbbbb", linewidth=0.5)
    return image


def _bar(figure, image, ax, label, **where):
    """The scale of an image; pointed, since some values lie beyond its ends."""
    extend = "both" if image.get_clim()[0] < 0 else "max"
    bar = figure.colorbar(image, ax=ax, extend=extend, label=label, **where)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7.5)


def _ordered(matrix: Tensor, layout):
    return matrix[layout.order][:, layout.order].numpy()


def _off_diagonal(matrix):
    return matrix[~np.eye(len(matrix), dtype=bool)]


def _most(matrices, percentile):
    """The percentile of the sizes of what lies off the diagonals."""
    return max(np.nanpercentile(np.abs([_off_diagonal(matrix) for matrix in matrices]), percentile), 1e-9)


def class_means(networks: list[tuple[Look, Tensor]], layout: Layout) -> Figure:
    """The class-mean logits (C, C) of each network, a class a row. The colours span what lies off the diagonals."""
    matrices = [_ordered(means, layout) for _, means in networks]
    most = _most(matrices, 99.7)
    figure = _figure(6.0)
    axes = figure.subplots(1, len(networks), squeeze=False)[0]
    images = [_matrix(ax, values, layout, look.label, (-most, most), 7, "xy" if ax is axes[0] else "x")
              for ax, (look, _), values in zip(axes, networks, matrices, strict=True)]
    for ax in axes:
        ax.set(xlabel="logit of class", anchor="N")
    axes[0].set_ylabel("test images of class")
    _bar(figure, images[0], axes, "mean logit", shrink=0.7, pad=0.02)
    return figure


def correlations(teacher: tuple[Look, Tensor], others: list[tuple[Look, Tensor]], layout: Layout) -> Figure:
    """The teacher's correlation matrix of logits, then of each other network how far its own is from it.

    With one other network its own matrix stands between the two.
    """
    base = _ordered(teacher[1], layout)
    networks = [(look, _ordered(matrix, layout)) for look, matrix in others]
    first = [(teacher[0].label, base)] + ([(networks[0][0].label, networks[0][1])] if len(networks) == 1 else [])
    gaps = [(look.label, np.abs(matrix - base)) for look, matrix in networks]
    figure = _figure(3.9)
    axes = figure.subplots(1, 3)
    most, widest = (_most([matrix for _, matrix in shown], 99.5) for shown in (first, gaps))
    panels = [(label, matrix, (-most, most)) for label, matrix in first]
    panels += [(f"{label} and the teacher,\nmean {_off_diagonal(gap).mean():.3f}", gap, (0, widest))
               for label, gap in gaps]
    # The matrices are symmetric: names on the first one's rows are enough.
    images = [_matrix(ax, matrix, layout, title, limits, 7, "y" if ax is axes[0] else "")
              for ax, (title, matrix, limits) in zip(axes, panels, strict=True)]
    axes[0].set_ylabel("class")
    for ax in axes:
        ax.set_xlabel("class")
    for part, label in ((slice(0, len(first)), "correlation ρ"), (slice(len(first), 3), "|ρ − ρ of the teacher|")):
        _bar(figure, images[part][0], axes[part], label, location="bottom", shrink=0.6 / len(axes[part]), aspect=25,
             pad=0.03)
    return figure


def spread_by_class(networks: list[tuple[Look, Tensor]], layout: Layout) -> Figure:
    """Of each class a row, and on it each network's value; networks: looks and values (C,)."""
    number = len(layout.order)
    columns = min(4, -(-number // 15))
    rows = -(-number // columns)
    figure = _figure(0.9 + 0.2 * max(rows, 8))
    axes = figure.subplots(1, columns, sharex=True, squeeze=False)[0]
    for i, ax in enumerate(axes):
        part = range(i * rows, min(number, (i + 1) * rows))
        values = np.array([[value[layout.order[k]].item() for k in part] for _, value in networks])
        places = np.arange(len(part))
        ax.hlines(places, values.min(0), values.max(0), color="#cccccc", linewidth=1.2)
        for (look, _), value in zip(networks, values, strict=True):
            ax.plot(value, places, look.marker, color=look.colour, markersize=4.2, label=look.label, linestyle="none",
                    clip_on=False)
        ax.set_yticks(places, [layout.names[k] for k in part], fontsize=7.5)
        ax.set_ylim(rows - 0.4, -0.6)
        for _, start, _ in layout.groups:
            if part.start < start < part.stop:
                ax.axhline(start - part.start - 0.5, color="#999999", linewidth=0.6)
        ax.grid(True, axis="x")
        ax.tick_params(axis="y", length=0)
        ax.set_xlim(0, 1.04 * max(np.nanmax(value.numpy()) for _, value in networks))
    figure.supxlabel("spread within the class, $S_c$", fontsize=9)
    figure.supylabel("class", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(networks))
    return figure


def spread_scatter(base: tuple[Look, list[Tensor]], network: tuple[Look, list[Tensor]], names: list[str]) -> Figure:
    """Of each class a point: one network's value against the other's, a panel for each measure named in `names`."""
    figure = _figure(4.3)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for ax, *values, name in zip(panels, base[1], network[1], names, strict=True):
        x, y = (value.numpy() for value in values)
        top = 1.06 * max(np.nanmax([x, y]), 1e-9)
        ax.fill_between([0, top], [0, top], color="#f0f0f0", linewidth=0)
        ax.plot([0, top], [0, top], color=QUIET, linewidth=0.9)
        ax.plot(x, y, network[0].marker, color=network[0].colour, markersize=4.5, alpha=0.8, markeredgewidth=0,
                clip_on=False)
        below = f"smaller for {network[0].label} in {int((y < x).sum())} of {int(np.isfinite(x + y).sum())} classes"
        ax.set(title=f"{name}\n{below}", xlabel=base[0].label, ylabel=network[0].label, xlim=(0, top), ylim=(0, top),
               aspect="equal")
    return figure


def tsne(networks: list[tuple[Look, np.ndarray]], which: np.ndarray, names: list[str]) -> Figure:
    """Embeddings (n, 2) of the same images side by side; which (n,): the place in `names` of each one's class."""
    figure = _figure(3.9 + 0.17 * -(-len(names) // 5))
    for ax, (look, points) in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks, strict=True):
        for k, name in enumerate(names):
            own = points[which == k]
            ax.plot(own[:, 0], own[:, 1], MARKERS[k % len(MARKERS)], color=COLOURS[k % len(COLOURS)],
                    markersize=4, markeredgewidth=0, alpha=0.8, linestyle="none", label=name)
        ax.set(title=look.label, xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    legend = figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=min(5, len(names)))
    for handle in legend.legend_handles:
        handle.set_markersize(6)
    return figure


def reliability(networks: list[tuple[Look, Reliability, float]]) -> Figure:
    """Accuracy by confidence, and how many images have it; with each network its expected calibration error.

    A bin with less than RARE of the images is pale.
    """
    figure = _figure(4.3)
    axes = figure.subplots(2, len(networks), squeeze=False, sharex=True, sharey="row", height_ratios=(3, 1))
    for (upper, lower), (look, bins, error) in zip(axes.T, networks, strict=True):
        edges = np.linspace(0, 1, len(bins.images) + 1)
        middle, width = (edges[1:] + edges[:-1]) / 2, 0.92 * edges[1]
        accuracy, confidence = bins.accuracy.numpy(), bins.confidence.numpy()
        share = (bins.images / bins.images.sum()).numpy()
        for rare, alpha in ((False, 0.5), (True, 0.2)):
            part = (share < RARE) == rare
            upper.bar(middle[part], accuracy[part], width, color=look.colour, alpha=alpha, linewidth=0,
                      label=None if rare else "accuracy")
        upper.hlines(confidence, middle - width / 2, middle + width / 2, color="#111111", linewidth=1.6,
                     label="mean confidence")
        upper.vlines(middle, accuracy, confidence, color="#111111", linewidth=0.8, label="gap")
        upper.plot([0, 1], [0, 1], color=QUIET, linewidth=0.9, linestyle="--")
        upper.set(title=f"{look.label}\nECE {error:.3f}", xlim=(0, 1), ylim=(0, 1))
        lower.bar(middle, 100 * share, width, color=QUIET)
        lower.set(xlabel="confidence (largest probability)")
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("% of images")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
