"""What is known of a base before its weights are loaded: configurations and tokenizer.

Every command that loads a base looks at it here first. What does not fit is refused before minutes of work.
"""

from typing import TYPE_CHECKING, NamedTuple

from shadowpeft import arch
from shadowpeft.errors import ConfigError
from shadowpeft.model import sources
from shadowpeft.storage import stock_models

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


class Preflight(NamedTuple):
    """A base and the shadow beside it, as far as their small files describe them.

    Attributes:
        config: the base's configuration.
        tokenizer: the base's tokenizer.
        shadow: configuration of the decoder that the shadow is made from; the base's own for a random shadow.
    """

    config: "PretrainedConfig"
    tokenizer: "PreTrainedTokenizerBase"
    shadow: "PretrainedConfig"

    @property
    def positions(self) -> int | None:
        """The positions that base and shadow both take; `None` for no limit."""
        limits = (arch.context_of(self.config), arch.context_of(self.shadow))
        return min((limit for limit in limits if limit is not None), default=None)


def inspect(
    model: str, shadow_model: str | None = None, *, needs_family: bool, needs_packing: bool = False
) -> Preflight:
    """Read the small files of a base, and of what its shadow starts from.

    Args:
        model: folder or hub id of the base.
        shadow_model: folder or hub id that the shadow starts from; `None` for a random shadow, or for none.
        needs_family: refuse a base of a family that `arch` does not list.
        needs_packing: refuse a base or shadow that would let the documents of a packed row see each other.

    Raises:
        UnsupportedModelError: the base's family is not supported and `needs_family` is true.
        ConfigError: the tokens of `shadow_model` are not the base's, or a family cannot be packed.
        UserError: a model, folder or tokenizer cannot be read or reached.
    """
    # The configuration first: one request shows that a model cannot be reached.
    config = stock_models.load_config(model)
    shadow = config
    # Before the tokenizer, which may be missing too: an unknown family cannot be mended by the user.
    if needs_family:
        arch.family_of_config(config)
    if shadow_model is not None:
        shadow = sources.config_of(shadow_model, config)
    if needs_packing:
        _refuse_unpackable(config, shadow)
    tokenizer = stock_models.load_tokenizer(model)
    if shadow_model is not None:
        sources.refuse_other_tokens(shadow_model, tokenizer)
    return Preflight(config, tokenizer, shadow)


def _refuse_unpackable(*configs: "PretrainedConfig") -> None:
    for family in map(arch.family_of_config, configs):
        if not family.packs:
            raise ConfigError(
                f"{family.name} cannot be trained on packed rows: "
                "its documents would see each other; leave out packing"
            )
