"""Model records of earlier releases, read with today's names.

A record is never rewritten where it is stored. It gets today's names when it is read: the rest of the code knows no
others.
"""

from collections.abc import Mapping
from typing import Any

from tasks.evaluation.earlier_layouts import in_todays_layout
from tasks.settings.params import RENAMED

EARLIER_RECORD = "account"  # the model record's name in decisions.jsonl and in the tags of a version
STAGES = {"judge": "held_out_reward", "trial": "reward_check"}
# Keys anywhere in metrics/evaluate.json, and in the figures of people's votes.
FIGURES = {
    "judge": "held_out",
    "gold": "ground_truth",
    "verdict": "conclusion",
    "prompts_to_settle": "prompts_needed",
}
# Keys anywhere in metrics/validate.json.
VALIDATION = {"kept": "valid"}


def with_todays_names(record: Mapping[str, Any]) -> dict[str, Any]:
    """Rename stages, settings and figures of an earlier release; a record of today stays as it is."""
    updated = dict(record)
    keys, params, data, figures = (record.get(part) for part in ("keys", "params", "data", "figures"))
    if isinstance(keys, Mapping):
        updated["keys"] = {STAGES.get(stage, stage): key for stage, key in keys.items()}
    if isinstance(params, Mapping):
        updated["params"] = _rename_settings(params)
    if isinstance(data, Mapping) and "validate" in data:
        updated["data"] = {**data, "validate": _rename_keys(data["validate"], VALIDATION)}
    if isinstance(figures, Mapping) and "evaluate" in figures:
        updated["figures"] = {**figures, "evaluate": in_todays_layout(figures_with_todays_names(figures["evaluate"]))}
    return updated


def figures_with_todays_names(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Rename figures of an evaluation, or of people's votes on it, of an earlier release; those of today stay."""
    renamed: dict[str, Any] = _rename_keys(figures, FIGURES)
    return renamed


def _rename_settings(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Rename keys as params.RENAMED says; a section may be named whole (`sft`) or by key (`runtime.device`)."""
    updated = {}
    for name, value in settings.items():
        new = RENAMED.get(f"{path}{name}", f"{path}{name}").removeprefix(path)
        updated[new] = _rename_settings(value, f"{path}{name}.") if isinstance(value, Mapping) else value
    return updated


def _rename_keys(figures: Any, renamed: Mapping[str, str]) -> Any:  # noqa: ANN401 (nested JSON)
    if isinstance(figures, Mapping):
        return {renamed.get(name, name): _rename_keys(value, renamed) for name, value in figures.items()}
    return [_rename_keys(each, renamed) for each in figures] if isinstance(figures, list) else figures
