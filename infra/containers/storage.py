"""Make the databases and buckets that the servers need, where they do not exist.

It reads the environment: POSTGRES_HOST, POSTGRES_USER and POSTGRES_PASSWORD of an administrator; for each database
MLFLOW_DATABASE_PASSWORD and PREFECT_DATABASE_PASSWORD of its owner, who has the database's name; BUCKETS, names with
spaces between. For S3: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

# The owner of each database. MLflow's users have one of their own: the server of a team may share it.
DATABASES = {"mlflow": "mlflow", "mlflow_users": "mlflow", "prefect": "prefect"}


def make_databases(connection: Any, passwords: Mapping[str, str]) -> list[str]:  # noqa: ANN401  # psycopg2 has no types
    """Make what is missing of DATABASES and their owners; passwords are set anew each time.

    Args:
        connection: to any database of the server, as an administrator.
        passwords: of each owner.

    Returns:
        The databases that were made.
    """
    from psycopg2 import sql

    connection.autocommit = True  # a database is not made in a transaction
    made = []
    with connection.cursor() as cursor:
        for owner in dict.fromkeys(DATABASES.values()):
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (owner,))
            verb = sql.SQL(
                "ALTER ROLE {} LOGIN PASSWORD {}" if cursor.fetchone() else "CREATE ROLE {} LOGIN PASSWORD {}"
            )
            cursor.execute(verb.format(sql.Identifier(owner), sql.Literal(passwords[owner])))
        for name, owner in DATABASES.items():
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
            if cursor.fetchone():
                continue
            cursor.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(owner)))
            cursor.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))
            made.append(name)
    return made


def make_buckets(client: Any, names: Iterable[str]) -> list[str]:  # noqa: ANN401  # boto3 makes its classes as it runs
    """Make the buckets that are missing; give their names.

    Args:
        client: boto3's, of S3.
        names: of all that should be there.
    """
    there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    missing = [name for name in names if name not in there]
    for name in missing:
        client.create_bucket(Bucket=name)
    return missing


def main() -> None:
    """Make both, and print what was made."""
    needed = (
        "POSTGRES_HOST",
        "POSTGRES_USER",
        "POSTGRES_PASSWORD",
        "MLFLOW_DATABASE_PASSWORD",
        "PREFECT_DATABASE_PASSWORD",
    )
    if missing := [name for name in (*needed, "BUCKETS") if not os.environ.get(name)]:
        sys.exit(f"storage: set {', '.join(missing)} in the environment")
    import boto3
    import psycopg2

    given = {name: os.environ[name] for name in needed}
    connection = psycopg2.connect(
        host=given["POSTGRES_HOST"],
        user=given["POSTGRES_USER"],
        password=given["POSTGRES_PASSWORD"],
        dbname="postgres",
    )
    passwords = {"mlflow": given["MLFLOW_DATABASE_PASSWORD"], "prefect": given["PREFECT_DATABASE_PASSWORD"]}
    try:
        databases = make_databases(connection, passwords)
    finally:
        connection.close()
    buckets = make_buckets(boto3.client("s3"), os.environ["BUCKETS"].split())
    sys.stdout.write(f"storage: made databases {databases} and buckets {buckets}\n")


if __name__ == "__main__":
    main()
