"""The Great Expectations suites: what is expected of every row, and of the valid rows.

A suite's expectations carry the name of their check in `meta`; the data docs (pages.py) print their descriptions.
"""

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.data.records import ANSWERS, PAIRS, Kind

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.core.expectation_validation_result import ExpectationValidationResult
    from great_expectations.data_context import EphemeralDataContext
    from great_expectations.expectations.expectation import Expectation

# Checks of single rows; each is an error unless params.yaml lets it only warn.
ROW_CHECKS = (
    "schema",
    "empty",
    "equal",
    "duplicate",
    "contradiction",
    "shared_prompt",
    "contamination",
    "length",
    "truncation",
    "encoding",
    "control_tokens",
    "template",
    "lost_system",
    "lost_turns",
    "lost_thinking",
    "lost_tools",
    "personal_data",
)
# Those of them that say in words what they found, and the columns where.
FOUND_IN = {
    "schema": "schema",
    "duplicate": "copy_of",
    "contradiction": "contradicts",
    "shared_prompt": "held_out_at",
    "contamination": "gives_away",
    "encoding": "encoding",
    "control_tokens": "control_tokens",
    "template": "template",
    "lost_system": "lost_system",
    "lost_turns": "lost_turns",
    "lost_thinking": "lost_thinking",
    "lost_tools": "lost_tools",
    "personal_data": "personal_data",
}
# Checks of a file as a whole: not in `warn`, they stop the pipeline.
FILE_CHECKS = ("length_bias",)
# Checks with a largest share of rows, and the columns that hold 1 for a row that counts and 0 for one that does not.
SHARES = {"length_bias": "longer_chosen", "personal_data": "holds_personal_data"}
# A later stage could not even read these rows, or would learn to answer nothing where there is a call.
NEVER_ONLY_WARN = ("schema", "template", "lost_tools")
MAY_BE_EMPTY: tuple[Kind, ...] = ("preferences", "ratings", "ai_preferences")  # where nothing learns from them
NEEDED_SPLITS: dict[Kind, tuple[str, ...]] = {
    "demonstrations": ("train", "validation"),
    "preferences": ("train", "validation", "test"),
    "ratings": ("train", "validation"),
    "prompts": ("train", "validation", "test"),
    "ai_preferences": ("train",),
}


class CheckResult(NamedTuple):
    """What came of one expectation."""

    check: str
    success: bool
    rows: list[int]  # indexes of the rows that fail it, from 0; empty for an expectation of the whole table
    observed: Any  # the figure it tested, for an expectation of the whole table
    description: str  # what is expected, in words
    column: str | None  # where the finding stands, for an expectation of single rows


def row_suite(kind: Kind, max_tokens: int) -> list["Expectation"]:
    """What is expected of every row of a file; `max_tokens` bounds what the row holds, for prompts the prompt alone."""
    return [*_sound_texts(kind), *_fresh_rows(kind), *_within_length(kind, max_tokens)]


def valid_suite(
    kind: Kind, table: "pd.DataFrame", min_valid: int, min_training: int, limits: dict[str, float]
) -> list["Expectation"]:
    """What is expected of the valid rows: enough of them, in every split, without a slant.

    Args:
        kind: the kind of the rows.
        table: the valid rows.
        min_valid: rows that must be left.
        min_training: rows that must be left in the training split.
        limits: the largest mean of each check of SHARES; columns without any value are not tested.
    """
    from great_expectations import expectations as gxe

    needed = list(NEEDED_SPLITS[kind])
    return [
        gxe.ExpectTableRowCountToBeBetween(
            min_value=min_valid,
            **_about("max_quarantined", "At most validate.max_quarantined of the rows are quarantined"),
        ),
        gxe.ExpectColumnSumToBeBetween(
            column="training", min_value=min_training, **_about("min_rows", "Enough rows are left for training")
        ),
        gxe.ExpectColumnDistinctValuesToContainSet(
            column="split", value_set=needed, **_about("splits", f"No split is empty: {', '.join(needed)}")
        ),
        *(
            gxe.ExpectColumnMeanToBeBetween(
                column=SHARES[check],
                max_value=limit,
                **_about(check, f"The share of rows with {SHARES[check]} is at most {limit}"),
            )
            for check, limit in limits.items()
            if SHARES[check] in table and table[SHARES[check]].notna().any()
        ),
    ]


def data_context() -> "EphemeralDataContext":
    """A Great Expectations context in memory; telemetry and progress bars off.

    It writes no data docs: those of the library load scripts from elsewhere, and run what a row holds (pages.py).
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when the library is imported
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        analytics_enabled=False,
        progress_bars=ProgressBarsConfig(globally=False, metric_calculations=False),
    )
    return gx.get_context(mode="ephemeral", project_config=config)


def run_expectations(
    context: "EphemeralDataContext", name: str, table: "pd.DataFrame", expectations: Iterable["Expectation"]
) -> list[CheckResult]:
    """Hold a table against expectations, under a name of their own.

    Raises:
        RuntimeError: an expectation could not be computed. The library would count it as failed.
    """
    import great_expectations as gx

    suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=list(expectations)))
    asset = context.data_sources.add_pandas(name).add_dataframe_asset("rows")
    data = asset.add_batch_definition_whole_dataframe("all")
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=data, suite=suite))
    # The rows' numbers are all that is asked for: indexes of the table from 0.
    frame = table.reset_index(drop=True)
    outcome = definition.run(batch_parameters={"dataframe": frame}, result_format={"result_format": "COMPLETE"})
    return [_check_result(name, result) for result in outcome.results]


def _check_result(name: str, result: "ExpectationValidationResult") -> CheckResult:
    config = result.expectation_config
    assert config is not None and config.meta is not None
    check = config.meta["check"]
    if message := _exception(result.exception_info):
        raise RuntimeError(f"the expectation of {check} in the suite {name} could not be computed: {message}")
    rows = [int(row) for row in result.result.get("unexpected_index_list") or []]
    columns = [config.kwargs["column"]] if "column" in config.kwargs else config.kwargs.get("column_list", [])
    column = columns[0] if columns and "observed_value" not in result.result else None
    observed = result.result.get("observed_value")
    return CheckResult(check, bool(result.success), rows, observed, config.description or check, column)


def _exception(info: Mapping[str, Any]) -> str | None:
    """The message of an exception inside an expectation: the library nests it, by metric, where a metric failed."""
    nested = [info] if "raised_exception" in info else list(info.values())
    raised = [each for each in nested if each["raised_exception"]]
    return str(raised[0]["exception_message"]) if raised else None


def _about(check: str, description: str) -> dict[str, Any]:
    return {"description": description, "meta": {"check": check}}


def _nothing_in(column: str, check: str, description: str) -> "Expectation":
    from great_expectations import expectations as gxe

    return gxe.ExpectColumnValuesToBeNull(column=column, **_about(check, description))


def _sound_texts(kind: Kind) -> list["Expectation"]:
    from great_expectations import expectations as gxe

    fields = ("prompt", *(ANSWERS[kind] or ("references",)))
    return [
        _nothing_in("schema", "schema", "Every row has the fields of its kind, each of its type"),
        *(
            gxe.ExpectColumnValuesToBeBetween(
                column=f"{field}_characters", min_value=1, **_about("empty", f"The {field} is not blank")
            )
            for field in fields
        ),
        _nothing_in("encoding", "encoding", "No text shows traces of a wrong decoding"),
        _nothing_in("control_tokens", "control_tokens", "No text holds what the model would read as control"),
        _nothing_in("template", "template", "The chat template writes every row"),
        _nothing_in("lost_system", "lost_system", "The chat template leaves out no system text"),
        _nothing_in("lost_turns", "lost_turns", "The chat template leaves out no turn, nor a part of one"),
        _nothing_in("lost_thinking", "lost_thinking", "The chat template leaves the thinking in earlier turns"),
        _nothing_in("lost_tools", "lost_tools", "The chat template leaves out no tool, call or result"),
        _nothing_in("personal_data", "personal_data", "No text looks like personal data"),
    ]


def _fresh_rows(kind: Kind) -> list["Expectation"]:
    from great_expectations import expectations as gxe

    expectations: list[Expectation] = [
        _nothing_in("copy_of", "duplicate", "No row repeats an earlier one"),
        _nothing_in("held_out_at", "shared_prompt", "No prompt is also in a more protected split"),
        _nothing_in("gives_away", "contamination", "No training row gives a test prompt away"),
    ]
    if kind in PAIRS:
        equal = _about("equal", "The chosen answer differs from the rejected one")
        expectations += [
            gxe.ExpectSelectColumnValuesToBeUniqueWithinRecord(column_list=["chosen", "rejected"], **equal),
            _nothing_in("contradicts", "contradiction", "No two answers of a prompt are labelled both ways"),
        ]
    if kind == "ratings":
        expectations.append(_nothing_in("contradicts", "contradiction", "No answer to a prompt is rated both ways"))
    return expectations


def _within_length(kind: Kind, max_tokens: int) -> list["Expectation"]:
    from great_expectations import expectations as gxe

    length = _about("length", f"The row has at most {max_tokens} tokens in the chat template")
    expectations: list[Expectation] = [
        gxe.ExpectColumnValuesToBeBetween(column="tokens", max_value=max_tokens, **length)
    ]
    if kind in PAIRS:
        differ = _about("truncation", f"The answers differ within the first {max_tokens} tokens")
        column = "first_difference"
        expectations.append(gxe.ExpectColumnValuesToBeBetween(column=column, max_value=max_tokens - 1, **differ))
    return expectations
