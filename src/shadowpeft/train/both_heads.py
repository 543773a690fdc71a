"""A loss that transformers' Trainer computes of a model's answer, computed of both heads' answers and joined.

It is what `label_smoothing_factor` and `compute_loss_func` ask for: eq. 9 with their loss in place of the
cross-entropy.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import TrainingArguments

from shadowpeft.errors import ConfigError, UserError
from shadowpeft.model import ShadowedModel
from shadowpeft.model.outputs import ShadowedCausalLMOutput, ShadowedClassifierOutput
from shadowpeft.shadow.adapter import Adapter

Output = ShadowedCausalLMOutput | ShadowedClassifierOutput


class Answered(nn.Module):
    """A model that has answered already, whatever it is asked: the Trainer computes its loss of the answer.

    Args:
        answer: the output.
        name: the name of the class that it is of, by which the Trainer knows whether labels are shifted.
    """

    def __init__(self, answer: Output, name: str) -> None:
        super().__init__()
        self.answer, self.name = answer, name

    def forward(self, **_: Any) -> Output:
        """Return the answer."""
        return self.answer

    def _get_name(self) -> str:
        return self.name


def joint(
    run: Callable[..., Output],
    stock_loss: Callable[[nn.Module], Tensor],
    inputs: Mapping[str, Any],
    adapter: Adapter,
    name: str,
) -> Output:
    """Run the model without labels and join the losses of both heads: L = l(attached) + lambda * l(shadow).

    Args:
        run: the model, perhaps wrapped.
        stock_loss: computes the Trainer's loss of the model it is given.
        inputs: the batch, without labels.
        adapter: has lambda.
        name: of the base's class.

    Returns:
        The output with its losses.
    """
    out = run(**inputs, output_shadow_logits=True)
    assert out.shadow_logits is not None
    shadow = type(out)(logits=out.shadow_logits)
    out.attached_loss, out.shadow_loss = (stock_loss(Answered(answer, name)) for answer in (out, shadow))
    out.loss = out.attached_loss + adapter.settings.shadow_loss_weight * out.shadow_loss
    return out


def refuse(args: TrainingArguments, adapter: Adapter, own_loss: bool) -> None:
    """Refuse settings of the Trainer under which the loss would be another than the one asked for.

    Args:
        args: the Trainer's settings.
        adapter: the one to train.
        own_loss: whether the Trainer computes the loss of the answers itself.

    Raises:
        ConfigError: names the setting to change.
    """
    if args.use_liger_kernel:
        raise ConfigError(
            "use_liger_kernel replaces the base's forward pass and would leave the shadow out; leave it out: "
            "training on labels holds no logits anyway"
        )
    if own_loss and adapter.settings.shadow_distil > 0:
        raise ConfigError(
            "shadow_distil has a loss of its own, which label_smoothing_factor and compute_loss_func do not "
            "replace; set shadow_distil to 0 or leave them out"
        )


def refuse_unsmoothable(labels: Tensor, model: ShadowedModel) -> None:
    """Raise unless labels are class numbers, since smoothing moves weight between classes.

    Raises:
        UserError: they are numbers of a regression, or zeros and ones of several labels.
    """
    if labels.is_floating_point() or (model.task != "causal-lm" and model.config.num_labels == 1):
        raise UserError(
            f"label_smoothing_factor needs labels that are class numbers, got {labels.dtype} for "
            f"{model.config.num_labels} classes; leave it out for regression and for several labels a row"
        )
