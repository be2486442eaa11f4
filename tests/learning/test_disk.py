"""A full disk is reported as a full disk."""

import errno
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tasks.common.full_disk import writing

WEIGHTS = {"weight": torch.zeros(100_000)}


@pytest.fixture
def _small_files_only() -> Iterator[None]:
    """The system refuses files over 10 kB, as it would on a full disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("_small_files_only")
def test_what_torch_and_safetensors_hide(tmp_path: Path):
    with pytest.raises(OSError, match=r"File too large: 'models/sft'") as of_torch:  # noqa: SIM117
        with writing(Path("models/sft")), (tmp_path / "a.pt").open("wb") as file:
            torch.save(WEIGHTS, file)
    with pytest.raises(OSError, match=r"File too large: 'models/sft'") as of_safetensors, writing(Path("models/sft")):
        save_file(WEIGHTS, tmp_path / "a.safetensors")
    assert of_torch.value.errno == of_safetensors.value.errno == errno.EFBIG


def test_a_plain_error_of_the_system_names_the_output():
    with pytest.raises(OSError, match=r"No space left") as found, writing(Path("models/sft")):
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/draft")
    assert found.value.errno == errno.ENOSPC
    assert found.value.filename == "models/sft"


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shape"), writing(Path("models/sft")):
        raise RuntimeError("shape")
