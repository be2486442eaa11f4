"""The arithmetic of the stages' memory: weights by hand, and what each setting takes away."""

import pytest

from tasks.learning.memory.stages import MemoryModel, Moment, RowLengths, Sharing, StageMemory
from tasks.settings.params import Params
from tests.learning.memory.shapes import SHAPE, settings, shape

LENGTHS, ALONE = RowLengths(64, 16), Sharing()
WIDTH, INNER, LAYERS, VOCABULARY = (
    SHAPE[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
)
# Of a layer: queries and outputs, keys and values of half as many heads, three of the feed-forward part.
LINEAR = LAYERS * (2 * WIDTH * WIDTH + 2 * WIDTH * WIDTH // 2 + 3 * WIDTH * INNER)
NORMS = (2 * LAYERS + 1) * WIDTH
EMBEDDINGS = VOCABULARY * WIDTH  # and as many in the head
ALL = LINEAR + NORMS + 2 * EMBEDDINGS
RANK = 8


def predicted(stage: str, params: Params, sharing: Sharing = ALONE, *, counts_passes: bool = False) -> StageMemory:
    model = MemoryModel(shape(), LENGTHS, on_gpu=False, counts_passes=counts_passes)
    return model.stage(stage, params, sharing)


def learning(stage: str, params: Params, sharing: Sharing = ALONE) -> Moment:
    return next(moment for moment in predicted(stage, params, sharing).moments if moment.name == "learn")


def test_training_all_weights_takes_16_bytes_each():
    moment = learning("sft", settings())
    assert moment == Moment("learn", 4 * ALL, 4 * ALL, 8 * ALL)


def test_under_adapters_in_bf16_the_base_takes_two_bytes_and_has_no_gradient():
    params = settings(lora={"rank": RANK}, runtime={"precision": "bf16"})
    # a + b of every linear layer: rank * (in + out)
    adapters = LAYERS * RANK * (2 * 2 * WIDTH + 2 * (WIDTH + WIDTH // 2) + 3 * (WIDTH + INNER))
    moment = learning("sft", params)
    frozen = 2 * (LINEAR + EMBEDDINGS) + 4 * (NORMS + EMBEDDINGS)  # the head is linear, the embeddings are not
    assert moment == Moment("learn", frozen + 4 * adapters, 4 * adapters, 8 * adapters)


@pytest.mark.parametrize(("kind", "bits"), [("nf4", 4.127), ("int8", 8.5)])
def test_a_quantised_base_takes_its_bits(kind: str, bits: float):
    runtime = {"precision": "bf16"}
    plain = learning("dpo", settings(lora={"rank": RANK}, runtime=runtime))
    quantised = learning("dpo", settings(lora={"rank": RANK, "quantize": kind}, runtime=runtime))
    assert plain.weights - quantised.weights == pytest.approx(LINEAR * (2 - bits / 8), rel=1e-3)


def test_moments_in_8_bits_take_two_bytes():
    moment = learning("sft", settings(runtime={"optimiser": "adamw_8bit"}))
    assert moment.optimiser == pytest.approx(2 * (1 + 4 / 256) * ALL, rel=0.01)  # norms keep 8 bytes
    assert moment.weights == 4 * ALL


def test_shards_are_a_part_each_and_with_offload_none():
    whole, shards = learning("sft", settings()), learning("sft", settings(), Sharing(4, is_sharded=True))
    for name in ("weights", "gradients", "optimiser"):
        assert getattr(shards, name) == getattr(whole, name) / 4
    assert shards.activations > 0  # a layer is gathered to run
    offloaded = learning("sft", settings(), Sharing(4, is_sharded=True, offloads=True))
    assert offloaded.resident == 0
    assert learning("sft", settings(), Sharing(4)) == whole  # each process has a copy


def test_ppo_holds_four_models_and_less_with_a_shared_critic_or_adapters():
    four = learning("ppo", settings())
    backbone = ALL - EMBEDDINGS + WIDTH  # a scalar head in the place of the other
    assert four.weights == 2 * 4 * ALL + 2 * 4 * backbone
    assert four.optimiser == 8 * (ALL + backbone)
    shared = learning("ppo", settings(ppo={"critic": "shared"}))
    assert four.weights - shared.weights == 4 * backbone
    adapted = learning("ppo", settings(lora={"rank": RANK}))
    assert adapted.weights < four.weights - 4 * ALL * 0.9  # no reference of its own


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_ppo_under_adapters_holds_one_base(quantize: str | None):
    def learning_with(*, critic: str = "separate", **runtime: object) -> Moment:
        lora = {"rank": RANK, "quantize": quantize}
        return learning("ppo", settings(lora=lora, ppo={"critic": critic}, runtime={"precision": "bf16", **runtime}))

    alone, four = learning_with(critic="shared"), learning_with()
    reward = LAYERS * RANK * (2 * 2 * WIDTH + 2 * (WIDTH + WIDTH // 2) + 3 * (WIDTH + INNER)) + WIDTH  # and a head
    # Of the critic its own adapters and those of the reward model, which the reward model has too.
    assert four.weights - alone.weights == 2 * 4 * reward
    compiled = learning_with(compile=True)
    assert compiled.weights - four.weights > LINEAR


def test_sampling_in_bf16_holds_a_copy_of_the_linear_layers():
    moments = {moment.name: moment for moment in predicted("ppo", settings(runtime={"precision": "bf16"})).moments}
    assert moments["sample"].weights - moments["learn"].weights == 2 * (LINEAR + EMBEDDINGS)


@pytest.mark.slow
def test_what_saves_activations_and_cache_is_counted():
    def activations(**runtime: object) -> int:
        params = settings(runtime=runtime)
        [moment] = [each for each in predicted("sft", params, counts_passes=True).moments if each.name == "learn"]
        return moment.activations

    plain = activations()
    assert activations(gradient_checkpointing=True) < 0.6 * plain
    assert activations(max_tokens_per_micro_batch=512) < 0.6 * plain
    [cache] = [moment.cache for moment in predicted("evaluate", settings(), counts_passes=True).moments if moment.cache]
    assert cache == 64 * 80 * 2 * LAYERS * WIDTH // 2 * 4  # 16 + 64 tokens, keys and values, fp32
