"""What `mlflow.pyfunc` answers with: prompts or messages in, the model's answers out, through its chat template.

This file is copied into the registered model and loaded from there, so it must not import anything of the project.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Message = Mapping[str, str]  # role and content


class ChatModel:
    """A model folder that answers."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Load the model.

        Args:
            folder: config, safetensors and tokenizer.
            settings: how to generate, as transformers calls it (max_new_tokens, temperature and so on).
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

        safely = {"local_files_only": True, "trust_remote_code": False}
        model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **safely)
        tokenizer = AutoTokenizer.from_pretrained(folder, **safely)
        self._answer = pipeline("text-generation", model=model, tokenizer=tokenizer)
        self._settings = dict(settings)

    def predict(self, model_input: Any) -> list[str]:  # noqa: ANN401
        """Answer each conversation.

        Args:
            model_input: a prompt, the messages of a conversation, or several of either; also under the name
                `messages` or `prompt`, as a mapping or a data frame.

        Returns:
            An answer a conversation.

        Raises:
            ValueError: the input is neither.
        """
        asked = [[dict(message) for message in conversation] for conversation in conversations(model_input)]
        found = [self._answer(messages, return_full_text=False, **self._settings) for messages in asked]
        return [str(one[0]["generated_text"]).strip() for one in found]


def conversations(model_input: Any) -> list[Sequence[Message]]:  # noqa: ANN401 (whatever MLflow hands on)
    """Give every conversation in an input as its messages; a prompt is one message of the user.

    Raises:
        ValueError: there is none.
    """
    if hasattr(model_input, "columns"):  # a data frame
        model_input = model_input.to_dict(orient="list")
    elif hasattr(model_input, "tolist"):  # an array
        model_input = model_input.tolist()
    if isinstance(model_input, Mapping):
        model_input = model_input.get("messages", model_input.get("prompt"))
    if isinstance(model_input, str) or _is_conversation(model_input):
        model_input = [model_input]
    if not isinstance(model_input, Sequence) or not model_input:
        raise ValueError("give a prompt, the messages of a conversation (role and content), or a list of either")
    return [_messages(each) for each in model_input]


def _messages(one: Any) -> Sequence[Message]:  # noqa: ANN401
    if isinstance(one, str):
        return [{"role": "user", "content": one}]
    if _is_conversation(one):
        return list(one)
    raise ValueError(f"{one!r} is neither a prompt nor the messages of a conversation (role and content)")


def _is_conversation(value: Any) -> bool:  # noqa: ANN401
    is_list = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return is_list and all(isinstance(each, Mapping) and {"role", "content"} <= each.keys() for each in value)


def _load_pyfunc(folder: str, settings: Mapping[str, Any] | None = None) -> ChatModel:
    """Load the model for MLflow, which calls this by its name."""
    return ChatModel(Path(folder, "model"), settings or {})
