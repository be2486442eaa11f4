"""Reads validated data, reward functions, models, answers along training and opponent.json, writes figures and answers.

Candidate, SFT and opponent answer the same prompts with the same seeds and decoding, and every reward scores every
answer. Models compute in runtime.precision, as in training.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase as Tokenizer

from tasks.common.errors import InputError
from tasks.common.files import MODELS, REPORTS, STATE, VALIDATED, temporary_folder, write_jsonl
from tasks.common.record import write_record
from tasks.data.encoding.tokens import load_tokenizer
from tasks.data.records import Prompt
from tasks.evaluation.best_of import best_of
from tasks.evaluation.compare import Resampling
from tasks.evaluation.llm_judge import comparisons
from tasks.evaluation.measured import Measured, measure
from tasks.evaluation.metrics import Answers
from tasks.evaluation.opponent import Opponent, read_opponent
from tasks.evaluation.over_optimisation import EvaluationPoint, point_rows
from tasks.evaluation.prompts import choose_prompts, conversations_of
from tasks.evaluation.schema import EVALUATION, RESPONSES
from tasks.evaluation.scorer import Scorer
from tasks.evaluation.scores import HELD_OUT, Scores, in_groups
from tasks.evaluation.summary import readable, response_rows, rounded, summarise
from tasks.learning import processes
from tasks.learning.answering.compared import ComparedAnswers, compare_answers
from tasks.learning.answering.reward_model import ModelReward
from tasks.learning.answering.sampled import Sampled
from tasks.learning.answering.shared_reward import SharedReward
from tasks.learning.answering.snapshots import Snapshot
from tasks.learning.models.loading import load_scorer, set_up
from tasks.registry.dvc_outputs.cache import materialise
from tasks.registry.mlflow_runs import tracking
from tasks.rewards.answered import Answered, Reward, answered
from tasks.rewards.copies import GROUND_TRUTH, TRAINING, read_copies
from tasks.settings.params import LlmJudge, Params
from tasks.stage import main

POINTS = REPORTS / "evaluate" / "evaluation_points.jsonl"
SAMPLES_TRACKED = 100


def evaluate(params: Params) -> None:
    """Compare the aligned policy with SFT and with the opponent.

    Raises:
        InputError: there is no prompt to answer, a model, a data file or opponent.json is missing or damaged, a reward
            function fails, or the LLM judge's server refuses.
        ConnectionError: the LLM judge's server cannot be reached; TimeoutError: it does not answer.
    """
    prompts, opponent, settings = choose_prompts(params), read_opponent(), params.evaluate
    _check_models(params)
    functions = read_copies(TRAINING), read_copies(GROUND_TRUTH)  # before hours of work
    if settings.llm_judge and processes.is_main():
        comparisons.check(settings.llm_judge)
    set_up(params)
    with tracking.run("evaluate", params, inputs=[VALIDATED / "prompts.jsonl"]) as run:
        tokenizer = load_tokenizer(MODELS / "sft")
        found, scorer = _answers(prompts, tokenizer, opponent, params), _scorer(*functions, tokenizer, params)
        scores = {name: scorer(_answered(prompts, sampled)) for name, sampled in found.by_model.items()}
        points = [_point(snapshot, scorer) for snapshot in found.snapshots]
        of_best = _best_of_scores(prompts, found.best_of, scorer, settings.best_of)
        if not processes.is_main():
            return
        models = {name: _measured(prompts, sampled, scores[name]) for name, sampled in found.by_model.items()}
        models.setdefault("opponent", models["sft"])
        resampling = Resampling(settings.bootstrap, settings.confidence, params.seed, conversations_of(prompts))
        evaluation = summarise(
            prompts,
            models,
            found.kl,
            opponent=opponent,
            perplexity=found.perplexity,
            best_of_sft=best_of(of_best, models["sft"].scores.by_name) if of_best else [],
            points=points,
            resampling=resampling,
            llm_judge=_ask_llm_judge(settings.llm_judge, prompts, models, resampling),
        )
        rows = list(response_rows(prompts, models, found.kl if settings.temperature else None))
        write_jsonl(RESPONSES, rows)
        write_jsonl(POINTS, map(rounded, point_rows(points)))
        write_record(EVALUATION, evaluation)
        run.summary(evaluation.as_json())
        run.table("samples", [readable(row) for row in rows[:SAMPLES_TRACKED]])


def _check_models(params: Params) -> None:
    """Name what is missing at once, not when all prompts have been answered."""
    rewards = ("reward", "held_out_reward") if params.rewards.use_model else ()
    for name in (params.align.stage, "sft", *rewards):
        if not (MODELS / name).is_dir():
            raise InputError(f"{MODELS / name} does not exist: run the stage that writes it (dvc repro)")


def _answers(prompts: Sequence[Prompt], tokenizer: Tokenizer, opponent: Opponent, params: Params) -> ComparedAnswers:
    """Have all models answer; the champion's folder is fetched from DVC's cache, by one process for all."""
    with temporary_folder(STATE / "opponent") if processes.is_main() else nullcontext(STATE) as found:
        champion = found / "opponent"
        if opponent.policy and processes.is_main():
            materialise(opponent.policy, champion, what="the champion")
        champion = processes.from_main(champion)
        return compare_answers(prompts, tokenizer, champion if opponent.policy else None, params)


def _scorer(
    trained_on: Sequence[Reward], ground_truth: Sequence[Reward], tokenizer: Tokenizer, params: Params
) -> Scorer:
    """Load the reward models; a held-out one is there only where a reward model is trained on."""

    def model(folder: str, name: str) -> ModelReward:
        return ModelReward(name, load_scorer(MODELS / folder, params), tokenizer, params)

    functions = {function.name: SharedReward(function) for function in trained_on}
    training = [
        (each.weight, model("reward", each.name) if each.is_model else functions[each.name])
        for each in params.rewards.training
    ]
    held_out = model("held_out_reward", HELD_OUT) if params.rewards.use_model else None
    return Scorer(training, held_out, [SharedReward(function) for function in ground_truth])


def _ask_llm_judge(
    judge: LlmJudge | None, prompts: Sequence[Prompt], models: Mapping[str, Measured], resampling: Resampling
) -> dict[str, Any] | None:
    if judge is None:
        return None
    ours, theirs = (models[name].answers.texts for name in ("candidate", "opponent"))
    return comparisons.compare(judge, prompts, ours, theirs, resampling)


def _answered(prompts: Sequence[Prompt], sampled: Sampled) -> Answered:
    return answered(prompts, sampled.texts, [row.completion for row in sampled.encoded])


def _measured(prompts: Sequence[Prompt], sampled: Sampled, scores: Scores) -> Measured:
    return measure(prompts, Answers(sampled.texts, sampled.lengths, sampled.ended), scores)


def _best_of_scores(
    prompts: Sequence[Prompt], sampled: Sampled | None, scorer: Scorer, each: int
) -> dict[str, list[Sequence[float]]] | None:
    if sampled is None:
        return None
    repeated = [prompt for prompt in prompts for _ in range(each)]
    return in_groups(scorer(_answered(repeated, sampled)).by_name, each)


def _point(snapshot: Snapshot, scorer: Scorer) -> EvaluationPoint:
    prompts, sampled = snapshot.prompts, snapshot.sampled
    ids, scores = [prompt.id for prompt in prompts], scorer(_answered(prompts, sampled)).by_name
    return EvaluationPoint(snapshot.step, ids, sampled.texts, snapshot.kl, scores, conversations_of(prompts))


if __name__ == "__main__":
    main(evaluate)
