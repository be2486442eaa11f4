"""A reward function of which every process scores a share of the answers."""

from tasks.learning import processes
from tasks.rewards.answered import Answered, Reward


class SharedReward:
    """A reward whose scores each process computes of every n-th answer; all get all."""

    def __init__(self, reward: Reward) -> None:
        """Share a reward."""
        self._reward = reward

    @property
    def name(self) -> str:
        """The name under which its scores are reported."""
        return self._reward.name

    def __call__(self, answered: Answered) -> list[float]:
        """Score the answers: (n,)."""
        places = range(processes.rank(), len(answered), processes.world_size())
        own = self._reward(answered.take(places)) if places else []
        return [score for _, score in sorted(processes.gathered([*zip(places, own, strict=True)]))]
