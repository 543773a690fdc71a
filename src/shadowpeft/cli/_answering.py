"""Who answers the rows of `shadowpeft calibrate`, as its flags say it.

This module does not import torch, so that `--help` and a mistake come at once.
"""

from dataclasses import dataclass

from shadowpeft.cli._choice import Dtype
from shadowpeft.errors import ConfigError


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
    timed: int = 0
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
            "timed": self.timed != 0 and self.reads_answers,
            "batch_size": self.batch_size != Answering.batch_size and self.reads_answers,
            "dtype": self.dtype != Answering.dtype and not self.is_local,
            "device": self.device != Answering.device and not self.is_local,
            "api_key_env": self.api_key_env is not None and self.endpoint is None,
            "cloud_api_key_env": self.cloud_api_key_env is not None and self.cloud_endpoint is None,
        }
        named = [f"--{name.replace('_', '-')}" for name, is_idle in idle.items() if is_idle]
        if named:
            raise ConfigError(f"{', '.join(named)} has no meaning with the other flags given; leave it out")
