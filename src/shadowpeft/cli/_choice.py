"""Which models the flags of `generate`, `eval` and `calibrate` name.

This module does not import torch, so that `--help` comes at once.
"""

from dataclasses import dataclass
from typing import Literal

from shadowpeft.errors import ConfigError

# The types that a model's weights can be loaded in; `auto` is the one they are stored in.
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ModelChoice:
    """A base, and what of it and its adapter is to be run.

    Args:
        model: folder or hub id of the base, or of an exported model.
        adapter: folder or hub id of the adapter; `None` for the base alone.
        detached: run the shadow alone.
        base: run the base alone, although there is an adapter.
        dtype: type of the weights.
        device: auto, cpu, cuda, cuda:1 or mps.
    """

    model: str
    adapter: str | None = None
    detached: bool = False
    base: bool = False
    dtype: Dtype = "auto"
    device: str = "auto"


@dataclass(frozen=True)
class Answering:
    """Who answers the rows of a calibration, and how; the fields are the flags of `calibrate`."""

    model: str | None = None
    adapter: str | None = None
    endpoint: str | None = None
    cloud_endpoint: str | None = None
    cloud_answers: str | None = None
    labels: str | None = None
    api_key_env: str | None = None
    cloud_api_key_env: str | None = None
    batch_size: int = 8
    max_length: int | None = None
    max_new_tokens: int | None = None
    dtype: Dtype = "auto"
    device: str = "auto"

    @property
    def is_local(self) -> bool:
        """Whether a model of this process answers."""
        return self.model is not None and self.endpoint is None

    @property
    def reads_answers(self) -> bool:
        """Whether nobody answers, since the rows are answered already."""
        return self.model is None and self.endpoint is None

    def refuse_idle(self) -> None:
        """Refuse flags that would not be read.

        Raises:
            ConfigError: names them.
        """
        if self.adapter is not None and self.reads_answers:
            raise ConfigError("--adapter needs the base it was trained beside; give --model, or --endpoint")
        if self.cloud_endpoint is not None and self.cloud_answers is not None:
            raise ConfigError("give either --cloud-endpoint or --cloud-answers, got both")
        idle = {
            "labels": self.labels is not None and not self.is_local,
            "max_length": self.max_length is not None and not self.is_local,
            "max_new_tokens": self.max_new_tokens is not None
            and (self.labels is not None or self.reads_answers),
            "cloud_endpoint": self.cloud_endpoint is not None and self.reads_answers,
            "cloud_answers": self.cloud_answers is not None and self.reads_answers,
            "api_key_env": self.api_key_env is not None and self.endpoint is None,
            "cloud_api_key_env": self.cloud_api_key_env is not None and self.cloud_endpoint is None,
        }
        named = [f"--{name.replace('_', '-')}" for name, is_idle in idle.items() if is_idle]
        if named:
            raise ConfigError(f"{', '.join(named)} has no meaning with the other flags given; leave it out")
