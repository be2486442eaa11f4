"""The results of runs, gate and registry, as commands show them.

Names, reasons and answers come from data: all that is printed goes through `flows.display.tables.shown`.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.text import Text
from rich.tree import Tree

from flows.display.memory import show_memory
from flows.display.tables import Cell, make_console, print_sentence, shown, table
from flows.events.freshness import lines
from tasks.common.rounding import chance, number
from tasks.common.safe_text import without_secrets
from tasks.registry.mlflow_runs.store import tracking_uri

STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}
_console = make_console()


def show_result(result: Mapping[str, Any]) -> None:
    """A row a stage, the promotion, and where to look next."""
    rows = [(row["stage"], row["outcome"], f"{row['seconds']:.1f}", row["figure"]) for row in result["stages"]]
    _table(("stage", "", "seconds", "figure"), rows, right=(2,))
    show_promotion(result["promotion"])
    for alarm in result["alarms"]:
        _sentence(f"Alarm: {alarm}")
    _console.print()
    for name, path in result["places"].items():
        _line(f"{name:<10} {path}")
    _line(f"{'MLflow':<10} {_ui_command()}")
    _line(f"{'next':<10} {' · '.join(next_commands(result['promotion']))}")


def show_promotion(promotion: Mapping[str, Any]) -> None:
    """Who is champion now, and why."""
    if promotion["promoted"]:
        _line(f"Version {promotion['version']} is champion now.")
    else:
        state = "awaits approval" if promotion["held"] else "was not promoted"
        _line(f"Version {promotion['version']} {state}; champion: {promotion['champion'] or 'none'}.")
    for reason in promotion["reasons"]:
        _sentence(reason, indent=2)
    if promotion["held"]:
        which = f"{promotion['version']} --by NAME --reason WHY"
        _line(f"To decide: trueline approve {which}, or trueline reject {which}")


def show_plan(plan: Mapping[str, Any]) -> None:
    """Rows, the work of the stages, and what the gate can tell."""
    shares = next(iter(plan["rows"].values()))["limit_that_keeps"]
    kinds = [
        (kind, split, str(counts["rows"]), str(counts["kept"]), str(found["limit"]))
        for kind, found in plan["rows"].items()
        for split, counts in found["splits"].items()
    ]
    _table(("rows", "split", "all", "kept", "limit"), kinds, right=(2, 3, 4))
    for kind, found in plan["rows"].items():
        if found["truncated"]:
            _sentence(f"Of {kind}, {found['truncated']} rows are truncated to the limit (validate.truncate).")
    keeping = [
        (kind, *("none" if limit is None else str(limit) for limit in found["limit_that_keeps"].values()))
        for kind, found in plan["rows"].items()
    ]
    _table(("tokens that keep", *(f"{float(share):.0%}" for share in shares)), keeping, right=(1, 2, 3))
    stages = [
        (each["stage"], *(str(each[name]) for name in ("rows", "steps", "tokens", "sampled")), _rough(each["seconds"]))
        for each in plan["stages"]
    ]
    _table(("stage", "rows", "steps", "tokens", "sampled", "about"), stages, right=(1, 2, 3, 4, 5))
    _sentence(
        f"Times are rough, from {plan['measured']['how']}. Starting, loading, optimiser "
        "steps and evaluation points come on top; other checks of validate may take more rows out."
    )
    show_memory(plan["memory"])
    gate = plan["gate"]
    _sentence(
        f"With {gate['prompts']} test prompts the gate can call a win rate from {_share(gate['win_rate'])} better than "
        f"0.5 (confidence {gate['confidence']:g}); a true one of {_share(gate['found'])} is found 4 times out of 5."
    )
    if gate["pairs"] is not None:
        _sentence(
            f"With {gate['pairs']} held-out pairs a reward model passes gate.min_reward_accuracy "
            f"{gate['min_reward_accuracy']:g} from an accuracy of {_share(gate['accuracy'])}."
        )
    for warning in plan["warnings"]:
        _sentence(f"Warning: {warning}.")


def _rough(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def show_status(status: Mapping[str, Any]) -> None:
    """A row a stage, then what runs, the registry, the flow and the last failure."""
    untrained = dict.fromkeys(status["untrained"], "; trains nothing: PPO learns from functions only")
    if status["flow"] or status["running"]:  # they are all busy
        _line("stages      busy until the run ends")
    else:
        rows = [(name, state + untrained.get(name, "")) for name, state in status["stages"].items()]
        _table(("stage", "state"), rows)
    for stage in status["running"]:
        _line(f"running     {_progress(stage)}")
    registry = status["registry"]
    if registry["error"]:
        _line(f"registry    {registry['error']}")
    else:
        _line(f"champion    {registry['champion'] or 'none'}")
        _line(f"challenger  {registry['challenger'] or 'none'}")
        if registry["awaiting"]:
            _line(f"to approve  {', '.join(map(str, registry['awaiting']))}")
    if freshness := status["freshness"]:
        _line(f"freshness   {', '.join(lines(freshness))}{'; stale' if freshness['reasons'] else ''}")
    flow, failure = status["flow"], status["failure"]
    _line(f"flow        {_flow_process(flow) if flow else 'none runs'}")
    if failure:
        _line(f"failed      {failure['stage']}: {failure['message']}")


def _progress(stage: Mapping[str, Any]) -> str:
    """Such as: sft: 120 of 480 steps, about 0:00:47 left."""
    if stage["total"] is None:
        return str(stage["stage"])
    left = stage["seconds_left"]
    time_left = f", about {timedelta(seconds=round(left))} left" if left is not None else ""
    return f"{stage['doing']}: {stage['done']:,} of {stage['total']:,} {stage['unit']}s{time_left}"


def show_trace(traced: Mapping[str, Any]) -> None:
    """A row a version, and what follows from an exclusion."""
    rows = [
        (
            f"{each['version']}{' (was champion)' if each['promoted'] else ''}",
            _trained(each["policy"]),
            f"{each['reward_version']}: {_trained(each['reward'])}",
            ", ".join(each["stages"]),
            _rows_found(each),
        )
        for each in traced["versions"]
    ]
    _table(("policy", "learned it", "reward model", "by", "rows in its data"), rows)
    if any(each["rows"] is None for each in traced["versions"]):
        _sentence(
            "unknown: DVC's cache lacks the data of that version: run dvc fetch --all-commits (if DVC has a remote), "
            "then again"
        )
    if any(each["unattributed"] for each in traced["versions"]):
        _sentence(
            "no annotator: rows that were learned from but name nobody; what comes from them is unknown rather than no"
        )
    if not traced["in_any"]:
        _sentence(
            f"No data that could be read hold the {traced['what']} {traced['name']}: is it spelt as in data/prepare?"
        )
    excluded = traced["excluded"]
    if excluded:
        _line(f"{excluded['file']} {'names it now' if excluded['added'] else 'named it already'}. Nothing has run yet:")
        _line(f"trueline run goes through {', '.join(excluded['stages'])}")


def _trained(answer: bool | None) -> str:
    return {True: "yes", False: "no", None: "unknown"}[answer]


def _rows_found(version: Mapping[str, Any]) -> str:
    if version["rows"] is None:
        return "unknown"
    rows = [f"{kind} {split} {n}" for kind, splits in version["rows"].items() for split, n in splits.items()]
    quarantined = [f"quarantine {version['quarantined']}"] if version["quarantined"] else []
    unattributed = [f"no annotator {version['unattributed']}"] if version["unattributed"] else []
    return ", ".join([*rows, *quarantined, *unattributed]) or "none"


def show_exported(exported: Mapping[str, Any]) -> None:
    """What was written where."""
    _line(f"{exported['model']} version {exported['version']} in {exported['folder']}:")
    _line(f"  {', '.join(exported['files'])}")


def show_history(decisions: Sequence[Mapping[str, Any]]) -> None:
    """A row a decision."""
    if not decisions:
        _line("Nothing has been decided yet: trueline run")
        return
    rows = [
        (_minute(row["time"]), _decider(row), row["action"], str(row["policy"]["version"]), _lines(row["reasons"]))
        for row in decisions
    ]
    _table(("time (UTC)", "who", "action", "version", "reasons"), rows)


def _minute(time: str) -> str:
    """Such as 2026-11-22 03:00, of 2026-11-22T03:00:00+00:00."""
    return time[:16].replace("T", " ")


def _lines(texts: Sequence[str]) -> Text:
    return Text("\n").join(map(shown, texts))


def show_synced(synced: Mapping[str, Any]) -> None:
    """A row a tracked stage."""
    _table(("stage", "lineage", "run"), [(row["stage"], row["status"], row["run_id"]) for row in synced["stages"]])
    for alarm in synced["alarms"]:
        _sentence(f"Alarm: {alarm}")


def show_report(written: Mapping[str, Any]) -> None:
    """Where the report lies, and who keeps a copy."""
    _line(written["path"])
    _line(f"In MLflow with run {written['run_id']}: {written['address']}")


def show_annotation_sheet(written: Mapping[str, Any]) -> None:
    """What it holds, and what to do with it."""
    _sentence(
        f"{written['file']}: {written['prompts']:,} of the {written['different_answers']:,} prompts with two different "
        f"answers; {written['same_answers']:,} more have the same answer twice."
    )
    _sentence(
        "Give each person a copy. In the column choice they write left, right or same, or nothing to skip the row; in "
        "the column annotator, their name (without one, the name of the file counts)."
    )
    _line("Then: trueline label import FILE...")


def show_collected(collected: Mapping[str, Any]) -> None:
    """Whose answers there are, and what to do with them."""
    policy, sampling = collected["policy"], collected["sampling"]
    version = f" (version {policy['version']})" if policy["version"] else ""
    _sentence(
        f"{collected['folder']}: {sampling['answers']} answers of {policy['name']}{version} to each of "
        f"{collected['prompts']['count']:,} prompts."
    )
    _line(f"Then: trueline label answers {collected['folder']}")


def show_labels(labels: Mapping[str, Any]) -> None:
    """How many pairs there are, what was dropped, and how far people agree."""
    counts, agreement = labels["counts"], labels["agreement"]
    _sentence(
        f"{labels['folder']}/pairs.jsonl: {counts['pairs']:,} pairs by {labels['annotator']}, of {counts['prompts']:,} "
        f"prompts; {counts['ties']:,} ties, {counts['small_gaps']:,} small gaps, {counts['single']:,} with fewer than "
        f"two different answers; {counts['unusable']:,} answers without an end, empty or too long."
    )
    _line(f"agreement with people   {number(agreement['share'])} of {agreement['pairs']:,} validation pairs")
    _line(f"Then: trueline configure prepare.ai_preferences.source={labels['folder']} align.method=dpo")


def show_votes(votes: Mapping[str, Any]) -> None:
    """Who wins, and how far the annotators agree."""
    won, needed = votes["vs_opponent"], votes["vs_opponent"]["prompts_needed"]
    by_name = ", ".join(f"{name} {count:,}" for name, count in votes["annotators"].items())
    _line(
        f"win rate    {number(won['value'])} [{number(won['low'])}, {number(won['high'])}] over the opponent: "
        f"{won['conclusion']}"
        f"{f'; {needed:,} prompts would decide it' if needed else ''}"
    )
    prompts = f"{votes['prompts']:,}: {won['wins']:,} won, {won['losses']:,} lost"
    _line(f"prompts     {prompts}; sign test p {chance(won['sign_test'])}")
    _line(f"not asked   {votes['same_answers']:,} prompts with the same answer twice")
    _line(f"votes       {votes['votes']:,}: {by_name}")
    _line(f"agreement   Krippendorff's alpha {number(votes['alpha'], 2)}, Cohen's kappa {number(votes['kappa'], 2)}")
    _line(f"left        preferred in {number(votes['left_preferred'], 2)} of the choices; 0.5 without a bias")
    if votes["run_id"]:
        _line(f"MLflow      run {votes['run_id']}; trueline report shows it on the page")


def show_findings(findings: Sequence[Mapping[str, Any]]) -> None:
    """A row a check."""
    rows = [(row["check"], Text(row["level"], STYLES[row["level"]]), row["found"], row["cure"]) for row in findings]
    _table(("check", "", "found", "cure"), rows)


def show_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """A row's place, its text, and a line a token."""
    for row in rows:
        _line(f"{row['kind']}, {row['split']}: {row['source']} row {row['row']}")
        for reason in row["quarantined"]:
            _line(f"In quarantine: {reason} ({row['found'].get(reason, 'see docs/validation.md')})")
        for field, tokens in row["truncated"].items():
            _line(f"Truncated: {field} lost {tokens} tokens")
        for part in row["parts"]:
            if "refused" in part:
                _line(f"Refused: {part['refused']}")
                continue
            _line(f"{part['part']}, in the chat template:")
            for line in part["text"].split("\n"):
                _line(line)
            columns = ("token", "id", "text", "loss")
            tokens = enumerate(part["tokens"], start=1)
            _table(
                columns,
                [
                    (str(n), str(each["id"]), json.dumps(each["text"]), "yes" if each["learned"] else "")
                    for n, each in tokens
                ],
            )


def show_changes(changes: Sequence[Mapping[str, Any]]) -> None:
    """A line a setting."""
    for change in changes:
        _line(f"{change['key']}: {_as_yaml(change['before'])} → {_as_yaml(change['after'])}")
    if not changes:
        _line("params.yaml has these settings already.")


def _as_yaml(value: object) -> str:
    """A setting as it stands in params.yaml, in one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def show_tree(content: Mapping[str, Any]) -> None:
    """Nested data as a tree."""
    tree = Tree("policy")
    _grow(tree, content)
    _console.print(tree)


def _grow(tree: Tree, content: Mapping[str, Any]) -> None:
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            _grow(tree.add(shown(name)), value)
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            _grow(tree.add(shown(name)), {str(place): item for place, item in enumerate(value, start=1)})
        elif isinstance(value, list) and any(" " in str(item) for item in value):  # sentences: a line each
            branch = tree.add(shown(name))
            for item in value:
                branch.add(shown(str(item)))
        else:
            tree.add(shown(f"{name}: {_short(value)}"))


def _short(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[Cell]], *, right: Sequence[int] = ()) -> None:
    _console.print(table(header, rows, _console.width, right=right))


def _line(text: str) -> None:
    """Print a line that may be copied, such as a command or a path: it is never broken."""
    _console.print(shown(text), soft_wrap=True)


def _sentence(text: str, indent: int = 0) -> None:
    print_sentence(_console, text, indent)


def _decider(decision: Mapping[str, Any]) -> str:
    """The person who approved or rejected, else the system user who ran the command."""
    review = decision["review"]
    return str(review["by"] if review else decision["who"])


def _flow_process(flow: Mapping[str, Any]) -> str:
    from flows.processes.locks import FlowProcess

    return str(FlowProcess(**flow))


def next_commands(promotion: Mapping[str, Any]) -> list[str]:
    """Give commands that work after this promotion or refusal: without a champion there is none to talk to."""
    is_champion = promotion["champion"] == promotion["version"]
    wants_a_word = promotion["held"] or promotion["champion"] is None
    return [
        f"trueline why {'champion' if is_champion else promotion['version']}",
        f"trueline chat --version {promotion['version']}" if wants_a_word and not is_champion else "trueline chat",
        "trueline history",
    ]


def _ui_command() -> str:
    uri = without_secrets(tracking_uri())
    if uri == f"sqlite:///{Path.cwd() / 'mlflow.db'}":  # the command is for this folder anyway
        uri = "sqlite:///mlflow.db"
    return f".venv/bin/mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite:") else uri
