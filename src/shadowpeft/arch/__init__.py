"""All that is known of model layouts: no other folder looks inside a transformers model.

Imports `config` and `errors` alone. To add a family, add a row to the table in `arch/families.py` and a tiny
configuration to `tests/helpers/families.py`; `docs/develop/add-a-family.md` shows each step.
"""

from shadowpeft.arch.configs import (
    build,
    context_of,
    depth_of,
    make_shadow,
    mlp_width,
    needs_no_mask,
    rope_switch_of,
    shadow_model_config,
    wants_router_logits,
)
from shadowpeft.arch.families import FAMILIES
from shadowpeft.arch.family import Family, Task
from shadowpeft.arch.lookup import family_of, family_of_config, supported, task_of
from shadowpeft.arch.modules import (
    blocks_of,
    decoder_of,
    device_map_of,
    gradient_stop,
    has_plain_frozen_head,
    head_of,
    is_packed,
    logit_factor,
    logit_settings,
    logits,
    routers_of,
    softcap_of,
    token_embedding_of,
)
from shadowpeft.arch.norms import NormParts, input_norm_of, norm_parts, output_gains

__all__ = [
    "FAMILIES",
    "Family",
    "NormParts",
    "Task",
    "blocks_of",
    "build",
    "context_of",
    "decoder_of",
    "depth_of",
    "device_map_of",
    "family_of",
    "family_of_config",
    "gradient_stop",
    "has_plain_frozen_head",
    "head_of",
    "input_norm_of",
    "is_packed",
    "logit_factor",
    "logit_settings",
    "logits",
    "make_shadow",
    "mlp_width",
    "needs_no_mask",
    "norm_parts",
    "output_gains",
    "rope_switch_of",
    "routers_of",
    "shadow_model_config",
    "softcap_of",
    "supported",
    "task_of",
    "token_embedding_of",
    "wants_router_logits",
]
