"""PPO as one writes it with transformers alone: `generate`, padded batches and all their logits; nothing is packed.

It has the advantages, losses, updates and random order of ours, so that from the same answers it learns the same.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from benchmarks.jobs import SEED, Clock, Job, described
from benchmarks.ours import ONLINE_EPSILON, rounds_of_prompts, settings_for
from benchmarks.workloads import PAD, SIZES, Texts
from tasks.data.encoding.tokens import Encoded, load_tokenizer
from tasks.learning.batches import epoch_order
from tasks.learning.ppo.advantages import estimate_advantages, kl_estimates, shaped_rewards, whiten
from tasks.learning.ppo.policy_gradient import Counts, policy_loss, value_loss
from tasks.learning.ppo.scoring import PPOModels
from tasks.learning.sampling.sampler import stop_tokens
from tasks.learning.seeds import seed_for
from tasks.settings.params import Ppo


class Padded(NamedTuple):
    """B answers in A columns, padded on the right, behind prompts padded on the left."""

    input_ids: Tensor  # (B, P + A)
    attention_mask: Tensor  # (B, P + A) long
    answers: Tensor  # (B, A) the last of the ids
    mask: Tensor  # (B, A) bool, the answers' tokens

    def take(self, rows: Tensor) -> "Padded":
        """Give some of the rows; the columns stay."""
        return Padded(*(field[rows] for field in self))


class Experience(NamedTuple):
    """What a round learns from; (B, A) each but for the scores (B,)."""

    log_probs: Tensor
    reference_log_probs: Tensor
    entropies: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    scores: Tensor


class PlainPPO:
    """The four models, and the three phases of a round."""

    def __init__(self, models: PPOModels, settings: Ppo, precision: str) -> None:
        self._models, self._settings, self._precision = models, settings, precision
        self._size = settings.rollouts // settings.num_minibatches  # answers in a forward pass
        assert models.reference is not None and models.critic is not None
        self._reference, self._learning = models.reference, {"policy": models.policy, "critic": models.critic}
        self._optimisers = {
            name: torch.optim.AdamW(model.parameters(), lr=rate, eps=ONLINE_EPSILON, weight_decay=0.0, fused=True)
            for (name, model), rate in zip(
                self._learning.items(), (settings.learning_rate, settings.critic_learning_rate), strict=True
            )
        }

    def sample(self, prompts: list[list[int]], seed: int) -> list[Encoded]:
        """Phase 1."""
        with self._autocast():
            return generated(self._models.policy, self._models.tokenizer, prompts, self._settings.max_new_tokens, seed)

    @torch.no_grad()
    def score(self, padded: Padded) -> Experience:
        """Phase 2: log-probabilities, values, scores, advantages."""
        parts = []
        for rows in torch.split(torch.arange(len(padded.mask)), self._size):
            part = padded.take(rows)
            distribution = self._distribution(self._models.policy, part)
            log_probs = of_tokens(distribution, part)
            entropies = torch.special.entr(distribution.exp()).sum(dim=-1)
            del distribution  # as large as all else together
            reference_log_probs = of_tokens(self._distribution(self._reference, part), part)
            values = self._head_outputs(self._learning["critic"], part)[:, -part.mask.shape[1] - 1 : -1]
            last = part.attention_mask.cumsum(dim=1).argmax(dim=1, keepdim=True)
            scores = self._head_outputs(self._models.reward, part).gather(1, last)[:, 0]
            parts.append((log_probs, reference_log_probs, entropies, values, scores))
        log_probs, references, entropies, values, scores = (torch.cat(column) for column in zip(*parts, strict=True))
        settings, mask = self._settings, padded.mask
        kl = kl_estimates(log_probs, references, mask, settings.kl_estimator)
        rewards = shaped_rewards(scores, kl, mask, settings.kl_coefficient)
        advantages, returns = estimate_advantages(rewards, values, mask, settings.gamma, settings.gae_lambda)
        return Experience(log_probs, references, entropies, values, whiten(advantages, mask), returns, scores)

    def steps(self, padded: Padded, found: Experience, iteration: int) -> Iterator[dict[str, float]]:
        """Phase 3: give the losses and gradient norms of every optimiser step."""
        settings, count = self._settings, len(padded.mask)
        for epoch in range(settings.epochs):
            order = torch.tensor(epoch_order(count, epoch, seed_for(SEED, "minibatches", iteration)))
            for rows in order.tensor_split(settings.num_minibatches):
                part, old = padded.take(rows), Experience(*(field[rows] for field in found))
                tokens = int(part.mask.sum())
                log_probs = of_tokens(self._distribution(self._models.policy, part), part)
                loss = policy_loss(
                    log_probs,
                    old.log_probs,
                    old.advantages,
                    part.mask,
                    counts=Counts(tokens, len(rows), settings.max_new_tokens),
                    clip=settings.clip,
                ).loss
                policy_norm = self._move("policy", loss)
                values = self._head_outputs(self._learning["critic"], part)[:, -part.mask.shape[1] - 1 : -1]
                error = value_loss(
                    values, old.values, old.returns, part.mask, token_count=tokens, clip=settings.value_clip
                ).loss
                critic_norm = self._move("critic", error)
                figures = loss.item(), error.item(), policy_norm, critic_norm
                names = ("policy_loss", "value_loss", "grad_norm_policy", "grad_norm_critic")
                yield dict(zip(names, figures, strict=True))

    def _move(self, name: str, loss: Tensor) -> float:
        self._optimisers[name].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = clip_grad_norm_(self._learning[name].parameters(), self._settings.max_grad_norm)
        self._optimisers[name].step()
        return float(norm)

    def _distribution(self, model: nn.Module, part: Padded) -> Tensor:
        """Log-probabilities (B, A, V) of all tokens at the places of the answers' tokens."""
        with self._autocast():
            logits = model(**inputs(part)).logits
        of_answers = logits[:, -part.mask.shape[1] - 1 : -1].float() / self._settings.temperature
        distribution: Tensor = of_answers.log_softmax(dim=-1)
        return distribution

    def _head_outputs(self, model: Any, part: Padded) -> Tensor:  # noqa: ANN401
        """The scalar at every place, (B, P + A)."""
        with self._autocast():
            states = model.base_model(**inputs(part)).last_hidden_state
        outputs: Tensor = model.score(states.float())[..., 0]
        return outputs

    def _autocast(self) -> torch.autocast:
        device = self._reference.device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self._precision == "bf16")


def inputs(part: Padded) -> dict[str, Any]:
    """What a model is called with."""
    position_ids = (part.attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    return {
        "input_ids": part.input_ids,
        "attention_mask": part.attention_mask,
        "position_ids": position_ids,
        "use_cache": False,
    }


def of_tokens(distribution: Tensor, part: Padded) -> Tensor:
    """Log-probabilities (B, A) of the answers' tokens, from those of all tokens (B, A, V)."""
    return distribution.gather(2, part.answers[:, :, None])[:, :, 0]


def padded(rows: list[Encoded], device: torch.device) -> Padded:
    """Lay answers behind their prompts."""

    def laid(lists: list[list[int]], side: str) -> tuple[Tensor, Tensor]:
        ids, ones = (
            [torch.tensor(each) for each in lists],
            [torch.ones(len(each), dtype=torch.long) for each in lists],
        )
        return tuple(  # type: ignore[return-value]
            pad_sequence(each, batch_first=True, padding_value=PAD, padding_side=side).to(device)
            for each in (ids, ones)
        )

    prompts, prompt_mask = laid([row.prompt for row in rows], "left")
    answers, answer_mask = laid([row.completion for row in rows], "right")
    input_ids, attention_mask = torch.cat([prompts, answers], dim=1), torch.cat([prompt_mask, answer_mask], dim=1)
    return Padded(input_ids, attention_mask, answers, answer_mask.bool())


@torch.no_grad()
def generated(model: Any, tokenizer: Any, prompts: list[list[int]], longest: int, seed: int) -> list[Encoded]:  # noqa: ANN401
    """Answer prompts by transformers' `generate` with its dynamic cache, all side by side, padded on the left."""
    torch.manual_seed(seed)
    given = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    found = model.generate(**given, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=longest)
    answers = found[:, given["input_ids"].shape[1] :]
    ends = torch.isin(answers, torch.tensor(stop_tokens(model, tokenizer), device=model.device))
    lengths = (ends.cumsum(dim=1) - ends.long() == 0).sum(dim=1).tolist()  # up to the first end, and the end
    return [
        Encoded(prompt, answer[:length])
        for prompt, answer, length in zip(prompts, answers.tolist(), lengths, strict=True)
    ]


def answers(job: Job, clock: Clock) -> None:
    """Sampling by `generate`."""
    model = load(AutoModelForCausalLM, job.folder)
    tokenizer, prompts = load_tokenizer(job.folder), Texts(SIZES[job.size], seed=3).prompts(job.answers)
    for step in range(job.all_steps):
        rows = generated(model, tokenizer, prompts, job.longest, seed=step)
        clock.record(answers=len(rows), tokens=sum(len(row.completion) for row in rows))


def online(job: Job, clock: Clock) -> None:
    """Rounds of PPO."""
    causal, scalar = AutoModelForCausalLM, AutoModelForSequenceClassification
    models = PPOModels(
        tokenizer=load_tokenizer(job.folder),
        policy=load(causal, job.folder),
        reference=load(causal, job.folder),
        critic=load(scalar, job.reward_folder),
        reward=load(scalar, job.reward_folder),
    )
    ppo = PlainPPO(models, settings_for(job).ppo, job.precision)
    for step, asked in enumerate(rounds_of_prompts(job), start=1):
        batch = padded(ppo.sample(asked, seed=step), device())
        found = ppo.score(batch)
        list(ppo.steps(batch, found, step))
        clock.record(
            **described(found.scores, found.log_probs - found.reference_log_probs, found.entropies, batch.mask)
        )


def load(kind: Any, folder: Path) -> Any:  # noqa: ANN401
    """Load a model where everything runs."""
    return kind.from_pretrained(folder, dtype=torch.float32).to(device()).eval()


def device() -> torch.device:
    """Where everything runs."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
