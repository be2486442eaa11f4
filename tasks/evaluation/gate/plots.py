"""Plots for the report: readable without colour, the same bytes for the same figures, no text from a model."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, NamedTuple

from tasks.evaluation.figures import reward_title
from tasks.evaluation.reward_figures import RewardModelFigures
from tasks.evaluation.schema import BestOfFigures, CurveFigures, PointFigures, Response
from tasks.evaluation.scores import HELD_OUT, TRAINING
from tasks.methods import METHODS, STAGES, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CurveRows = Sequence[Mapping[str, float]]
PointOfCurve = tuple[float | None, int, CurveFigures]  # KL, label, figures
# What is shown of each trainer's curve.
PANELS: Mapping[str, Sequence[Panel]] = {
    "sft": (Panel("loss", "SFT: loss"),),
    "reward": (Panel("loss", "reward model: loss"),),
    **{name: METHODS[name].panels for name in STAGES},
}
# Line and inside of the markers of each reward, which tell them apart without colour; ground-truth rewards take turns.
STYLES = {TRAINING: ("o-", "#111111"), HELD_OUT: ("s--", "white")}
GROUND_TRUTH_STYLES = (("^:", "#999999"), ("v:", "white"), ("D:", "#111111"))
CURVE_COLUMNS = ("step", "kl", TRAINING, HELD_OUT)  # and one for each ground-truth reward
WIDTH, HEIGHT = 3.2, 2.4  # inches of a panel
BLACK, GREY = "#111111", "#999999"
SMOOTHED_OVER = 0.05  # of the steps


class Plot(NamedTuple):
    """A picture as a data address, and what it shows in words."""

    address: str
    words: str


class Reliability(NamedTuple):
    """The share of the pairs in a span of confidence that the reward model orders right."""

    confidence: float  # middle of the span of sigmoid(abs(margin))
    accuracy: float
    pairs: float


def learning_curves(curves: Mapping[str, CurveRows]) -> Plot:
    """Draw a panel for each curve of a trainer: every step in grey, a running mean in black."""
    panels = [(stage, *panel) for stage in curves for panel in PANELS[stage]]
    drawing, axes = _panels(len(panels))
    for axis, (stage, column, title) in zip(axes, panels, strict=True):
        steps, values = ([row[name] for row in curves[stage]] for name in ("step", column))
        axis.plot(steps, values, color=GREY, linewidth=0.6)
        axis.plot(steps, _running_mean(values), color=BLACK, linewidth=1.4)
        axis.set(title=title, xlabel="step")
    return Plot(_address(drawing), "Learning curves: " + ", ".join(title for _, _, title in panels))


def over_optimisation(points: Sequence[PointFigures], best_of_sft: Sequence[BestOfFigures]) -> Plot:
    """Win rate over SFT against KL, by each reward: along training and, on the same axes, of best of n.

    Args:
        points: the evaluation points, at least one.
        best_of_sft: the best of n answers of SFT.
    """
    trained: list[PointOfCurve] = [(point.kl.mean, point.step, point) for point in points]
    chosen: list[PointOfCurve] = [(each.kl, each.n, each) for each in best_of_sft]
    drawing, axes = _panels(2)
    axes[1].sharex(axes[0])
    axes[1].sharey(axes[0])
    for axis, curve, title in zip(axes, (trained, chosen), ("training, by step", "best of n of SFT"), strict=True):
        axis.axhline(0.5, color=GREY, linewidth=0.8)
        for name, (line, face) in _styles(points[0].win_rate).items():
            rates = [(kl, each.win_rate[name].value, label) for kl, label, each in curve]
            known = [(kl, rate, label) for kl, rate, label in rates if kl is not None and rate is not None]
            x, y = [kl for kl, _, _ in known], [rate for _, rate, _ in known]
            title_of = reward_title(name)
            if known:
                axis.plot(x, y, line, label=title_of, color=BLACK, markerfacecolor=face, markersize=4, linewidth=0.9)
            for kl, rate, label in known if name == TRAINING else ():
                axis.annotate(f"{label:g}", (kl, rate), textcoords="offset points", xytext=(0, 4), fontsize=6)
        axis.set(title=title, xlabel="KL to SFT, nats per answer", ylabel="win rate over SFT")
    axes[1].legend(*axes[0].get_legend_handles_labels(), fontsize=7)
    return Plot(_address(drawing), "Win rate over SFT against KL, along training and of best of n")


def _styles(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    ground_truth = [name for name in names if name not in STYLES]
    return {name: style for name, style in STYLES.items() if name in names} | dict(
        zip(ground_truth, cycle(GROUND_TRUTH_STYLES), strict=False)
    )


def curve_points(points: Sequence[PointFigures]) -> list[dict[str, float | None]]:
    """The KL of each evaluation point and its win rate over SFT by each reward, under `CURVE_COLUMNS` and their names.

    Without a held-out reward model its column is empty.
    """
    return [
        {"step": point.step, "kl": point.kl.mean, HELD_OUT: None}
        | {name: rate.value for name, rate in point.win_rate.items()}
        for point in points
    ]


def reliability(reward: RewardModelFigures) -> Plot | None:
    """How often the reward model is right by its confidence; the dashed line is perfect calibration."""
    points = reliability_points(reward)
    if not points:
        return None
    drawing, [axis] = _panels(1)
    axis.plot([0.5, 1], [0.5, 1], color=GREY, linestyle="--")
    axis.plot([point.confidence for point in points], [point.accuracy for point in points], "o-", color=BLACK)
    for confidence, accuracy, pairs in points:
        axis.annotate(f"{pairs:.0f}", (confidence, accuracy), textcoords="offset points", xytext=(4, -10), fontsize=7)
    axis.set(title="reliability (count of pairs)", xlabel="sigmoid of the margin", ylabel="share ordered right")
    return Plot(_address(drawing), "Reliability curve of the reward model on held-out pairs")


def reliability_points(reward: RewardModelFigures) -> list[Reliability]:
    """How often the reward model is right, by its confidence; spans without a pair are left out."""
    points = []
    for span, accuracy in reward.accuracy_by_confidence.items():
        low, _, high = span.partition("-")
        if accuracy.value is not None and accuracy.pairs:
            points.append(Reliability((float(low) + float(high)) / 2, accuracy.value, float(accuracy.pairs)))
    return points


def margins(reward: RewardModelFigures) -> Plot | None:
    """How many pairs the reward model tells apart by how much: white bars are pairs that it orders wrong."""
    largest, counts = reward.margin.largest, reward.margin.histogram
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


def length_scatter(responses: Sequence[Response]) -> Plot | None:
    """Whether more reward is more length: both differences, candidate minus opponent, a point a prompt."""
    points = [
        (row.candidate.length - row.opponent.length, row.candidate.reward - row.opponent.reward)
        for row in responses
        if row.candidate.reward is not None and row.opponent.reward is not None
    ]
    if not points:
        return None
    drawing, [axis] = _panels(1)
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.scatter([length for length, _ in points], [reward for _, reward in points], s=6, color=BLACK, alpha=0.5)
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
