"""Prefect and the command line: who runs when. Nothing here computes."""

import os
from pathlib import Path

# Prefect reads these when it is imported, so they are set before anything here can import it. A variable that is
# set already wins, and a stage inherits what does not concern it.
DEFAULTS = {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_HOME": str(Path(".trueline/prefect").resolve()),
    # The console belongs to the stages; the server keeps Prefect's own lines.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",  # a heartbeat that a server which is away has missed
}
for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)
