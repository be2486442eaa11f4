"""The `mlflow.pyfunc` model of a registered version: a policy answers conversations, a reward model scores answers.

This file is copied into the registered model and loaded from there, so it must not import from the project.
"""

import json
import re
from collections.abc import Mapping, Sequence
from hashlib import file_digest
from io import BytesIO
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

Message = Mapping[str, Any]  # role and content; perhaps tool_calls, and in the first one tools
HASHES = "hashes.json"  # the md5 of every file in `model`, as evaluated
MEMBER = "member-{}"  # folders of an ensemble's further models, from 2; the first lies in `model` itself
POOLINGS = ("last", "mean")  # what of an answer the head reads: its last token, or the mean over its tokens
# A generation prompt that ends within reasoning, or after an empty one.
MARK = re.compile(r"[<\[]/?\w+[>\]]")
OPENED = re.compile(r"[<\[](\w+)[>\]]\s*(?:[<\[]/\1[>\]]\s*)?\Z")
SAFELY = {"local_files_only": True, "trust_remote_code": False}


class ChatModel:
    """A policy that answers conversations."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Load the model.

        Args:
            folder: config, safetensors and tokenizer.
            settings: generation settings of transformers (max_new_tokens, temperature and so on).
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

        model = load_complete(AutoModelForCausalLM, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, **SAFELY)
        self._answer = pipeline("text-generation", model=model, tokenizer=tokenizer)
        self._settings = dict(settings)

    def predict(self, model_input: Any) -> list[str]:  # noqa: ANN401
        """Answer each conversation.

        Args:
            model_input: a prompt, the messages of a conversation, or several of either; also under the name
                `messages` or `prompt`, as a mapping or a data frame.

        Returns:
            One answer per conversation.

        Raises:
            ValueError: the input is neither.
        """
        asked = [without_tools(conversation) for conversation in conversations(model_input)]
        found = [
            self._answer(messages, tools=tools, return_full_text=False, **self._settings) for messages, tools in asked
        ]
        return [str(one[0]["generated_text"]).strip() for one in found]


class RewardModel:
    """A reward model, or an ensemble of several, that scores answers."""

    def __init__(self, folder: Path) -> None:
        """Load the models in fp32.

        Args:
            folder: config, safetensors and tokenizer.

        Raises:
            ValueError: weights are missing or strange, or `score_pooling` in the config is not known.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        first = load_complete(AutoModelForSequenceClassification, folder, dtype="float32")
        others = range(2, getattr(first.config, "score_members", 1) + 1)
        folders = [folder / MEMBER.format(number) for number in others]
        loaded = [load_complete(AutoModelForSequenceClassification, each, dtype="float32") for each in folders]
        self._models, self._penalty = [first, *loaded], getattr(first.config, "score_penalty", 0.0)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, **SAFELY)
        pooling = getattr(first.config, "score_pooling", "last")  # models of an earlier version do not say it
        if pooling not in POOLINGS:
            raise ValueError(f"{folder}: score_pooling in config.json is {pooling}, not one of {', '.join(POOLINGS)}")
        self._is_mean = pooling == "mean"

    def predict(self, model_input: Any) -> list[float]:  # noqa: ANN401
        """Score each answer as the project's pipeline does.

        Args:
            model_input: a prompt and an answer under these names (the prompt as text or as messages), the messages of
                a conversation whose last one is the assistant's, or several of either; also as a data frame.

        Returns:
            One score per answer, on the scale that `score_bias` and `score_gain` in the model's config set.

        Raises:
            ValueError: the input is neither, or an answer holds the end-of-sequence token.
        """
        return [self._score(*token_ids(self._tokenizer, conversation)) for conversation in answered(model_input)]

    def _score(self, prompt: list[int], answer: list[int]) -> float:
        """Give the models' mean score, less the penalty times their standard deviation."""
        scores = [self._score_of(model, prompt, answer) for model in self._models]
        return fmean(scores) - self._penalty * pstdev(scores)

    def _score_of(self, model: Any, prompt: list[int], answer: list[int]) -> float:  # noqa: ANN401
        """Read the score at the last token, by its position, or at the mean over the answer's tokens."""
        from torch import inference_mode, tensor

        with inference_mode():
            states = model.base_model(input_ids=tensor([prompt + answer]), use_cache=False).last_hidden_state[0]
            pooled = states[len(prompt) :].mean(dim=0) if self._is_mean else states[-1]
            raw = model.score(pooled).item()
        bias, gain = getattr(model.config, "score_bias", 0.0), getattr(model.config, "score_gain", 1.0)
        return float((raw + bias) * gain)


def load_complete(kind: Any, folder: Path, **options: str) -> Any:  # noqa: ANN401 (an Auto class, and a model of any family)
    """Load a model, and check that every weight comes from the folder.

    Raises:
        ValueError: weights are missing (transformers would initialise them at random) or belong to another model.
    """
    model, found = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **SAFELY, **options)
    if strange := sorted(found["missing_keys"] | found["unexpected_keys"]):
        raise ValueError(f"the weights in {folder} do not belong to its config.json ({', '.join(strange[:3])})")
    return model


def token_ids(tokenizer: Any, conversation: Sequence[Message]) -> tuple[list[int], list[int]]:  # noqa: ANN401
    """Encode a prompt up to the start of the answer; and the answer, with the end-of-sequence token.

    The ids equal those of `encode` in tasks/data/encoding/tokens.py, which is not copied with the model.

    Raises:
        ValueError: the answer holds the end-of-sequence token.
    """

    def written(messages: list[Message], *, is_asked: bool) -> str:
        plain, tools = without_tools(messages)
        return str(tokenizer.apply_chat_template(plain, tools=tools, tokenize=False, add_generation_prompt=is_asked))

    *prompt, answer = conversation
    asked, rendered = written(prompt, is_asked=True), written([*prompt, answer], is_asked=False)
    end = str(tokenizer.eos_token)
    text = _completion(answer, asked, rendered, end)
    prompt_ids, ids = (tokenizer.encode(each, add_special_tokens=False) for each in (asked, asked + text))
    if ids[: len(prompt_ids)] != prompt_ids:  # a token spans the boundary, which generation cannot produce
        ids = prompt_ids + tokenizer.encode(text, add_special_tokens=False)
    answer_ids = ids[len(prompt_ids) :]
    if tokenizer.eos_token_id in answer_ids:
        raise ValueError(f"the answer holds the control token {end}: {text!r}")
    return prompt_ids, [*answer_ids, tokenizer.eos_token_id]


def without_tools(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """Return messages as a chat template is given them, and apart from them the functions that may be called."""
    plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
    return plain, plain[0].pop("tools", None)


def _completion(answer: Message, asked: str, rendered: str, end: str) -> str:
    """Return what follows the prompt: the answer as the template renders it, up to the end-of-sequence token."""
    if answer.get("tool_calls"):
        if not rendered.startswith(asked):
            raise ValueError("the chat template writes the tool call of the answer elsewhere than behind the prompt")
        text = rendered[len(asked) :]
        return text if end in str(answer) else text.split(end)[0]
    text = _without_start(answer["content"], asked)
    start = rendered.find(text.strip(), len(asked))
    if not rendered.startswith(asked) or start < 0:  # the template renders answered conversations differently
        return text
    stop = start + len(text.strip())
    return rendered[len(asked) : stop] + rendered[stop:].split(end, maxsplit=1)[0]


def _without_start(answer: str, asked: str) -> str:
    """Leave out the start of the reasoning, where the generation prompt has written it."""
    opened = OPENED.search(asked)
    rest = answer
    for mark in MARK.findall(opened[0]) if opened else ():
        begun = rest.lstrip()
        if not begun.startswith(mark):
            return answer
        rest = begun.removeprefix(mark)
    return rest.lstrip() if rest is not answer and asked[-1].isspace() else rest


def conversations(model_input: Any) -> list[Sequence[Message]]:  # noqa: ANN401 (whatever MLflow passes)
    """Return the conversations of an input as lists of messages; a prompt is one message of the user.

    Raises:
        ValueError: there is none.
    """
    model_input = _plain(model_input)
    if isinstance(model_input, Mapping):
        model_input = model_input.get("messages", model_input.get("prompt"))
    if isinstance(model_input, str) or _is_conversation(model_input):
        model_input = [model_input]
    if not isinstance(model_input, Sequence) or not model_input:
        raise ValueError("give a prompt, the messages of a conversation (role and content), or a list of either")
    return [_messages(each) for each in model_input]


def answered(model_input: Any) -> list[Sequence[Message]]:  # noqa: ANN401
    """Return the conversations of an input as lists of messages that end with the assistant's.

    Raises:
        ValueError: there is none, or one has no answer.
    """
    model_input = _plain(model_input)
    if _is_rows(model_input, {"prompt", "answer"}):
        model_input = {name: [row[name] for row in model_input] for name in ("prompt", "answer")}
    if isinstance(model_input, Mapping) and {"prompt", "answer"} <= model_input.keys():
        answers = [model_input["answer"]] if isinstance(model_input["answer"], str) else model_input["answer"]
        pairs = zip(conversations(model_input["prompt"]), answers, strict=True)
        return [[*prompt, {"role": "assistant", "content": answer}] for prompt, answer in pairs]
    found = conversations(model_input)
    if not all(len(messages) > 1 and messages[-1]["role"] == "assistant" for messages in found):
        raise ValueError("give a prompt and an answer, or messages that end with the assistant's, or a list of either")
    return found


def _plain(model_input: Any) -> Any:  # noqa: ANN401
    if hasattr(model_input, "columns"):  # a data frame
        return model_input.to_dict(orient="list")
    return model_input.tolist() if hasattr(model_input, "tolist") else model_input  # an array


def _messages(one: Any) -> Sequence[Message]:  # noqa: ANN401
    if isinstance(one, str):
        return [{"role": "user", "content": one}]
    if _is_conversation(one):
        return list(one)
    raise ValueError(f"{one!r} is neither a prompt nor the messages of a conversation (role and content)")


def _is_conversation(value: Any) -> bool:  # noqa: ANN401
    return _is_rows(value, {"role", "content"})


def _is_rows(value: Any, names: set[str]) -> bool:  # noqa: ANN401
    is_list = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return is_list and all(isinstance(each, Mapping) and names <= each.keys() for each in value)


def check_files(model: Path, recorded: Mapping[str, str]) -> None:
    """Hash the files of a model before they are loaded.

    Raises:
        ValueError: one is missing, too many or not the one that was registered.
    """
    found = {path.relative_to(model).as_posix(): path for path in model.rglob("*") if path.is_file()}
    for name in sorted({*recorded, *found}):
        with found[name].open("rb") if name in found else BytesIO() as file:
            if file_digest(file, "md5").hexdigest() != recorded.get(name):
                raise ValueError(
                    f"{model / name} is not the file that was registered: fetch it again where it is a copy, or delete "
                    f"{model.parent} and run trueline sync in the checkout that registered it"
                )


def _load_pyfunc(folder: str, settings: Mapping[str, Any] | None = None) -> ChatModel | RewardModel:
    """Load the model for MLflow, which calls this by its name.

    Raises:
        ValueError: a file is not the one that was registered.
    """
    from transformers import AutoConfig

    model = Path(folder, "model")
    hashes = Path(folder, HASHES)
    if hashes.exists():  # versions that an earlier release registered have none
        check_files(model, json.loads(hashes.read_text(encoding="utf-8")))
    [kind] = AutoConfig.from_pretrained(model, **SAFELY).architectures
    return RewardModel(model) if kind.endswith("ForSequenceClassification") else ChatModel(model, settings or {})
