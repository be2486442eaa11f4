"""The ground-truth reward of the example, until evaluation takes it from params.yaml."""

from pathlib import Path

from tasks.common.python_files import load_function

gold_score = load_function(Path(__file__).parents[2] / "infra/example/rewards.py", "score_answer")
