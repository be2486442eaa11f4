"""A last step after which a model gives no numbers stops with a sentence, and nothing is written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.common.errors import InputError
from tasks.common.files import MODELS
from tasks.data.encoding.tokens import load_tokenizer
from tasks.dpo import dpo
from tasks.learning.models.loading import new_reward_model, normalise_scores
from tasks.learning.models.saving import save_model
from tasks.ppo import ppo
from tasks.reward import reward
from tasks.settings.params import Params
from tasks.settings.section import LARGEST
from tasks.sft import sft
from tests.conftest import MakeParams

ONE_STEP = {"learning_rate": float(LARGEST), "epochs": 1, "batch_size": 1000}
ONE_ROUND = {"iterations": 1, "rollouts": 4, "num_minibatches": 1, "epochs": 1, "max_new_tokens": 5, "critic_warmup": 0}


@pytest.mark.parametrize("stage", [sft, reward, dpo, ppo])
@pytest.mark.usefixtures("workspace", "noted_run")
def test_a_model_that_gives_no_numbers_is_not_published(stage: Callable[[Params], None], make_params: MakeParams):
    settings = {
        "sft": ONE_STEP,
        "reward": ONE_STEP,
        "dpo": ONE_STEP,
        "ppo": {**ONE_ROUND, "learning_rate": float(LARGEST)},
    }
    params = make_params(**settings)
    if stage is ppo:
        model = new_reward_model(MODELS / "sft", params)
        normalise_scores(model, 0.1, 2.0)
        save_model(model, load_tokenizer(MODELS / "sft"), MODELS / "reward")
    before = sorted(Path().rglob("metrics/*"))
    with pytest.raises(InputError, match=r"training stopped at step 1: the .+ is (nan|-?inf); .*lower the"):
        stage(params)
    assert sorted(Path().rglob("metrics/*")) == before
