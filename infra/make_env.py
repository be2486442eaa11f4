"""Write infra/.env from env.example, with a new secret for each empty variable whose comment says so.

    python3 infra/make_env.py

An existing file stays as it is: its secrets are in the databases already. It needs no package.
"""

import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent


def filled(example: str) -> Iterator[str]:
    """Give the lines of the example, those of secrets with a secret of 43 characters that addresses need not escape."""
    comment = ""  # above the variable
    for line in example.splitlines():
        comment = f"{comment} {line}" if line.startswith("#") else comment if line else ""
        is_secret = "generated" in comment.lower() and line.endswith("=")
        yield f"{line}{secrets.token_urlsafe(32)}" if is_secret else line


def main() -> None:
    """Write the file, for its owner alone."""
    path = HERE / ".env"
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        sys.exit(f"{path} exists and stays as it is: its secrets are in use; delete it for new ones")
    with os.fdopen(file, "w", encoding="utf-8") as out:
        out.write("\n".join(filled((HERE / "env.example").read_text(encoding="utf-8"))) + "\n")
    sys.stdout.write(f"wrote {path}: edit it where env.example's defaults do not suit\n")


if __name__ == "__main__":
    main()
