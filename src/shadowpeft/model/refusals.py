"""Refusals of calls whose arguments are right: the base is not as it was lent, or nothing would train."""

from typing import NoReturn

from torch import Tensor
from transformers import PreTrainedModel

from shadowpeft import arch
from shadowpeft.errors import UserError


def refuse_resized(base: PreTrainedModel, tokens: int) -> None:
    """Raise if a base no longer has the number of tokens that it was lent with.

    Raises:
        UserError: says how many it had and has.
    """
    # The decoder of a multimodal model has a configuration of its own, and either may have been resized.
    for has in (base.config.vocab_size, arch.decoder_of(base).config.vocab_size):
        if has == tokens:
            continue
        raise UserError(
            f"the base had {tokens} tokens when it was lent and now has {has}: "
            f"resize_token_embeddings({tokens}) it back, or resize it before attach()"
        )


def refuse_several_devices(base: PreTrainedModel) -> None:
    """Raise if a base's blocks are on several devices: a boundary joins the states of base and shadow on one.

    Raises:
        UserError: names the devices, or says that transformers has cut the weights for several processes.
    """
    if base._device_mesh is not None:
        raise UserError(
            "from_pretrained has cut the base's weights for several processes (tp_plan or "
            "distributed_config), and a trainer would give each of them other rows: load the base whole, and "
            "train with FSDP2"
        )
    weights = (weight for block in arch.blocks_of(base) for weight in block.parameters())
    # What accelerate has offloaded is on the meta device, and comes to the device of the rest.
    devices = sorted({str(weight.device) for weight in weights} - {"meta"})
    if len(devices) > 1:
        raise UserError(
            f"the base's blocks are on {' and '.join(devices)}, and a shadow runs on one device: load it "
            'with device_map={"": 0}, offload what has no room there to cpu or disk, or train with FSDP2'
        )


def refuse_other_mode(base: PreTrainedModel) -> NoReturn:
    """Raise: another model that holds the base put it into another mode than this model is in.

    Raises:
        UserError: says which mode.
    """
    now, wanted = ("training", "eval()") if base.training else ("evaluation", "train()")
    raise UserError(
        f"another model that holds the same base put it into {now} mode: call {wanted} on this model "
        "before using it again, or unload() the other one"
    )


def require_gradient(loss: Tensor, adapter: str) -> None:
    """Raise if a training step would train nothing, before `backward` says so in torch's words.

    Raises:
        UserError: names the adapter.
    """
    if not loss.requires_grad:
        raise UserError(
            f"nothing trains in adapter {adapter!r}: only the active adapter does, and one loaded with "
            "is_trainable=False (the default) does not; load it with is_trainable=True, or call "
            "model.eval() to measure it"
        )
