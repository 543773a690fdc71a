"""The methods of PEFT as a study builds them: LoRA, DoRA and PEFT's own Shadow."""

import warnings
from collections.abc import Mapping
from typing import Any

from peft import LoraConfig, get_peft_model
from peft import ShadowConfig as PeftShadowConfig
from transformers import PreTrainedModel

from shadowpeft.arch.versions import bridge_former_cache_name

PEFT_METHODS = ("lora", "dora", "peft-shadow")


def peft_config(method: str, settings: Mapping[str, Any], classifies: bool) -> LoraConfig | PeftShadowConfig:
    """Return PEFT's configuration of a method; LoRA and DoRA adapt all linear layers by default."""
    task_type = "SEQ_CLS" if classifies else "CAUSAL_LM"
    if method == "peft-shadow":
        return PeftShadowConfig(task_type=task_type, **settings)
    defaults = {"task_type": task_type, "target_modules": "all-linear", "use_dora": method == "dora"}
    return LoraConfig(**{**defaults, **settings})


def peft_model(base: PreTrainedModel, config: LoraConfig | PeftShadowConfig, **options: Any) -> Any:
    """Put a method of PEFT on a base; the options are those of `peft.get_peft_model`."""
    with warnings.catch_warnings():
        # PEFT finds out by itself that GPT-2 stores its weights transposed, and says so.
        warnings.filterwarnings("ignore", "fan_in_fan_out", UserWarning)
        # PEFT asks transformers by a deprecated name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        model = get_peft_model(base, config, **options)
    if isinstance(config, PeftShadowConfig):
        bridge_former_cache_name(base, model.base_model.shadow_backbone["default"])
    return model
