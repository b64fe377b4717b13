"""Draw each benchmark's results file as an SVG. The same results give the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["PLOTS", "draw"]

mpl.rcParams.update(
    {
        "svg.hashsalt": "sessionstore",  # else ids are random
        "svg.fonttype": "none",  # text stays text
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "legend.frameon": False,
    }
)

#: Ours, theirs, and what is neither.
_OURS, _THEIRS, _OTHER, _FOURTH = "#1f6fb4", "#d98032", "#8a8a8a", "#6aa84f"


def draw(document: dict[str, Any], folder: Path) -> Path:
    """Draw one results file into `folder`; returns the SVG's path."""
    name = document["name"]
    figure = PLOTS[name](document["results"]["figures"])
    figure.suptitle(document["results"]["title"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.svg"
    figure.savefig(path, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return path


def _draw_gateway(figures: list[dict[str, Any]]) -> Figure:
    figure, (axes,) = _axes(1, height=1.2 + 0.3 * len(figures))
    names = [row["name"] for row in figures]
    colours = [_THEIRS if "bare" in name else _OURS for name in names]
    bars = axes.barh(names, [row["rps"] for row in figures], color=colours)
    axes.bar_label(bars, [f" {row['rps']:,.0f}" for row in figures])
    axes.invert_yaxis()
    axes.set_xlabel("requests per second")
    return figure


def _draw_lookup(figures: dict[str, Any]) -> Figure:
    sizes: dict[str, dict[str, float]] = figures["sizes"]
    names = list(next(iter(sizes.values())))
    figure, axes = _axes(len(sizes), height=0.8 + 0.3 * len(names), share_y=True)
    for plot, (size, times) in zip(axes, sizes.items(), strict=True):
        values = [times[name] for name in names]
        colours = [_OURS if "view" in name else _OTHER if "dict" in name else _THEIRS for name in names]
        bars = plot.barh(names, values, color=colours)
        plot.bar_label(bars, [f" {value:,.0f}" for value in values])
        plot.set_xscale("log")
        plot.set_xlim(10, max(values) * 12)
        plot.set_title(f"{int(size):,} sessions", fontsize=9)
        plot.set_xlabel("ns, logarithmic")
    axes[0].invert_yaxis()
    return figure


def _draw_propagation(figures: list[dict[str, Any]]) -> Figure:
    kinds = list(dict.fromkeys(row["kind"] for row in figures))
    figure, axes = _axes(len(kinds), share_y=True)
    for plot, kind in zip(axes, kinds, strict=True):
        rows = [row for row in figures if row["kind"] == kind]
        _group(
            plot,
            [str(row["views"]) for row in rows],
            {
                "view p50": (_OURS, [row["p50_us"] for row in rows]),
                "publish → receive p50": (_THEIRS, [row["p50_bare_us"] for row in rows]),
                "view p99": ("#9cc3e5", [row["p99_us"] for row in rows]),
                "publish → receive p99": ("#f0c49b", [row["p99_bare_us"] for row in rows]),
            },
        )
        plot.set_title(kind, fontsize=9)
        plot.set_xlabel("views")
    axes[0].set_ylabel("µs")
    axes[0].legend()
    return figure


def _draw_effective(figures: list[dict[str, Any]]) -> Figure:
    kinds = list(dict.fromkeys(row["kind"] for row in figures))
    figure, axes = _axes(len(kinds), share_y=True)
    colours = dict(zip(figures[0]["p50_us"], (_OTHER, _OURS, _THEIRS), strict=True))
    for plot, kind in zip(axes, kinds, strict=True):
        rows = [row for row in figures if row["kind"] == kind]
        _group(
            plot,
            [str(row["views"]) for row in rows],
            {write: (colour, [row["p50_us"][write] for row in rows]) for write, colour in colours.items()},
        )
        plot.set_yscale("log")
        plot.set_title(kind, fontsize=9)
        plot.set_xlabel("live views")
    axes[0].set_ylabel("p50 of a write, µs, logarithmic")
    axes[0].legend()
    return figure


def _draw_redis(figures: list[dict[str, Any]]) -> Figure:
    figure, (axes,) = _axes(1)
    _group(
        axes,
        [f"{row['views']:,}" for row in figures],
        {
            "a write": (_OURS, [row["us"] for row in figures]),
            "the exchange by hand": (_THEIRS, [row["by_hand_us"] for row in figures]),
        },
    )
    axes.set_yscale("log")
    axes.set_ylabel("CPU time of Redis, µs, logarithmic")
    axes.set_xlabel("live views")
    axes.legend()
    return figure


def _draw_sync(figures: list[dict[str, Any]]) -> Figure:
    figure, (time, ping) = _axes(2)
    sizes = [f"{row['sessions']:,}" for row in figures]
    kinds = [kind for kind in figures[0]["seconds"] if kind != "nothing"]
    colours = dict(zip(kinds, (_OURS, _FOURTH, _THEIRS), strict=True)) | {"nothing": _OTHER}
    _group(time, sizes, {kind: (colours[kind], [_median(row["seconds"][kind]) for row in figures]) for kind in kinds})
    time.set_yscale("log")
    time.set_ylabel("seconds, logarithmic")
    time.set_xlabel("sessions")
    time.legend()
    _group(
        ping,
        sizes,
        {kind: (colours[kind], [min(row["ping_ms"][kind]) for row in figures]) for kind in colours},
    )
    ping.set_ylabel("longest PING, ms")
    ping.set_xlabel("sessions")
    ping.legend()
    return figure


def _draw_capacity(figures: list[dict[str, Any]]) -> Figure:
    figure, (axes,) = _axes(1)
    kinds = zip(figures[0]["cores"], (_OURS, _THEIRS, _OTHER, _FOURTH), strict=True)
    _group(
        axes,
        [f"{row['proxies']:,}" for row in figures],
        {kind: (colour, [row["cores"][kind] for row in figures]) for kind, colour in kinds},
    )
    axes.set_yscale("log")
    axes.set_ylabel("cores of Redis, logarithmic")
    axes.set_xlabel("proxies")
    axes.legend()
    return figure


#: How each benchmark's figures are drawn.
PLOTS: dict[str, Callable[[Any], Figure]] = {
    "gateway": _draw_gateway,
    "lookup": _draw_lookup,
    "propagation": _draw_propagation,
    "sync": _draw_sync,
    "effective": _draw_effective,
    "redis": _draw_redis,
    "capacity": _draw_capacity,
}


def _axes(columns: int, *, height: float = 3.2, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with some plots side by side. Figures made this way need no display and are not kept anywhere."""
    figure = Figure(figsize=(3.4 * columns + 1.6, height), layout="constrained")
    axes = figure.subplots(1, columns, sharey=share_y, squeeze=False)
    return figure, list(axes[0])


def _group(axes: Axes, groups: Sequence[str], bars: dict[str, tuple[str, list[float]]]) -> None:
    """Bars in groups: by name, their colour and a value for each group."""
    width = 0.8 / len(bars)
    for number, (name, (colour, values)) in enumerate(bars.items()):
        places = [group + (number - (len(bars) - 1) / 2) * width for group in range(len(groups))]
        axes.bar(places, values, width, color=colour, label=name)
    axes.set_xticks(range(len(groups)), groups)


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
