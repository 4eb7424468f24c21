"""Rule M in families of all kinds: what all-linear means, that all of it is trained, and that plain PEFT reads it."""

from pathlib import Path

import pytest
import torch
from finetune_api.training import Lora
from finetune_trainer.adapter import attach_adapter
from finetune_trainer.artifact import write_adapter
from finetune_trainer.loss import LossModel
from finetune_trainer.model import bare
from finetune_trainer.optimizer import trained_parameters
from finetune_trainer.pack import padded_batch
from finetune_trainer.targets import resolve_targets
from peft import PeftModel
from transformers import AutoModelForCausalLM, JetMoeConfig, PreTrainedConfig, Qwen2MoeConfig

from tests.trainer.decoders import COMMON, EXPERTS, FAMILIES, a_decoder, some_rows

IDS = torch.tensor([[5, 9, 3, 22, 17, 8, 40]])

FALCON = ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"]
GATED = ["down_proj", "gate_proj", "up_proj"]
ATTENTION = ["k_proj", "o_proj", "q_proj", "v_proj"]

ALL_LINEAR = {
    **dict.fromkeys(("llama", "qwen3", "mistral", "gemma2"), sorted(ATTENTION + GATED)),
    **dict.fromkeys(("falcon", "falcon-alibi", "bloom"), FALCON),
    "phi": ["dense", "fc1", "fc2", "k_proj", "q_proj", "v_proj"],
    "gpt2": ["c_attn", "c_fc", "c_proj"],
    "opt": ["fc1", "fc2", "k_proj", "out_proj", "q_proj", "v_proj"],
    "qwen3-moe": ATTENTION,
    "mamba": ["in_proj", "x_proj"],
    "jamba": sorted([*ATTENTION, *GATED, "in_proj", "out_proj", "x_proj"]),
}
"""Without head, routers, Mamba's out_proj (PEFT forbids it) and dt_proj (the model reads its weight past the layer)."""

JETMOE = JetMoeConfig(**COMMON, num_local_experts=4, kv_channels=8)
QWEN2_MOE = Qwen2MoeConfig(**COMMON, **EXPERTS, shared_expert_intermediate_size=24)

FUSED_EXPERTS = ["experts.down_proj", "experts.gate_up_proj"]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_is_every_linear_layer_and_fused_expert_weight_but_head_and_router(family: str) -> None:
    found = resolve_targets(a_decoder(family), Lora())
    assert found.modules == ALL_LINEAR[family]
    assert found.parameters == (FUSED_EXPERTS if family in ("qwen3-moe", "jamba") else [])
    assert found.warnings == []


def train_a_little(model: PeftModel, steps: int = 3) -> None:
    batch = padded_batch(some_rows(), range(5))
    loss_model, optimizer = LossModel(bare(model), True), torch.optim.SGD(trained_parameters(model), lr=1.0)
    for _ in range(steps):
        loss_model(batch).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("family", FAMILIES)
def test_three_steps_change_every_trained_tensor_and_no_other_and_plain_peft_loads_the_adapter(
    family: str, tmp_path: Path
) -> None:
    tuned = attach_adapter(a_decoder(family), Lora(rank=4), seed=0)
    before = {name: parameter.detach().clone() for name, parameter in tuned.named_parameters()}
    train_a_little(tuned)
    changed = {name for name, parameter in tuned.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name, parameter in tuned.named_parameters() if parameter.requires_grad} != set()
    write_adapter(tuned, tmp_path, "base", None)
    loaded = PeftModel.from_pretrained(a_decoder(family), str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(input_ids=IDS).logits, tuned.eval()(input_ids=IDS).logits)


@pytest.mark.parametrize("names", [["experts.gate_up_proj", "q_proj"], [r"regex:.*\.(gate_up_proj|q_proj)"]])
def test_fused_expert_weights_are_named_like_modules(names: list[str]) -> None:
    found = resolve_targets(a_decoder("qwen3-moe"), Lora(target_modules=names))
    assert (found.modules, found.parameters) == (["q_proj"], ["experts.gate_up_proj"])


@pytest.mark.parametrize(("field", "value"), [("dropout", 0.1), ("dora", True)])
def test_experts_that_peft_cannot_adapt_are_left_out_and_it_says_so(field: str, value: object) -> None:
    found = resolve_targets(a_decoder("qwen3-moe"), Lora(**{field: value}))
    assert (found.modules, found.parameters) == (ATTENTION, [])
    (warning,) = found.warnings
    # 2 layers of 4 experts with 3 matrices of 32 x 24, beside attention of 2 x 3,072.
    assert f"method.lora.{field}: the fused expert weights, 75 % of what targetModules names" in warning


def test_a_dense_layer_beside_experts_is_left_out_where_peft_takes_its_names_for_theirs() -> None:
    found = resolve_targets(a_decoder("qwen3-moe", mlp_only_layers=[0]), Lora())
    assert (found.modules, found.parameters) == (ATTENTION, FUSED_EXPERTS)
    assert "3 linear modules called 'down_proj', 'gate_proj', 'up_proj'" in found.warnings[0]


@pytest.mark.parametrize("config", [JETMOE, QWEN2_MOE])
def test_a_router_that_is_a_linear_layer_is_no_target(config: PreTrainedConfig) -> None:
    model = AutoModelForCausalLM.from_config(config)
    routers = [
        path
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module.out_features in (1, 4)
    ]
    found = resolve_targets(model, Lora()).modules
    assert routers
    assert found
    assert not [path for path in routers for name in found if path.endswith(name)]


def test_the_router_loss_is_off_also_where_the_models_config_turns_it_on() -> None:
    quiet, loud = (a_decoder("qwen3-moe", output_router_logits=on, router_aux_loss_coef=100.0) for on in (False, True))
    batch = padded_batch(some_rows(), range(5))
    for plain_head in (True, False):
        assert torch.equal(LossModel(quiet, plain_head)(batch), LossModel(loud, plain_head)(batch))


def test_experts_are_counted() -> None:
    from finetune_trainer.targets import expert_count

    assert expert_count(a_decoder("qwen3-moe")) == EXPERTS["num_experts"]
    assert expert_count(a_decoder("llama")) is None
