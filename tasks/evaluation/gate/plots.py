"""Plots for the report: readable without colour, the same bytes for the same figures, no text that a model wrote."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.evaluation.gate.checks import figure, lookup
from tasks.methods import METHODS, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CurveRows = Sequence[Mapping[str, float]]
# What is shown of each trainer's curve.
PANELS = {
    "sft": (Panel("loss", "SFT: loss"),),
    "reward": (Panel("loss", "reward model: loss"),),
    **{name: method.panels for name, method in METHODS.items()},
}
# Who judged, with a name, a line and the inside of its markers that tell them apart without colour.
JUDGES = {
    "reward": ("reward model", "o-", "#111111"),
    "held_out": ("held-out judge", "s--", "white"),
    "ground_truth": ("known rule", "^:", "#999999"),
}
FRONTIER_COLUMNS = ("step", "kl", *JUDGES)
WIDTH, HEIGHT = 3.2, 2.4  # inches of a panel
BLACK, GREY = "#111111", "#999999"
SMOOTHED_OVER = 0.05  # of the steps


class Plot(NamedTuple):
    """A picture as a data address, and what it shows in words."""

    address: str
    words: str


class Reliability(NamedTuple):
    """Of the pairs in a span of confidence, the share that the reward model orders right."""

    confidence: float  # middle of the span of sigmoid(abs(margin))
    accuracy: float
    pairs: float


def learning_curves(curves: Mapping[str, CurveRows]) -> Plot:
    """A panel for each figure that tells how a trainer did: every step in grey, a running mean in black."""
    panels = [(stage, *panel) for stage in curves for panel in PANELS[stage]]
    drawing, axes = _panels(len(panels))
    for axis, (stage, column, title) in zip(axes, panels, strict=True):
        steps, values = ([row[name] for row in curves[stage]] for name in ("step", column))
        axis.plot(steps, values, color=GREY, linewidth=0.6)
        axis.plot(steps, _running_mean(values), color=BLACK, linewidth=1.4)
        axis.set(title=title, xlabel="step")
    return Plot(_address(drawing), "Learning curves: " + ", ".join(title for _, _, title in panels))


def frontier(marks: Sequence[Mapping[str, Any]], best_of_sft: Sequence[Mapping[str, Any]]) -> Plot:
    """Win rate over SFT against KL, by each who judged: along the training and, on the same axes, of best of n.

    Args:
        marks: `frontier` of metrics/evaluate.json.
        best_of_sft: of the same.
    """
    trained = [(figure(mark, "kl", "mean"), figure(mark, "step"), mark) for mark in marks]
    chosen = [(figure(each, "kl"), figure(each, "n"), each) for each in best_of_sft]
    drawing, axes = _panels(2)
    axes[1].sharex(axes[0])
    axes[1].sharey(axes[0])
    for axis, points, title in zip(axes, (trained, chosen), ("training, by step", "best of n of SFT"), strict=True):
        axis.axhline(0.5, color=GREY, linewidth=0.8)
        for judge, (name, line, face) in JUDGES.items():
            rates = [(far, figure(point, "win_rate", judge, "value"), label) for far, label, point in points]
            known = [(far, rate, label) for far, rate, label in rates if far is not None and rate is not None]
            x, y = [far for far, _, _ in known], [rate for _, rate, _ in known]
            if known:
                axis.plot(x, y, line, label=name, color=BLACK, markerfacecolor=face, markersize=4, linewidth=0.9)
            for far, rate, label in known if judge == "reward" else ():
                axis.annotate(f"{label:g}", (far, rate), textcoords="offset points", xytext=(0, 4), fontsize=6)
        axis.set(title=title, xlabel="KL to SFT, nats an answer", ylabel="win rate over SFT")
    axes[1].legend(*axes[0].get_legend_handles_labels(), fontsize=7)
    return Plot(_address(drawing), "Win rate over SFT against KL, along the training and of best of n")


def reliability(reward: Mapping[str, Any]) -> Plot | None:
    """How often the reward model is right by how sure it is; on the dashed line it is as sure as it should be."""
    points = reliability_points(reward)
    if not points:
        return None
    drawing, [axis] = _panels(1)
    axis.plot([0.5, 1], [0.5, 1], color=GREY, linestyle="--")
    axis.plot([point.confidence for point in points], [point.accuracy for point in points], "o-", color=BLACK)
    for sure, right, pairs in points:
        axis.annotate(f"{pairs:.0f}", (sure, right), textcoords="offset points", xytext=(4, -10), fontsize=7)
    axis.set(title="reliability (count of pairs)", xlabel="sigmoid of the margin", ylabel="share ordered right")
    return Plot(_address(drawing), "Reliability curve of the reward model on held-out pairs")


def reliability_points(reward: Mapping[str, Any]) -> list[Reliability]:
    """How often the reward model is right, by how sure it is; spans without a pair are left out."""
    points = []
    for span in reward.get("accuracy_by_confidence") or {}:
        value, pairs = (figure(reward, "accuracy_by_confidence", span, key) for key in ("value", "pairs"))
        low, _, high = span.partition("-")
        if value is not None and pairs:
            points.append(Reliability((float(low) + float(high)) / 2, value, pairs))
    return points


def margins(reward: Mapping[str, Any]) -> Plot | None:
    """How many pairs the reward model tells apart by how much: white bars are pairs that it orders wrong."""
    largest, counts = figure(reward, "margin", "largest"), lookup(reward, "margin", "histogram")
    if not largest or not counts:
        return None
    drawing, [axis] = _panels(1)
    width = 2 * largest / len(counts)
    middles = [(place + 0.5) * width - largest for place in range(len(counts))]
    faces = ["white" if middle < 0 else GREY for middle in middles]
    axis.bar(middles, counts, width, color=faces, edgecolor=BLACK, linewidth=0.6)
    axis.axvline(0, color=BLACK, linestyle="--", linewidth=0.8)
    axis.set(title="margins (white: ordered wrong)", xlabel="score of chosen minus rejected", ylabel="pairs")
    return Plot(_address(drawing), "Histogram of the reward model's margins on held-out pairs")


def frontier_points(marks: Sequence[Mapping[str, Any]]) -> list[dict[str, float | None]]:
    """The KL of each mark's answers and their win rate over SFT by each who judged, under FRONTIER_COLUMNS."""
    return [
        {"step": figure(mark, "step"), "kl": figure(mark, "kl", "mean")}
        | {judge: figure(mark, "win_rate", judge, "value") for judge in JUDGES}
        for mark in marks
    ]


def length_scatter(responses: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Whether more reward is more length: both differences, candidate minus opponent, a point a prompt."""
    points = [
        tuple(ours - theirs if ours is not None and theirs is not None else math.nan for ours, theirs in pairs)
        for pairs in (
            [[figure(row, model, key) for model in ("candidate", "opponent")] for key in ("length", "reward")]
            for row in responses
        )
    ]
    known = [point for point in points if not any(math.isnan(value) for value in point)]
    if not known:
        return None
    drawing, [axis] = _panels(1)
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.scatter([length for length, _ in known], [reward for _, reward in known], s=6, color=BLACK, alpha=0.5)
    axis.set(title="reward and length, by prompt", xlabel="tokens more than the opponent", ylabel="reward more")
    return Plot(_address(drawing), "Difference of reward against difference of length, candidate minus opponent")


def _panels(count: int) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(WIDTH * count, HEIGHT), layout="constrained")
    axes = [drawing.add_subplot(1, count, place + 1) for place in range(count)]
    for axis in axes:
        axis.tick_params(labelsize=8)
        axis.title.set_fontsize(9)
        axis.xaxis.label.set_fontsize(8)
        axis.yaxis.label.set_fontsize(8)
        axis.spines[["top", "right"]].set_visible(False)
    return drawing, axes


def _address(drawing: "Figure") -> str:
    from matplotlib import rc_context

    content = io.BytesIO()
    # Without a salt ids are random; without metadata no time is written.
    with rc_context({"svg.hashsalt": "trueline", "svg.fonttype": "none", "font.family": "sans-serif"}):
        drawing.savefig(content, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode()


def _running_mean(values: Sequence[float]) -> list[float]:
    """Mean over a stretch that ends at each value."""
    stretch = max(1, round(SMOOTHED_OVER * len(values)))
    found = []
    for end in range(1, len(values) + 1):
        part = values[max(0, end - stretch) : end]
        found.append(sum(part) / len(part))
    return found
