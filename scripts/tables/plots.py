"""Curves of test accuracy over epochs, with bands over trials (matplotlib, one of the extras)."""
import io
import statistics

from scripts.tables.aggregate import Row, name_in


def available() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def accuracy_curves(pair: str, rows: list[Row]) -> str:
    """An SVG: of each row the mean test accuracy by epoch, and a band of one standard deviation over its trials."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.records]
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    colors = matplotlib.colormaps["tab10" if len(rows) <= 10 else "tab20"].colors
    for i, row in enumerate(rows):
        curves = [record.curve("test_top1") for record in row.records]
        length = min(map(len, curves))
        epochs, by_epoch = range(1, length + 1), list(zip(*(curve[:length] for curve in curves), strict=True))
        means = [statistics.fmean(values) for values in by_epoch]
        style = "-" if i < 10 or len(rows) <= 10 else "--"
        axes.plot(epochs, means, style, color=colors[i % len(colors)], linewidth=1.4,
                  marker="." if length < 30 else None, label=f"{name_in(row, rows)} ({len(curves)})")
        if len(curves) > 1:
            spread = [statistics.stdev(values) for values in by_epoch]
            axes.fill_between(epochs, [m - s for m, s in zip(means, spread, strict=True)],
                              [m + s for m, s in zip(means, spread, strict=True)],
                              color=colors[i % len(colors)], alpha=0.15, linewidth=0)
    teachers = {top1 for row in rows for top1 in row.teacher_top1}
    if len(teachers) == 1:
        axes.axhline(*teachers, color="0.4", linewidth=0.9, linestyle=":", label="teacher")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epoch", ylabel="test accuracy, %", title=pair.replace("->", " → "))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False, title="method (trials)", title_fontsize=8)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": pair, "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()
