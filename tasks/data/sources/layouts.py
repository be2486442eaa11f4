"""What people take for a source and is none: how libraries keep their tables. Each is named, with the way out."""

from pathlib import Path

from tasks.common.errors import InputError

SPLIT_KEYS = {"columns", "data"}
CURES_BY_ENDING = {
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz"), "unpack it"),
    ".ndjson": "rename it to .jsonl",
    ".py": "name it as the source itself, so that it is run",
    ".tsv": "write it with commas as .csv",
    ".arrow": 'write it with datasets: Dataset.from_file("{path}").to_parquet("{stem}.parquet")',
}


def refuse_saved_data_set(folder: Path) -> None:
    """Refuse a folder that `save_to_disk` of the library datasets made.

    Raises:
        InputError: it is one.
    """
    made = f"{folder} is a data set that save_to_disk wrote"
    if (folder / "dataset_dict.json").is_file():
        raise InputError(
            f'{made}, with splits: write each as a file, as in load_from_disk("{folder}")["train"].to_parquet('
            f'"{folder.name}.parquet"), and name that file'
        )
    if (folder / "state.json").is_file() and any(folder.glob("*.arrow")):
        raise InputError(
            f'{made}: write it as a file, as in load_from_disk("{folder}").to_parquet("{folder.name}.parquet"), and '
            "name that file"
        )


def refuse_layout(content: object, path: Path) -> None:
    """Refuse what holds a whole table where a row is wanted, or lays it out otherwise than by rows.

    Raises:
        InputError: it is one.
    """
    layout = _layout(content)
    if layout == "values":
        raise InputError(
            f'{path} is a table that pandas wrote with orient="values", which loses the names of its columns: write it '
            f'again with to_json("{path.stem}.jsonl", orient="records", lines=True)'
        )
    if layout is not None:
        raise InputError(
            f'{path} is a table that pandas wrote with orient="{layout}": write its rows, as in '
            f'pandas.read_json("{path}", orient="{layout}").to_json("{path.stem}.jsonl", orient="records", lines=True)'
        )
    is_table = isinstance(content, dict) and content.keys() == {"schema", "data"}
    is_list = isinstance(content, list) and content and all(isinstance(row, dict) for row in content)
    if path.suffix.lower() == ".jsonl" and (is_table or is_list):
        raise InputError(f"{path} holds a whole table in its first line: rename it to .json")


def _layout(content: object) -> str | None:
    if isinstance(content, list):
        return "values" if content and all(isinstance(row, list) for row in content) else None
    if not isinstance(content, dict) or not content:
        return None
    if content.keys() >= SPLIT_KEYS and all(isinstance(content[key], list) for key in SPLIT_KEYS):
        return "split"
    rows = list(content.values())
    if not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows) or not rows[0]:
        return None
    if all(key.isdecimal() for key in rows[0]):
        return "columns"
    return "index" if all(key.isdecimal() for key in content) else None
