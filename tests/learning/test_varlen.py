"""One call for all sequences of a packed row gives what the loop over them gives, outputs and gradients alike."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tasks.learning.batches import Trees, collate
from tasks.learning.models import attention, varlen
from tasks.learning.models.attention import attend
from tasks.learning.models.forward import is_packed, pack_if_exact
from tasks.learning.models.outputs import completion_log_probs
from tasks.learning.models.varlen import segments, varlen_precision
from tests.families import FAMILIES, ROWS, causal

Bounds = tuple[tuple[int, ...], ...]
CPU = torch.device("cpu")
TREES: dict[str, Bounds] = {
    "a prompt and its answer": ((0, 3, 9),),
    "rows that share no prompt": ((0, 2, 5), (5, 9, 10), (10, 11, 18)),
    "two answers": ((0, 3, 7, 12),),
    "one, two and five": ((0, 4, 6), (6, 8, 11, 17), (17, 20, 22, 23, 27, 28, 34)),
    "an empty answer": ((0, 3, 3, 8), (8, 10, 12, 12, 15)),
}


def varlen_in_plain_torch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """torch's varlen_attn by its documentation, sequence by sequence: the mask is aligned to the last query and key."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert enable_gqa == (query.shape[1] != key.shape[1])
    left, right = window_size
    outputs, longest = [], (0, 0)
    bounds = zip(
        *(bounds.tolist() for bounds in (cu_seq_q[:-1], cu_seq_q[1:], cu_seq_k[:-1], cu_seq_k[1:])), strict=True
    )
    for first, behind, first_key, behind_key in bounds:
        keys, values = (
            each[first_key:behind_key].repeat_interleave(query.shape[1] // key.shape[1], dim=1) for each in (key, value)
        )
        count, length = behind - first, behind_key - first_key
        longest = max(longest[0], count), max(longest[1], length)
        ahead = torch.arange(length) - (torch.arange(count)[:, None] + length - count)  # of the query's own place
        seen = (ahead <= right if right >= 0 else torch.ones_like(ahead, dtype=torch.bool)) & (
            ahead >= -left if left >= 0 else torch.ones_like(ahead, dtype=torch.bool)
        )
        products = torch.einsum("qhd,khd->hqk", query[first:behind], keys) * (scale or query.shape[2] ** -0.5)
        weights = products.masked_fill(~seen, -torch.inf).softmax(dim=-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, values))
    assert longest == (max_q, max_k)
    return torch.cat(outputs)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has `attend` make one call, in fp32 on a CPU, of what stands for torch's."""
    monkeypatch.setattr(attention, "varlen_precision", lambda query: query.dtype)
    monkeypatch.setattr(varlen, "varlen_attn", varlen_in_plain_torch)


def attended(trees: Bounds, heads: int, device: str = "cpu", dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """The output of 4 heads of queries on `heads` of keys and values, and all gradients."""
    torch.manual_seed(0)
    tokens = trees[-1][-1]
    query, key, value = (torch.randn(1, count, tokens, 16).to(device, dtype) for count in (4, heads, heads))
    parts = [part.requires_grad_() for part in (query, key, value)]
    output, _ = attend(nn.Identity(), query, key, value, None, trees=Trees(trees), **options)
    output.float().sin().sum().backward()
    return [output.detach(), *(part.grad for part in parts)]


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("trees", list(TREES.values()), ids=list(TREES))
def test_one_call_gives_what_the_loop_gives(
    trees: Bounds, heads: int, window: int | None, request: pytest.FixtureRequest
):
    options: dict[str, Any] = {"scaling": 0.3, "sliding_window": window}
    expected = attended(trees, heads, **options)
    request.getfixturevalue("at_once")
    for one, other in zip(attended(trees, heads, **options), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_a_model_reads_the_same_and_cuts_the_row_once(family: str, request: pytest.FixtureRequest):
    def read() -> list[Tensor]:
        policy = causal(FAMILIES[family])
        pack_if_exact(policy)
        assert is_packed(policy)
        log_probs = completion_log_probs(policy, collate(ROWS))
        log_probs.square().sum().backward()
        return [log_probs.detach(), *(weight.grad for weight in policy.parameters() if weight.grad is not None)]

    expected = read()
    request.getfixturevalue("at_once")
    segments.cache_clear()
    found = read()
    assert segments.cache_info().misses == 2  # of the rows that are tried out, and of these: not one a layer
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_row_is_cut_as_by_hand():
    cut = segments(Trees(((0, 2, 5, 6), (6, 7, 9))), CPU)
    # queries 0-4 and 5 and 6-8; 5 is a second completion, behind the prompt's keys 0 and 1
    assert cut.query_bounds.tolist() == [0, 5, 6, 9]
    assert cut.key_bounds.tolist() == [0, 5, 8, 11]
    assert cut.keys is not None
    assert cut.keys.tolist() == [0, 1, 2, 3, 4, 0, 1, 5, 6, 7, 8]
    assert (cut.most_queries, cut.most_keys) == (5, 5)
    assert segments(Trees(((0, 2, 5), (5, 6, 9))), CPU).keys is None  # nothing is shared, so nothing is gathered


@pytest.mark.parametrize(
    ("dtype", "width", "capability", "expected"),
    [
        (torch.bfloat16, 64, (9, 0), torch.bfloat16),
        (torch.float16, 256, (8, 0), torch.float16),
        (torch.float32, 64, (9, 0), None),
        (torch.bfloat16, 264, (9, 0), None),
        (torch.bfloat16, 60, (9, 0), None),
        (torch.bfloat16, 64, (7, 5), None),
    ],
)
def test_what_one_call_cannot_do_goes_to_the_loop(
    dtype: torch.dtype, width: int, capability: object, expected: object, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    with FakeTensorMode():
        query = torch.empty(1, 4, 5, width, dtype=dtype, device="cuda")
    assert varlen_precision(query) == expected
    assert varlen_precision(torch.empty(1, 4, 5, width, dtype=dtype)) is None  # on a CPU


def test_autocast_says_the_precision(monkeypatch: pytest.MonkeyPatch):
    """Rotated queries are fp32 under autocast, which casts for torch's own attention but not for this call."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _device: torch.bfloat16)
    with FakeTensorMode():
        assert varlen_precision(torch.empty(1, 4, 5, 64, device="cuda")) == torch.bfloat16


@pytest.mark.parametrize("trees", list(TREES.values()), ids=list(TREES))
def test_torch_takes_the_shapes_and_types_it_is_given(trees: Bounds, monkeypatch: pytest.MonkeyPatch):
    """The call itself, on tensors without content: it has no kernel for a CPU."""
    monkeypatch.setattr(attention, "varlen_precision", lambda _query: torch.bfloat16)
    segments.cache_clear()
    for each in attended(trees, 2, device="meta", dtype=torch.float32, sliding_window=3):
        assert each.shape in ((1, trees[-1][-1], 4, 16), (1, 4, trees[-1][-1], 16), (1, 2, trees[-1][-1], 16))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("trees", list(TREES.values()), ids=list(TREES))
def test_on_a_gpu(trees: Bounds, heads: int, window: int | None):
    expected = attended(trees, heads, sliding_window=window)
    for one, other in zip(attended(trees, heads, "cuda", torch.bfloat16, sliding_window=window), expected, strict=True):
        # bf16 keeps 8 bits: its steps are 2^-8 = .004 of a number, and a gradient sums a few
        torch.testing.assert_close(one.float().cpu(), other, atol=3e-2, rtol=3e-2)
