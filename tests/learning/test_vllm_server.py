"""The process of a vLLM server that PPO starts: a stub of its program shows what it is given and when it ends."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from tasks.common.errors import InputError
from tasks.learning.sampling.vllm import server
from tests.test_children import eventually, is_gone
from tests.tiny import tiny_params

ROOT = Path(__file__).parents[2]
CONFIG = LlamaConfig(num_hidden_layers=30, hidden_size=576, num_attention_heads=9, num_key_value_heads=3)
PROGRAM = f"""#!{sys.executable}
import json, os, pathlib, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

if says := os.environ.get("STUB_SAYS"):
    sys.exit(says)
note = {{"arguments": sys.argv[1:], "environment": dict(os.environ), "pid": os.getpid()}}
pathlib.Path("note.json").write_text(json.dumps(note))

class Stub(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Stub).serve_forever()
"""
START = """
import os, pathlib, signal, sys, torch
from transformers import LlamaConfig
from tasks.learning.sampling.vllm import server
from tests.tiny import tiny_params
server.program = lambda: pathlib.Path("vllm").absolute()
server.start(pathlib.Path("model"), LlamaConfig(), tiny_params().runtime, longest=8, dtype=torch.float32,
             device=torch.device("cpu"))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def _program(tmp_path, monkeypatch):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "vllm"
    path.write_text(PROGRAM)
    path.chmod(0o755)
    monkeypatch.setattr(server, "program", lambda: path)


def start(dtype=torch.float32, device="cpu", **runtime):
    settings = tiny_params(runtime={"max_concurrent_sequences": 64, "threads": 2} | runtime).runtime
    return server.start(Path("model"), CONFIG, settings, longest=512, dtype=dtype, device=torch.device(device))


def note():
    return json.loads(Path("note.json").read_text())


def test_it_samples_plainly_in_the_trainings_precision_and_ends_when_it_is_closed(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "ACCELERATE_USE_FSDP", "PYTHONPATH"):
        monkeypatch.setenv(name, str(ROOT) if name == "PYTHONPATH" else "1")
    options = {"url": None, "weights_folder": "/dev/shm", "options": ["--seed=3"]}
    found = start(torch.bfloat16, vllm=options)
    noted = note()

    port = found.url.rpartition(":")[2]
    assert noted["arguments"] == [
        *("serve", "model", "--host", "127.0.0.1", "--port", port, "--dtype", "bfloat16"),
        *("--max-model-len", "512", "--max-num-seqs", "64", "--generation-config", "vllm"),
        *("--logprobs-mode", "processed_logprobs", "--enable-scale-out", "--disable-uvicorn-access-log"),
        *("--enforce-eager", "--seed=3"),
    ]
    environment = noted["environment"]
    # 30 layers, keys and values of 3 heads of 64 numbers of 2 bytes, 64 sequences of 512 tokens: .70 GiB.
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert (environment["OMP_NUM_THREADS"], environment["VLLM_SERVER_DEV_MODE"]) == ("2", "1")
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "ACCELERATE_USE_FSDP", "PYTHONPATH"} & {*environment}
    found.close()
    assert is_gone(noted["pid"])


def test_on_a_gpu_kernels_are_compiled():
    found = start(device="cuda")
    assert "--enforce-eager" not in note()["arguments"]
    found.close()


def test_one_that_does_not_start_says_why_and_where_more_stands(monkeypatch):
    monkeypatch.setenv(
        "STUB_SAYS",
        "OSError: of no account\n"
        "(EngineCore pid=7) ERROR 11-30 21:40:23 [core.py:1] ValueError: No available memory for the cache blocks.\n"
        "(APIServer pid=3) RuntimeError: Engine core initialization failed. See root cause above.\n",
    )

    sentence = "vLLM did not start (ValueError: No available memory for the cache blocks.): .trueline/vllm/rollouts.log"
    with pytest.raises(InputError, match=re.escape(sentence)):
        start()


def test_without_its_program_the_cure_is_named(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(sys, "prefix", "/nowhere/.venv")

    sentence = (
        "ppo.engine is vllm, but /nowhere/.venv-vllm/bin/vllm does not exist: run make vllm, or set runtime.vllm.url"
    )
    with pytest.raises(InputError, match=re.escape(sentence)):
        server.program()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_a_stage_that_is_killed_leaves_no_server():
    ended = subprocess.run([sys.executable, "-c", START], check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})

    assert ended.returncode == -signal.SIGKILL
    assert eventually(lambda: is_gone(note()["pid"]))
