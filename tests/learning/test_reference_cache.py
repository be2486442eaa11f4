"""The reference's log-probabilities: computed once, found again by their content alone, and never where damaged."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from tasks.common.files import MODELS
from tasks.data.encoding.tokens import Encoded, EncodedPair
from tasks.dpo import dpo
from tasks.learning import reference_cache
from tasks.learning.models.forward import set_compute_dtype
from tasks.learning.models.loading import load_policy, set_up
from tasks.learning.processes import MicroBatch
from tasks.learning.reference_cache import FOLDER, MAX_ENTRIES, ReferenceCache
from tasks.settings.params import Params
from tests.conftest import MakeParams, NotedRun, output_hashes
from tests.learning.test_supervised import Killed, killed_after
from tests.test_sft import read_curve

pytestmark = pytest.mark.usefixtures("workspace")

PAIRS = [
    EncodedPair(Encoded([5, 6], [7, 2]), Encoded([5, 6], [8, 9, 2])),
    EncodedPair(Encoded([4], [4, 4, 2]), Encoded([4], [2])),
    EncodedPair(Encoded([9, 9, 9], [3, 2]), Encoded([9, 9, 9], [2])),
]
GROUPS = [MicroBatch([2, 0]), MicroBatch([1])]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The titles of what was computed, one for each time."""
    titles: list[str] = []
    compute = reference_cache.all_logps

    def noting(*args, title: str) -> Tensor:
        titles.append(title)
        return compute(*args, title=title)

    monkeypatch.setattr(reference_cache, "all_logps", noting)
    return titles


@pytest.fixture
def policy(params: Params) -> nn.Module:
    set_up(params)
    return load_policy(MODELS / "sft", params, trainable=False)


def ask(
    policy: nn.Module, pairs: Sequence[EncodedPair] = PAIRS, groups: Sequence[MicroBatch] = GROUPS
) -> list[torch.Tensor]:
    return list(ReferenceCache(MODELS / "sft").logps(policy, pairs, groups, title="reference"))


def test_they_are_the_sums_over_the_answers_tokens(policy: nn.Module):
    found = ask(policy)
    for which, values in enumerate(found):
        for pair, value in zip(PAIRS, values, strict=True):
            row = pair[which]
            log_probs = policy(torch.tensor([row.prompt + row.completion])).logits[0].log_softmax(dim=-1)
            places = range(len(row.prompt), row.length)
            expected = sum(log_probs[place - 1, (row.prompt + row.completion)[place]].item() for place in places)
            assert value.item() == pytest.approx(expected, abs=1e-5)


def test_what_was_computed_is_found_to_the_bit(policy: nn.Module, computed: list[str]):
    first, again = ask(policy), ask(policy)
    assert len(computed) == 1
    assert all(one.equal(other) for one, other in zip(first, again, strict=True))


def test_everything_that_the_bits_follow_from_is_in_the_key(
    policy: nn.Module, computed: list[str], monkeypatch: pytest.MonkeyPatch
):
    ask(policy)
    ask(policy, groups=[MicroBatch([0, 2]), MicroBatch([1])])  # another order within a pass
    ask(policy, groups=[MicroBatch([2]), MicroBatch([0]), MicroBatch([1])])
    ask(policy, pairs=[*PAIRS[:2], PAIRS[2]._replace(rejected=Encoded([9, 9, 9], [3]))])
    ask(policy, pairs=[*PAIRS[:2], PAIRS[2]._replace(rejected=Encoded([9, 9], [9, 2]))])  # the same ids, cut elsewhere
    ask(policy, pairs=[EncodedPair(pair.rejected, pair.chosen) for pair in PAIRS])
    assert len(computed) == 6

    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 3)
        ask(policy)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "another")
        ask(policy)
    set_compute_dtype(policy, torch.bfloat16)
    ask(policy)
    set_compute_dtype(policy, torch.float32)
    assert len(computed) == 9

    ReferenceCache(MODELS / "sft", are_compiled=True).logps(policy, PAIRS, GROUPS, title="reference")
    ReferenceCache(MODELS / "base").logps(
        policy, PAIRS, GROUPS, title="reference"
    )  # another name counts as another model
    weights = MODELS / "sft/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    ask(policy)
    assert len(computed) == 12


@pytest.mark.parametrize("damage", ["cut", "flipped", "swapped", "empty"])
def test_a_damaged_entry_is_computed_again(damage: str, policy: nn.Module, computed: list[str], caplog):
    first = ask(policy)
    [entry] = FOLDER.iterdir()
    whole = entry.read_bytes()
    match damage:
        case "cut":
            entry.write_bytes(whole[:-4])
        case "flipped":  # a bit of the last number, which stays one
            entry.write_bytes(whole[:-4] + bytes([whole[-4] ^ 1]) + whole[-3:])
        case "swapped":  # with a whole entry of other pairs, as many
            ask(policy, pairs=PAIRS[::-1])
            [other] = set(FOLDER.iterdir()) - {entry}
            other.replace(entry)
            computed.pop()
        case _:
            entry.write_bytes(b"")
    again = ask(policy)
    assert all(one.equal(other) for one, other in zip(first, again, strict=True))
    assert len(computed) == 2
    assert caplog.messages == [f"{entry} is damaged: computed again"]
    assert entry.read_bytes() == whole


def test_a_flipped_bit_anywhere_in_an_entry_gives_no_other_values(policy: nn.Module):
    first = ask(policy)
    [entry] = FOLDER.iterdir()
    whole = entry.read_bytes()
    for place in range(len(whole)):
        entry.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        for values in reference_cache._read(entry, entry.stem):
            assert all(one.equal(other) for one, other in zip(values, first, strict=True)), place


def test_the_entries_used_last_stay(policy: nn.Module, computed: list[str]):
    ask(policy)
    [first] = FOLDER.iterdir()
    (FOLDER / ".killed").mkdir()  # what kill -9 leaves in the middle of a write
    for number in range(MAX_ENTRIES):
        ask(policy, pairs=[PAIRS[0]] * (number + 1), groups=[MicroBatch([*range(number + 1)])])
        ask(policy)  # used in between
    assert len(computed) == 1 + MAX_ENTRIES
    assert len(list(FOLDER.iterdir())) == MAX_ENTRIES
    assert first.exists()
    assert not (FOLDER / ".killed").exists()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_dpo_ends_with_the_same_bytes_whether_it_computes_or_finds_them(
    precision: str, make_params: MakeParams, noted_run: NotedRun, computed: list[str]
):
    params = make_params(runtime={"precision": precision})
    dpo(params)
    assert computed == ["dpo: reference"] * 2  # of the training and of the held-out pairs
    first = output_hashes("dpo")
    dpo(params)
    dpo(make_params(runtime={"precision": precision}, dpo={"beta": 0.2}))  # the reference knows nothing of beta
    assert len(computed) == 2
    dpo(params)
    assert output_hashes("dpo") == first


def test_a_resumed_run_computes_nothing_twice(
    params: Params, noted_run: NotedRun, computed: list[str], monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        killed_after(4, patch)
        with pytest.raises(Killed):
            dpo(params)
    assert len(computed) == 2
    dpo(params)
    assert len(computed) == 2


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_new_adapters_add_exactly_nothing_to_the_reference(
    precision: str, make_params: MakeParams, noted_run: NotedRun, computed: list[str]
):
    dpo(make_params(runtime={"precision": precision}))
    dpo(make_params(runtime={"precision": precision}, lora={"rank": 4}))
    assert len(computed) == 2
    first = read_curve("dpo")[0]
    assert first["rewards_chosen"] == first["rewards_rejected"] == 0.0
