"""Pictures of a sweep, drawn from its results: how it went, what mattered, how the parameters go together."""

import io
import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution, json_to_distribution

from scaledl.html_page import image_uri
from scaledl.sweep.results import Result, Results

COLOURS = "viridis"
BLUE, GREY, RED = "#3366aa", "#9aa2ae", "#c0392b"


def uri(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return image_uri(file.getvalue(), "svg+xml")


def history(results: Results) -> Figure:
    """Values of one objective over trials, with the best so far."""
    metric = next(iter(results.objectives))
    better = min if results.directions() == ["minimize"] else max
    figure, axes = _axes(7.5, 3.2)
    found = {status: [each for each in results.trials if each.status == status and each.values] for status in
             ("completed", "pruned")}  # fmt: skip
    for status, colour in (("pruned", GREY), ("completed", BLUE)):
        if trials := found[status]:
            values = [each.values[0] for each in trials if each.values]
            axes.scatter([each.trial for each in trials], values, s=18, c=colour, label=status)
    for each in (each for each in results.trials if each.status == "failed"):
        axes.axvline(each.trial, color=RED, lw=1, alpha=0.5)
    best: list[float] = []
    for each in found["completed"]:
        value = each.values[0]  # type: ignore[index]
        best.append(better(best[-1], value) if best else value)
    axes.step([each.trial for each in found["completed"]], best, where="post", color=BLUE, lw=1, label="best so far")
    if best and all(each.values[0] > 0 for each in results.trials if each.values) and max(best) > 10 * min(best):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="trial", ylabel=metric)
    axes.legend(frameon=False, fontsize=9)
    return figure


def learning(results: Results) -> Figure:
    """What each trial's validations gave, and where it was ended."""
    figure, axes = _axes(7.5, 3.2)
    for each in results.trials:
        points = sorted((int(step), value) for step, value in each.validations.items())
        if points:
            pruned = each.status == "pruned"
            steps, values = zip(*points, strict=True)
            axes.plot(
                steps,
                values,
                color=GREY if pruned else BLUE,
                lw=0.8,
                marker="x" if pruned else "",
                markevery=[-1],
                markeredgewidth=1.6,
                zorder=3 if pruned else 2,
            )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="validation", ylabel=next(iter(results.objectives)))
    return figure


def bars(amounts: dict[str, float]) -> Figure:
    figure, axes = _axes(7.5, 0.7 + 0.35 * len(amounts))
    names = list(amounts)[::-1]
    axes.barh(names, [amounts[name] for name in names], color=BLUE, height=0.6)
    axes.set(xlabel="share of the values' variance")
    return figure


def parallel(results: Results) -> Figure:
    """A line for each trial through its parameters to its value."""
    trials = [each for each in results.trials if each.values and set(each.params) == set(results.space)]
    names = [*results.space, *results.objectives]
    columns = [_shares([each.params[name] for each in trials], results.space[name]) for name in results.space]
    columns += [
        _of_values([each.values[index] for each in trials if each.values]) for index in range(len(results.objectives))
    ]
    figure, axes = _axes(max(7.5, 1.6 * len(names)), 3.8)
    shares = np.array([column[0] for column in columns])  # (axes, trials)
    goodness = shares[len(results.space)] if results.directions()[0] == "minimize" else 1 - shares[len(results.space)]
    import matplotlib

    colours = matplotlib.colormaps[COLOURS]
    for index in np.argsort(-goodness):
        axes.plot(range(len(names)), shares[:, index], color=colours(0.95 * goodness[index]), lw=1, alpha=0.8)
    for place, (_, ticks) in enumerate(columns):
        axes.axvline(place, color="#444", lw=0.8)
        for share, label in ticks:
            axes.text(place + 0.02, share, label, fontsize=7.5, va="center")
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(names) - 0.6)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def slices(results: Results) -> Figure:
    """The first objective over each parameter."""
    trials = [each for each in results.trials if each.values]
    names = list(results.space)
    rows = math.ceil(len(names) / 3)
    figure = Figure(figsize=(9, 2.6 * rows), layout="constrained")
    for number, name in enumerate(names):
        axes = figure.add_subplot(rows, min(3, len(names)), number + 1)
        _slice(axes, trials, name, json_to_distribution(results.space[name]))
        axes.set_xlabel(name, fontsize=8)
        axes.set_ylabel(next(iter(results.objectives)), fontsize=8)
    return figure


def _slice(axes: Axes, trials: list[Result], name: str, distribution: Any) -> None:
    own = [each for each in trials if name in each.params]
    colours = [BLUE if each.status == "completed" else GREY for each in own]
    places = [each.params[name] for each in own]
    if isinstance(distribution, CategoricalDistribution):
        choices = list(distribution.choices)
        places = [choices.index(place) for place in places]
        axes.set_xticks(range(len(choices)), [str(choice) for choice in choices])
        axes.set_xlim(-0.5, len(choices) - 0.5)
    elif distribution.log:
        axes.set_xscale("log")
        decade = distribution.high <= 30 * distribution.low
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decade else (1,)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.scatter(places, [each.values[0] for each in own if each.values], s=12, c=colours)
    axes.tick_params(labelsize=7)


def pareto(results: Results) -> Figure:
    """The first two objectives of every trial; the front in blue."""
    (first, second), front = list(results.objectives)[:2], {each.trial for each in results.front()}
    figure, axes = _axes(7.5, 3.8)
    for each in sorted(results.trials, key=lambda each: each.trial in front):
        if each.values:
            axes.scatter(*each.values[:2], s=22, c=BLUE if each.trial in front else GREY)
            if each.trial in front:
                axes.annotate(str(each.trial), each.values[:2], fontsize=7, xytext=(3, 3), textcoords="offset points")
    axes.set(xlabel=first, ylabel=second)
    return figure


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _shares(values: list[Any], text: str) -> tuple[list[float], list[tuple[float, str]]]:
    """Values as heights from 0 to 1, and labels at some heights."""
    distribution = json_to_distribution(text)
    if isinstance(distribution, CategoricalDistribution):
        choices = list(distribution.choices)
        heights = {choice: index / max(1, len(choices) - 1) for index, choice in enumerate(choices)}
        return [heights[value] for value in values], [(height, str(choice)) for choice, height in heights.items()]
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    scale = math.log if distribution.log else float
    low, high = scale(distribution.low), scale(distribution.high)
    span = (high - low) or 1.0
    middle = math.exp((low + high) / 2) if distribution.log else (low + high) / 2
    ticks = [(0.0, f"{distribution.low:g}"), (0.5, f"{middle:.2g}"), (1.0, f"{distribution.high:g}")]
    return [(scale(value) - low) / span for value in values], ticks


def _of_values(values: list[float]) -> tuple[list[float], list[tuple[float, str]]]:
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return [(value - low) / span for value in values], [(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")]
