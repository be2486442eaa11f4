"""The rollout engine on vLLM: it brings the policy's weights into a server before every round, and checks its answers.

The server is asked for log-probabilities at the sampling temperature; they must be those of the policy's own pass.
"""

import hashlib
import logging
import shutil
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tasks.common.errors import InputError
from tasks.data.encoding.tokens import Encoded
from tasks.learning.batches import collate
from tasks.learning.models.forward import compute_device, compute_dtype, unwrapped
from tasks.learning.models.loading import context_length
from tasks.learning.models.outputs import completion_log_probs
from tasks.learning.sampling.sampler import Response, check_context, stop_tokens
from tasks.learning.sampling.vllm.client import REQUIRED, Client, Sampling, ServerLostError
from tasks.learning.sampling.vllm.server import LOG, Server, reason, start
from tasks.learning.sampling.vllm.weights import write_weights
from tasks.learning.seeds import seed_for
from tasks.settings.params import Runtime

logger = logging.getLogger(__name__)

TRIES = 3  # of a round
PAUSE = 10.0  # seconds before a server that somebody else must start again is asked once more
NUM_PROBES = 8  # answers whose log-probabilities are compared
# Nats by which the server's log-probabilities may differ from ours, as a mean over the probes' tokens.
LARGEST_ERROR = {torch.float32: 1e-3, torch.bfloat16: 0.1}
ROUNDED_TO = 256  # tokens: a prompt that is a little longer than those before needs no new server


class VllmEngine:
    """An engine (`engines.Engine`) that asks a server: one of its own, which ends with it, or one by its address.

    Only the main process asks, for all prompts. An answer depends on seed and place, and on its neighbours by rounding;
    the same bytes on another machine or by another version of vLLM are not promised. Entropies are not given.
    """

    def __init__(self, runtime: Runtime) -> None:
        """Start nothing yet."""
        self._runtime = runtime
        self._server: Server | None = None
        self._close = weakref.finalize(self, lambda: None)  # of the server, at the latest when this process ends
        checkout = hashlib.sha256(str(Path.cwd()).encode()).hexdigest()[:12]
        self._folder = Path(runtime.vllm.weights_folder) / f"trueline-{checkout}"
        self._clean: weakref.finalize[..., VllmEngine] | None = None  # of the folder, by the process that wrote it
        self._was_reached = self._has_answered = False

    def __call__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        max_concurrent_sequences: int,
        indices: Sequence[int] | None = None,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[Response]:
        """Answer prompts, see `sampler.generate`.

        Raises:
            InputError: the server does not start, refuses, or serves other weights than the model's.
            ConnectionError: it was lost in every try of the round.
        """
        check_context(model, prompts, max_new_tokens)
        wanted = range(len(prompts)) if indices is None else sorted(indices)
        if not wanted:
            return []
        asked = [list(prompts[place]) for place in wanted]
        seeds = [seed_for(seed, "vllm", place) for place in wanted]
        how = Sampling(max_new_tokens, temperature, stop_tokens(model, tokenizer))
        self._clean = self._clean or weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        write_weights(model, tokenizer, self._folder)
        device = compute_device(model)
        for number in range(1, TRIES + 1):
            try:
                client = self._loaded(model, max(map(len, asked)) + max_new_tokens)
                found = client.sample(asked, seeds, how, on_progress)
            except ServerLostError as error:
                self._lost(error, number)
                continue
            responses = [
                Response(Encoded(prompt, answer.tokens), torch.tensor(answer.log_probs, device=device), None)
                for prompt, answer in zip(asked, found, strict=True)
            ]
            self._has_answered = True
            self._check(client, model, responses[:NUM_PROBES], temperature)
            return responses
        raise ConnectionError(f"the vLLM server was lost {TRIES} times in one round of sampling")

    def close(self) -> None:
        """End the server, if it is ours."""
        self._close()
        self._server = None

    def _loaded(self, model: nn.Module, longest: int) -> Client:
        """Give a server that has the weights of the folder."""
        if url := self._runtime.vllm.url:
            client = Client(url)
            if not self._was_reached:
                client.check_shape(self._folder)
                self._was_reached = True
            client.load(self._folder)
            return client
        if self._server is not None and self._server.longest >= longest:
            client = Client(self._server.url)
            client.load(self._folder)
            return client
        self.close()
        context, rounded = context_length(model), -(-longest // ROUNDED_TO) * ROUNDED_TO
        longest = rounded if context is None else min(rounded, context)
        inner = unwrapped(model)
        server = start(
            self._folder,
            inner.config,
            self._runtime,
            longest=longest,
            dtype=compute_dtype(model),
            device=compute_device(model),
        )
        self._server, self._close = server, weakref.finalize(self, server.close)
        return Client(server.url)

    def _lost(self, error: ServerLostError, number: int) -> None:
        """Get ready for another try, if there is one.

        Raises:
            InputError: the server has never been there, or has ended over its very first round.
        """
        url = self._runtime.vllm.url
        if url and not self._was_reached:
            raise InputError(
                f"no vLLM server answers at runtime.vllm.url, {url} ({error}): start it as {REQUIRED}, or set "
                "runtime.vllm.url to null"
            )
        self.close()
        if not url and not self._has_answered:
            raise InputError(f"vLLM ended in the first round of sampling ({reason()}): {LOG} says more")
        logger.warning("the vLLM server was lost (%s), try %d of %d: the round is sampled again", error, number, TRIES)
        if url and number < TRIES:
            time.sleep(PAUSE)

    @torch.no_grad()
    def _check(self, client: Client, model: nn.Module, responses: Sequence[Response], temperature: float) -> None:
        """Compare the log-probabilities of some answers with those of the policy's own pass.

        Raises:
            InputError: the server serves other weights, or at another temperature.
        """
        batch = collate([response.row for response in responses], compute_device(model))
        expected = completion_log_probs(model, batch, temperature)[batch.completion_mask]
        if not expected.isfinite().all():
            return  # the policy has diverged, which the training loop says
        error = (expected - torch.cat([response.log_probs for response in responses])).abs().mean().item()
        bound = LARGEST_ERROR[compute_dtype(model)]
        if not error <= bound:
            raise InputError(
                f"the vLLM server at {client.url} serves other weights than the policy's: of {len(expected)} sampled "
                f"tokens its log-probabilities differ from the policy's by {error:.3g} nats on average, and rounding "
                f"explains at most {bound:g}: start it anew, as {REQUIRED}, with the dtype of runtime.precision, or "
                "set runtime.vllm.url to null"
            )
