"""Plots of results, as SVG for the documentation."""

from collections.abc import Sequence
from pathlib import Path

from .report import Result
from .rows import Finding, Unavailable


def save(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write one plot for each row that compares costs; return the files."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise Unavailable("matplotlib is not installed") from None
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "wfpioctl"  # the same file from the same numbers
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for result in results:
        costs = [each for each in result.findings if each.unit == "ns"]
        if len(costs) > 1:
            name = "".join(c if c.isalnum() else "-" for c in result.title.lower())
            files.append(folder / f"{'-'.join(filter(None, name.split('-')))}.svg")
            _bars(result.title, costs, files[-1])
    return files


def _bars(title: str, costs: Sequence[Finding], file: Path) -> None:
    from matplotlib.figure import Figure

    costs = sorted(costs, key=lambda each: -each.value)
    figure = Figure(figsize=(8, 0.7 + 0.4 * len(costs)), layout="constrained")
    axes = figure.add_subplot()
    names = [each.what.removesuffix(", a call") for each in costs]
    spread = [
        [each.value - each.low for each in costs],
        [each.high - each.value for each in costs],
    ]
    colours = ["tab:blue" if name.startswith("wfpioctl") else "silver" for name in names]
    bars = axes.barh(names, [each.value for each in costs], xerr=spread, color=colours)
    axes.bar_label(bars, [f"{each.value:,.0f} ns" for each in costs], padding=4)
    axes.set_title(title)
    axes.set_xlabel("nanoseconds a call; the line is from the lower to the upper quartile")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})
