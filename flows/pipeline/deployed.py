"""What a deployed run sets up in the clone that its worker made."""

import subprocess
import sys
from collections.abc import Sequence

from flows.settings import configure
from tasks.common.errors import InputError
from tasks.common.safe_text import sentence

REMOTE = "trueline"


def set_up(settings: Sequence[str], remote: str | None) -> None:
    """Apply settings to params.yaml, and make a folder or an address DVC's default remote, in this clone alone.

    Raises:
        InputError: a setting is none, or DVC refuses the remote.
    """
    if remote:
        command = [sys.executable, "-m", "dvc", "remote", "add", "--local", "--force", "--default", REMOTE, remote]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise InputError(f"DVC does not take {sentence(remote)} as its remote: {sentence(done.stderr.strip())}")
    if settings:
        configure([*settings])
