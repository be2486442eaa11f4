"""The pipeline's stages, one file each, and the packages they stand on."""

import os

# Read by the libraries when they are imported, so set before anything here can import them.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Who started this process, asked before the seconds of imports in which it may die.
STARTED_BY = os.getppid()
