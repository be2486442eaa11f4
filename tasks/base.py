"""Reads a local model folder or a hub model, or makes one from scratch, writes models/base and metrics/base.json."""

from pathlib import Path
from typing import Any, Literal

from tasks.common.errors import InputError
from tasks.common.files import METRICS, MODELS, replacing, write_json
from tasks.common.python_files import is_python, license_of
from tasks.data.base_model.architecture import check_model
from tasks.data.base_model.from_hub import download, read_pointer
from tasks.data.base_model.from_scratch import make_scratch
from tasks.data.base_model.model_files import copy_model
from tasks.data.base_model.tokenizers import resolve_tokenizer, try_rows
from tasks.data.base_model.weights import count_parameters
from tasks.data.encoding.context import usable_context
from tasks.settings.params import Params
from tasks.stage import main

Kind = Literal["scratch", "folder", "hub"]


def base(params: Params) -> None:
    """Fix the exact bytes of the base model, with the tokenizer, chat template and padding token every stage uses.

    Raises:
        InputError: the source is missing or is not a model the pipeline can train safely; the sentence has the cure.
    """
    with replacing(MODELS / "base") as draft:
        kind = _obtain(params, draft)
        check_model(draft, params.base.source)
        resolve_tokenizer(draft, params.base)
        try_rows(draft, params.base.source)
        metrics = _measure(draft, kind)
    if is_python(params.base.source):
        metrics |= license_of(Path(params.base.source))
    write_json(METRICS / "base.json", metrics)


def _obtain(params: Params, draft: Path) -> Kind:
    """Bring the model's files into `draft`, and say where they came from."""
    source = Path(params.base.source)
    if is_python(params.base.source):
        make_scratch(source, params.base.scratch, params.seed, draft)
        return "scratch"
    if source.suffix in (".yaml", ".yml"):
        copy_model(download(read_pointer(source)), draft, params.base.source)
        return "hub"
    if not source.is_dir():
        raise InputError(
            f"base.source {source} is no folder: give a model folder, a .yaml that names a hub model or a Python file"
        )
    copy_model(source, draft, params.base.source)
    return "folder"


def _measure(folder: Path, kind: Kind) -> dict[str, Any]:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    text = config.get_text_config()
    return {
        "source": kind,
        "family": text.model_type,
        "parameters": count_parameters(folder, "models/base"),
        "vocabulary": text.vocab_size,
        "context": usable_context(config),
    }


if __name__ == "__main__":
    main(base)
