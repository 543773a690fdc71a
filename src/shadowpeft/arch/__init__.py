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
from shadowpeft.arch.lookup import (
    family_of,
    family_of_config,
    refuse_no_language_model,
    supported,
    takes_tokens_back,
    task_of,
)
from shadowpeft.arch.modules import (
    blocks_of,
    decoder_of,
    gradient_stop,
    has_plain_frozen_head,
    head_of,
    is_packed,
    logit_factor,
    logit_settings,
    logits,
    routers_of,
    set_implementations,
    softcap_of,
    token_embedding_of,
)
from shadowpeft.arch.multimodal import (
    MARKS_OF_IMAGES,
    NOT_TEXT,
    auto_class,
    multimodal_of,
    shadow_decoder,
    stock_decoder,
    text_config_of,
    text_model_of,
)
from shadowpeft.arch.norms import NormParts, input_norm_of, norm_parts, output_gains

__all__ = [
    "FAMILIES",
    "MARKS_OF_IMAGES",
    "NOT_TEXT",
    "Family",
    "NormParts",
    "Task",
    "auto_class",
    "blocks_of",
    "build",
    "context_of",
    "decoder_of",
    "depth_of",
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
    "multimodal_of",
    "needs_no_mask",
    "norm_parts",
    "output_gains",
    "refuse_no_language_model",
    "rope_switch_of",
    "routers_of",
    "set_implementations",
    "shadow_decoder",
    "shadow_model_config",
    "softcap_of",
    "stock_decoder",
    "supported",
    "takes_tokens_back",
    "task_of",
    "text_config_of",
    "text_model_of",
    "token_embedding_of",
    "wants_router_logits",
]
