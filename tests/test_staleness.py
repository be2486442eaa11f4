"""Which stages an edit makes stale: those that could write another byte, and none besides."""

import compileall
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from dvc.repo import Repo

from flows.settings import configure
from tasks.methods import STAGES
from tests.conftest import ROOT

pytestmark = pytest.mark.slow  # together
Apply = Callable[[], None]


class Edit(NamedTuple):
    """A change of the checkout and what follows from it.

    A stage is stale where `dvc status` calls a dependency, a parameter or the command of it changed. DVC asks stage by
    stage: what a stale stage hands on is stale only once its outputs are other bytes. So an edit says which outputs it
    changes, and they are changed along with it.
    """

    what: str
    apply: Apply
    stale: set[str]  # by both methods, or by that of `method`
    method: str | None = None
    changes: tuple[str, ...] = ()


def comment(path: str) -> Apply:
    """Add a line that means nothing to a file."""
    mark = "{# A comment. #}\n" if path.endswith(".j2") else "# A comment.\n"

    def apply() -> None:
        text = Path(path).read_text(encoding="utf-8")
        Path(path).write_text(text + mark, encoding="utf-8")

    return apply


def setting(assignment: str) -> Apply:
    """Change a setting as `trueline configure` does."""

    def apply() -> None:
        assert configure([assignment])

    return apply


def new_setting_of_ppo() -> None:
    """A type, a line in params.yaml, and the code that reads it."""
    for path, before, after in [
        (
            "tasks/settings/alignment.py",
            "    estimator: Estimator\n",
            "    estimator: Estimator\n    length_cost: float\n",
        ),
        ("params.yaml", "\nppo:\n", "\nppo:\n  # Taken off the score for each token.\n  length_cost: 0.0\n"),
        ("tasks/ppo.py", "    set_up(params)\n", "    set_up(params)\n    length_cost = params.ppo.length_cost\n"),
    ]:
        text = Path(path).read_text(encoding="utf-8")
        assert before in text
        Path(path).write_text(text.replace(before, after, 1), encoding="utf-8")


EDITS = [
    Edit("a comment in the settings' schema", comment("tasks/settings/alignment.py"), set()),
    Edit("a comment in the reader of params.yaml", comment("tasks/common/yaml_files.py"), set()),
    Edit("a comment in the progress display", comment("tasks/common/progress.py"), set()),
    Edit("a comment in the registry", comment("tasks/registry/promotion/versions.py"), set()),
    Edit("a comment in a flow", comment("flows/pipeline/flow.py"), set()),
    Edit("a gate threshold", setting("gate.max_kl=31.0"), {"gate"}),
    Edit("how the rewards are checked", setting("reward_check.prompts=64"), {"reward_check"}),
    Edit("the threshold that guards PPO, too", setting("gate.min_reward_accuracy=0.56"), {"reward_check", "gate"}),
    Edit("the report's template", comment("tasks/evaluation/gate/report.html.j2"), {"gate"}),
    Edit(
        "max_new_tokens of evaluate",
        setting("evaluate.max_new_tokens=32"),
        {"evaluate", "gate"},
        changes=("reports/evaluate", "metrics/evaluate.json"),
    ),
    Edit(
        "a reward that nothing learns from",
        comment("infra/example/rewards.py"),
        {"reward_functions", "evaluate", "gate"},
        changes=("data/reward_functions/ground_truth", "reports/evaluate", "metrics/evaluate.json"),
    ),
    Edit(
        "a reward that PPO learns from",
        comment("infra/example/rewards.py"),
        {"reward_functions", "reward_check", "align", "evaluate"},
        "ppo",
        changes=("data/reward_functions/training",),
    ),
    Edit(
        "the file that stands for no rows and for no data",
        comment("infra/none.jsonl"),
        {"prepare", "reward_functions"},
    ),
    Edit("how a judge is asked", comment("tasks/rewards/verifiers/judge.py"), {"reward_functions"}),
    Edit("a verifier that no reward uses", comment("tasks/rewards/verifiers/exact_match.py"), {"reward_functions"}),
    Edit(
        "a verifier that PPO learns from",
        comment("tasks/rewards/verifiers/exact_match.py"),
        {"reward_functions", "reward_check", "align", "evaluate"},
        "ppo",
        changes=("data/reward_functions/training",),
    ),
    Edit(
        "a comment in the shared training loop",
        comment("tasks/learning/training/loop.py"),
        {"sft", "reward", "held_out_reward", "align"},
    ),
    Edit(
        "a round's pairs",
        setting("prepare.ai_preferences.source=exclude.txt"),
        {"prepare", "validate", "align"},
        changes=("data/prepare", "metrics/prepare.json", "data/ai_preferences"),
    ),
    Edit("how often trainers save", setting("runtime.checkpoint_every=7"), set()),
    Edit("a new setting of PPO with its old behaviour", new_setting_of_ppo, {"align"}, "ppo"),
    Edit("a comment in PPO's stage", comment("tasks/ppo.py"), {"align"}, "ppo"),
    Edit("a comment in PPO's stage", comment("tasks/ppo.py"), set(), "dpo"),
    Edit("a comment in PPO's loss", comment("tasks/learning/ppo/policy_gradient.py"), {"align"}, "ppo"),
    Edit("a comment in PPO's loss", comment("tasks/learning/ppo/policy_gradient.py"), set(), "dpo"),
    Edit("a comment in DPO's loss", comment("tasks/learning/dpo/preference_losses.py"), {"align"}, "dpo"),
    Edit("a comment in DPO's loss", comment("tasks/learning/dpo/preference_losses.py"), set(), "ppo"),
    Edit("a setting of the method that does not run", setting("dpo.beta=0.4"), set(), "ppo"),
    Edit("a setting of the method that does not run", setting("ppo.clip=0.3"), set(), "dpo"),
]


@pytest.fixture(scope="module")
def checkouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By method, the project with a dvc.lock as if every stage had run: outputs of a line, and nothing trained."""
    listed = subprocess.run(("git", "ls-files", "-z"), cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found: dict[str, Path] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_NO_ANALYTICS", "1")
        for method in STAGES:
            folder = found[method] = tmp_path_factory.mktemp(method)
            for name in listed.rstrip("\0").split("\0"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
            patch.chdir(folder)
            subprocess.run(("git", "init", "-q"), check=True)
            configure([f"align.method={method}"])
            with Repo() as repo:
                for out in repo.index.outs:
                    write(Path(out.def_path), "as it was")
                repo.commit(force=True)
    return found


def write(out: Path, text: str) -> None:
    """Write an output: a file, or a folder that holds one."""
    path = out if out.suffix else out / "content"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def stale_stages() -> set[str]:
    with Repo() as repo:
        status = repo.status()
    return {stage for stage, changes in status.items() if any(map(goes_in, changes))}


def goes_in(change: str | dict[str, object]) -> bool:
    return change == "changed command" or "changed deps" in change


@pytest.mark.parametrize(
    ("method", "edit"),
    [
        pytest.param(method, edit, id=f"{method}: {edit.what}")
        for method in STAGES
        for edit in EDITS
        if edit.method in (None, method)
    ],
)
def test_what_an_edit_makes_stale(
    checkouts: dict[str, Path], method: str, edit: Edit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(checkouts[method], tmp_path / "checkout")
    monkeypatch.chdir(tmp_path / "checkout")
    edit.apply()
    for output in edit.changes:
        write(Path(output), "other bytes")
    assert stale_stages() == edit.stale


def test_nothing_is_stale_before_an_edit(checkouts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor after Python has left its caches in the rooms that stages depend on."""
    for folder in checkouts.values():
        monkeypatch.chdir(folder)
        compileall.compile_dir("tasks", quiet=1)
        assert stale_stages() == set()
