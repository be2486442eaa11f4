"""Settings that choose by name: each list of names stands here alone."""

from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
Quantisation = Literal["nf4", "int8"]
Precision = Literal["fp32", "tf32", "bf16"]
WeightsDtype = Literal["fp32", "bf16"]
OutputDtype = Literal["base", "fp32", "bf16"]
OptimiserName = Literal["adamw", "adamw_8bit"]
Schedule = Literal["linear", "cosine", "constant"]
PreferenceLoss = Literal["sigmoid", "hinge", "ipo", "robust", "sigmoid_norm", "simpo"]
RatedLoss = Literal["kto", "apo_zero"]
Estimator = Literal["gae", "rloo", "grpo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"]
PolicyLossName = Literal["clip", "gspo", "cispo"]
Aggregation = Literal["token", "sequence", "constant"]
Combination = Literal["sum", "normalise_then_sum"]
Overlong = Literal["keep", "mask"]
RolloutCorrection = Literal["none", "token", "sequence", "mask"]
Critic = Literal["separate", "shared"]
Engine = Literal["builtin", "continuous", "vllm"]
KLEstimator = Literal["k1", "k2", "k3"]
Pooling = Literal["last", "mean"]  # what of an answer a reward model's head reads
Truncate = Literal["prompt_start", "answer_end"]  # what a row that is too long loses
HeadInit = Literal["random", "fit"]
EventKind = Literal["promoted", "refused", "held", "rolled_back", "failed", "stuck", "recovered", "stale"]
