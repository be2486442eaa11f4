"""Where MLflow's database says its artifacts are: absolute addresses, which another folder needs rewritten."""

PLACES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}


def relocate(database: str, old: str, new: str) -> None:
    """Have a database of MLflow name artifacts in another checkout; addresses outside the old one stay.

    Args:
        database: its address.
        old: address of the checkout's folder, as `Path.as_uri` gives it.
        new: likewise.
    """
    from sqlalchemy import create_engine, text

    if old == new:
        return
    engine = create_engine(database)
    values = {"new": f"{new}/", "rest": len(old) + 2, "length": len(old) + 1, "old": f"{old}/"}
    try:
        with engine.begin() as connection:
            for table, columns in PLACES.items():
                for column in columns:
                    moved = f"CAST(:new AS VARCHAR) || substr({column}, :rest)"
                    condition = f"substr({column}, 1, :length) = :old"
                    connection.execute(text(f"UPDATE {table} SET {column} = {moved} WHERE {condition}"), values)
    finally:
        engine.dispose()
