"""Flags of `shadowpeft calibrate` that would not be read are refused before anything is loaded."""

import pytest

from shadowpeft.cli._answering import Answering
from shadowpeft.errors import ConfigError

LOCAL, SERVER = {"model": "base", "adapter": "run/adapter"}, {"endpoint": "http://edge/v1"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"adapter": "a"}, "--adapter needs the base"),
        (
            {**LOCAL, "cloud_endpoint": "u", "cloud_answers": "c"},
            "either --cloud-endpoint or",
        ),
        ({"cloud_answers": "big"}, "--cloud-answers has no meaning"),
        ({"cloud_endpoint": "u"}, "--cloud-endpoint has no meaning"),
        ({"max_new_tokens": 3}, "--max-new-tokens has no meaning"),
        ({"batch_size": 3}, "--batch-size has no meaning"),
        ({"timed": 3}, "--timed has no meaning"),
        ({**SERVER, "dtype": "float32", "device": "cpu"}, "--dtype, --device has no meaning"),
        ({**LOCAL, "labels": "l.json", "max_new_tokens": 3}, "--max-new-tokens has no meaning"),
        ({**SERVER, "labels": "l.json", "max_length": 9}, "--labels, --max-length has no meaning"),
        ({**LOCAL, "api_key_env": "KEY"}, "--api-key-env has no meaning"),
        ({**SERVER, "cloud_api_key_env": "KEY"}, "--cloud-api-key-env has no meaning"),
    ],
)
def test_flags_that_are_not_read_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        Answering(**flags).refuse_idle()


def test_flags_that_are_read_pass():
    """Catches a refusal of what the guide shows."""
    Answering().refuse_idle()
    Answering(**LOCAL, max_length=64, max_new_tokens=8, cloud_answers="big").refuse_idle()
    Answering(**LOCAL, labels="l.json", cloud_endpoint="u", cloud_api_key_env="KEY").refuse_idle()
    Answering(**SERVER, **LOCAL, api_key_env="KEY", max_new_tokens=8, cloud_endpoint="u").refuse_idle()
