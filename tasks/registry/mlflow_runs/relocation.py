"""Where MLflow's database says its artifacts are: absolute addresses, which another folder needs rewritten."""

import sqlite3
from contextlib import closing
from pathlib import Path

PLACES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}


def relocate(database: Path, old: str, new: str) -> None:
    """Have a SQLite database of MLflow name artifacts in another checkout; addresses outside the old one stay.

    Args:
        database: a file that nothing else has open.
        old: address of the checkout's folder, as `Path.as_uri` gives it.
        new: likewise.
    """
    with closing(sqlite3.connect(database)) as connection, connection:
        for table, columns in PLACES.items():
            for column in columns:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (f"{new}/", len(old) + 2, len(old) + 1, f"{old}/"),
                )
