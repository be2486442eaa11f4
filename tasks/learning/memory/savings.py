"""Which settings would make a run fit: the least of the changes that save memory, tried by arithmetic."""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import combinations
from typing import NamedTuple

from tasks.learning.memory.stages import Sharing
from tasks.settings.params import Params

RANK = 16  # of the adapters that are proposed
LEAST_SEQUENCES = 8
FSDP, FSDP_OFFLOAD = "infra/accelerate/fsdp.yaml", "infra/accelerate/fsdp_offload.yaml"


class Plan(NamedTuple):
    """Settings, how processes share the models, and what was changed to get there, as KEY=VALUE."""

    params: Params
    sharing: Sharing
    on_gpu: bool  # processes of a CPU share its memory: sharding and offloading save none
    changes: tuple[str, ...] = ()


class Change(NamedTuple):
    """A change that saves memory; it gives None where it changes nothing."""

    cost: int  # how much else it changes: rounding and speed 1 to 4, what is learned from 5 on
    apply: Callable[[Plan], Plan | None]


def least_change(plan: Plan, fits: Callable[[Plan], bool]) -> Plan | None:
    """Find the changed plan that fits and costs least; None: not even all changes together suffice."""
    possible = [change for change in CHANGES if change.apply(plan) is not None]
    extremes = ([change for change in possible if change.apply not in left_out] for left_out in EXCLUDING)
    if not any(fits(_changed(plan, extreme)) for extreme in extremes):
        return None
    return next(changed for chosen in _by_cost(possible) if fits(changed := _changed(plan, chosen)))


def _by_cost(changes: Sequence[Change]) -> Iterator[tuple[Change, ...]]:
    every = [chosen for count in range(1, len(changes) + 1) for chosen in combinations(changes, count)]
    yield from sorted(every, key=lambda chosen: sum(change.cost for change in chosen))


def _changed(plan: Plan, changes: Sequence[Change]) -> Plan:
    return reduce(lambda found, change: change.apply(found) or found, changes, plan)


def _set(plan: Plan, section: str, **values: bool | int | str) -> Plan | None:
    """Change settings of a section; None where they are so already."""
    before = getattr(plan.params, section)
    values = {name: value for name, value in values.items() if getattr(before, name) != value}
    if not values:
        return None
    params = plan.params.model_copy(update={section: before.model_copy(update=values)})
    return plan._replace(
        params=params,
        changes=(*plan.changes, *(f"{section}.{name}={_written(value)}" for name, value in values.items())),
    )


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _fewer_sequences(plan: Plan) -> Plan | None:
    most = plan.params.runtime.max_concurrent_sequences
    return _set(plan, "runtime", max_concurrent_sequences=max(most // 4, min(most, LEAST_SEQUENCES)))


def _smaller_micro_batches(plan: Plan) -> Plan | None:
    tokens = plan.params.runtime.max_tokens_per_micro_batch
    return _set(plan, "runtime", max_tokens_per_micro_batch=max(1, tokens // 4))


def _checkpointing(plan: Plan) -> Plan | None:
    return None if plan.params.runtime.compile else _set(plan, "runtime", gradient_checkpointing=True)


def _sharding(plan: Plan) -> Plan | None:
    if not plan.on_gpu or plan.sharing.is_sharded or plan.sharing.processes == 1 or _is_lean(plan):
        return None
    return _launched(plan, FSDP, plan.sharing._replace(is_sharded=True))


def _offloading(plan: Plan) -> Plan | None:
    if not plan.on_gpu or plan.sharing.offloads or _is_lean(plan):
        return None
    others = tuple(change for change in plan.changes if FSDP not in change)
    return _launched(plan._replace(changes=others), FSDP_OFFLOAD, plan.sharing._replace(is_sharded=True, offloads=True))


def _is_lean(plan: Plan) -> bool:
    """Whether numbers of fewer bits keep a model from being sharded."""
    runtime = plan.params.runtime
    return bool(plan.params.lora.quantize) or runtime.weights == "bf16" or runtime.optimiser != "adamw"


def _launched(plan: Plan, file: str, sharing: Sharing) -> Plan:
    command = f"accelerate launch --config_file {file} --num_processes {sharing.processes} -m"
    return plan._replace(sharing=sharing, changes=(*plan.changes, f"'runtime.launcher={command}'"))


def _shared_critic(plan: Plan) -> Plan | None:
    settings = plan.params.ppo
    return _set(plan, "ppo", critic="shared") if settings.estimator == "gae" else None


def _adapters(plan: Plan) -> Plan | None:
    return None if plan.params.lora.rank else _set(plan, "lora", rank=RANK)


def _quantised(plan: Plan) -> Plan | None:
    if plan.sharing.is_sharded or plan.params.lora.quantize:
        return None
    return _set(plan, "lora", rank=plan.params.lora.rank or RANK, quantize="nf4")


def _lean_moments(plan: Plan) -> Plan | None:
    if plan.sharing.is_sharded or plan.params.lora.rank:  # of adapters they are small
        return None
    return _set(plan, "runtime", optimiser="adamw_8bit")


CHANGES = (
    Change(1, _fewer_sequences),
    Change(1, _checkpointing),
    Change(1, _smaller_micro_batches),
    Change(8, _quantised),
    Change(5, _lean_moments),
    Change(2, _sharding),
    Change(3, lambda plan: _set(plan, "runtime", precision="bf16")),
    Change(4, _offloading),
    Change(6, _adapters),
    Change(7, _shared_critic),
)
# Some changes exclude others: all that can be done together is all but these.
EXCLUDING = ((), (_quantised, _lean_moments), (_quantised, _adapters, _sharding, _offloading))
