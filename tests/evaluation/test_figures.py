"""The table of figures has a row for every figure that an evaluation holds, and for no other."""

from tasks.evaluation.figures import FIGURE, FIGURES, PAIRED, reward_title, reward_words
from tasks.evaluation.schema import Difference, ModelFigures


def test_every_figure_of_a_model_has_a_row():
    assert set(FIGURE) == ModelFigures.model_fields.keys() - {"reward"} | {"perplexity"}
    assert len(FIGURE) == len(FIGURES)


def test_the_paired_figures_are_those_with_differences():
    assert set(PAIRED) == Difference.model_fields.keys() - {"reward", "held_out", "ground_truth"}


def test_a_figure_is_written_with_its_digits():
    assert [FIGURE[name].written(12.3456) for name in ("length", "bleu", "eos_rate")] == ["12.3", "12.35", "12.346"]
    assert FIGURE["length"].written(None) == "—"
    assert FIGURE["rouge_1"].kind == "rouge"
    assert FIGURE["meteor"].kind == "meteor"


def test_rewards_are_named_by_what_they_are():
    assert [reward_words(name) for name in ("reward", "held_out", "brevity")] == [
        "the training reward",
        "the held-out reward model",
        "the ground-truth reward brevity",
    ]
    assert reward_title("brevity", trained_on=["brevity"]) == "Training reward brevity"
