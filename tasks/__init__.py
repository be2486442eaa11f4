"""The pipeline's stages, one file each, and the packages they stand on."""

import importlib.util
import os
import sys

# Where DVC was called without the project's environment, `python` is another.
if importlib.util.find_spec("torch") is None:
    sys.stderr.write(
        f"{sys.executable} is not the Python that Trueline is installed in: run `. .venv/bin/activate`, then "
        "`dvc checkout` for outputs that DVC has deleted, then again\n"
    )
    sys.exit(2)

# Read by the libraries when they are imported, so set before anything here can import them.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Saving a model imports DeepSpeed where that is installed, which would guess the device, and say so; trainers name it.
os.environ.setdefault("DS_ACCELERATOR", "cpu")
# Who started this process, asked before the seconds of imports in which it may die.
STARTED_BY = os.getppid()
