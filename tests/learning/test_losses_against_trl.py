"""Losses and gradients of a tiny Llama equal TRL's on random batches."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tasks.data.encoding.tokens import Encoded
from tasks.dpo import StepCounts, pair_metrics
from tasks.learning.batches import Batch, collate
from tasks.learning.maths.losses import sft_loss
from tasks.learning.maths.pairs import PairValues, reward_loss
from tasks.learning.models.outputs import completion_log_probs, completion_scores
from tasks.learning.ppo.policy_gradient import Counts, policy_loss
from tasks.learning.reference_cache import item_logps
from tasks.settings.choices import PreferenceLoss
from tasks.settings.params import Dpo
from tests.conftest import MakeParams

TRL: Any = trl  # its public names are imported lazily, which no type checker can follow
TOLERANCE = 1e-5
QUIET: dict[str, Any] = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}
# TRL warns about its own defaults and about models without a padding token; neither touches the loss.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _without_determinism():
    """TRL's loss is compared, not its bytes; stages run before in this process ask torch for determinism."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(before)


def random_batch(seed: int, rows: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def ids(longest: int) -> list[int]:
        length = int(torch.randint(2, longest, (1,), generator=generator))
        return torch.randint(3, 300, (length,), generator=generator).tolist()

    return collate([Encoded(ids(12), ids(20)) for _ in range(rows)])


def causal(folder: Path, seed: int) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(seed)
    for weight in model.parameters():  # away from the initial weights, so that policies differ
        weight.data += 0.02 * torch.randn_like(weight)
    return model.eval()


def same_loss_and_gradient(ours: Callable[[nn.Module], Tensor], theirs: Callable[[nn.Module], Any], make: Any) -> None:
    results = []
    for loss_of in (ours, theirs):
        model = make()
        loss = loss_of(model)
        loss.backward()
        results.append((loss.detach(), {name: weight.grad for name, weight in model.named_parameters()}))
    (our_loss, our_gradients), (their_loss, their_gradients) = results
    assert our_loss.item() == pytest.approx(their_loss.item(), abs=TOLERANCE)
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], atol=TOLERANCE, rtol=TOLERANCE, msg=name)


def test_sft(tiny_model: Path, tmp_path: Path):
    batch = random_batch(1, 5)
    count = int(batch.completion_mask.sum())

    def theirs(model: nn.Module) -> Any:
        rows = Dataset.from_list([{"input_ids": [3, 4], "labels": [3, 4]}])
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        trainer = TRL.SFTTrainer(
            model, TRL.SFTConfig(str(tmp_path), **QUIET), train_dataset=rows, processing_class=tokenizer
        )
        labels = batch.input_ids.masked_fill(~batch.completion_mask, -100)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long(), "labels": labels}
        return trainer.compute_loss(model, inputs, num_items_in_batch=torch.tensor(count))

    def ours(model: nn.Module) -> Tensor:
        return sft_loss(completion_log_probs(model, batch), batch.completion_mask, count)

    same_loss_and_gradient(ours, theirs, lambda: causal(tiny_model, 0))


@pytest.mark.parametrize(("margins", "centering"), [(None, 0.0), (None, 0.01), ([0.3] * 4, 0.0), ([0.3] * 4, 0.05)])
def test_reward(tiny_model: Path, tmp_path: Path, margins: list[float] | None, centering: float):
    batch = random_batch(2, 8)

    def make() -> Any:
        torch.manual_seed(3)
        model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
        return model.eval()

    def theirs(model: nn.Module) -> Any:
        config = TRL.RewardConfig(str(tmp_path), center_rewards_coefficient=centering or None, **QUIET)
        rows = Dataset.from_list([{"chosen_ids": [3, 4], "rejected_ids": [5]}])
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        trainer = TRL.RewardTrainer(model, config, train_dataset=rows, processing_class=tokenizer)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long()}
        extra = {"margin": torch.tensor(margins)} if margins else {}
        return trainer.compute_loss(model, inputs | extra)

    def ours(model: nn.Module) -> Tensor:
        scores = PairValues(*completion_scores(model, batch).chunk(2))
        return reward_loss(scores, 4, margin=margins[0] if margins else 0.0, centering=centering)

    same_loss_and_gradient(ours, theirs, make)


@pytest.mark.parametrize(
    ("loss", "label_smoothing"),
    [("sigmoid", 0.0), ("hinge", 0.0), ("ipo", 0.0), ("robust", 0.1), ("sigmoid_norm", 0.0)],
)
def test_dpo(tiny_model: Path, tmp_path: Path, make_params: MakeParams, loss: PreferenceLoss, label_smoothing: float):
    batch = random_batch(4, 8)
    reference = causal(tiny_model, 1)
    settings: Dpo = make_params(dpo={"loss": loss, "label_smoothing": label_smoothing, "beta": 0.2}).dpo
    chosen_tokens = int(batch.completion_mask[:4].sum())

    def theirs(model: nn.Module) -> Any:
        config = TRL.DPOConfig(str(tmp_path), loss_type=[loss], label_smoothing=label_smoothing, beta=0.2, **QUIET)
        rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        trainer = TRL.DPOTrainer(model, reference, config, train_dataset=rows, processing_class=tokenizer)
        inputs = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask.long(),
            "completion_mask": batch.completion_mask.long(),
        }
        return trainer.compute_loss(model, inputs)

    def ours(model: nn.Module) -> Tensor:
        with torch.no_grad():
            held_to = PairValues(*item_logps(reference, batch, 2))
        tokens = PairValues(*batch.completion_mask.sum(dim=1).chunk(2))
        return pair_metrics(
            PairValues(*item_logps(model, batch, 2)), held_to, tokens, StepCounts(4, chosen_tokens, 4.0), settings
        ).loss

    same_loss_and_gradient(ours, theirs, lambda: causal(tiny_model, 0))


POLICY_LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo as published": ({"aggregation": "sequence"}, {"loss_type": "grpo"}),
    "dapo": ({"aggregation": "token", "clip_high": 0.4}, {"loss_type": "dapo", "epsilon_high": 0.4}),
    "dr_grpo": ({"aggregation": "constant"}, {"loss_type": "dr_grpo"}),
    "dual clip": ({"aggregation": "token", "dual_clip": 1.5}, {"loss_type": "dapo", "delta": 1.5}),
    "gspo": (
        {"kind": "gspo", "aggregation": "sequence"},
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    ),
    # TRL's bound of cispo is the ratio itself, and there is none below
    "cispo": ({"kind": "cispo", "clip": 1.0, "clip_high": 0.3}, {"loss_type": "cispo", "epsilon_high": 1.3}),
}


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_policy_losses(name: str):
    options, theirs = POLICY_LOSSES[name]
    draw = torch.Generator().manual_seed(5)
    start, moved = -3 * torch.rand(4, 9, generator=draw), 0.5 * torch.randn(4, 9, generator=draw)
    advantages = torch.randn(4, generator=draw)
    mask = torch.arange(9) < torch.tensor([[9], [1], [4], [6]])

    def of_trl(log_probs: Tensor) -> Any:
        settings = {
            "model": nn.Identity().eval(),
            "epsilon_low": 0.2,
            "epsilon_high": 0.2,
            "importance_sampling_level": "token",
            "beta": 0.0,
            "top_entropy_quantile": 1.0,
            "off_policy_mask_threshold": None,
            "use_vllm": False,
            "aux_loss_enabled": False,
            "_entropy_bonus_enabled": False,
            "max_completion_length": 12,
            "args": SimpleNamespace(delta=theirs.get("delta")),
            "accelerator": SimpleNamespace(num_processes=1, gather=lambda it: it, reduce=lambda it, **_: it),
            "_metrics": {"eval": defaultdict(list)},
            "_get_per_token_logps_and_entropies": lambda *_, **__: (log_probs, torch.zeros(4, 9), None),
        }
        inputs = {
            "prompt_ids": torch.zeros(4, 0),
            "prompt_mask": torch.zeros(4, 0),
            "completion_ids": torch.zeros(4, 9),
            "completion_mask": mask.long(),
            "advantages": advantages,
            "old_per_token_logps": start,
            "num_items_in_batch": mask.sum(),
        }
        return TRL.GRPOTrainer._compute_loss(SimpleNamespace(**settings | theirs), None, inputs)

    def of_ours(log_probs: Tensor) -> Tensor:
        counts = Counts(int(mask.sum()), answers=4, max_new_tokens=12)
        return policy_loss(
            log_probs, start, advantages[:, None].expand(4, 9), mask, counts=counts, **{"clip": 0.2} | options
        ).loss

    results = []
    for loss_of in (of_ours, of_trl):
        leaf = (start + moved).requires_grad_()
        loss = loss_of(leaf)
        loss.backward()
        results.append((loss.item(), leaf.grad))
    assert results[0][0] == pytest.approx(results[1][0], abs=TOLERANCE)
    torch.testing.assert_close(results[0][1], results[1][1], atol=TOLERANCE, rtol=TOLERANCE)
