"""`shadowpeft export`."""

from dataclasses import asdict
from typing import Literal


def run(
    model: str,
    adapter: str,
    output: str,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    json: bool = False,
) -> None:
    """Write the shadow alone as a complete model folder that stock transformers loads, with the base's tokenizer.

    Args:
        model: folder or hub id of the base that the adapter was trained on.
        adapter: folder of the adapter.
        output: folder to write; must be new or empty.
        dtype: type of the weights; auto for the base's.
        json: print the summary as JSON.
    """
    from shadowpeft.cli import _models
    from shadowpeft.export import export

    _models.refuse_swapped(model, adapter)
    _models.print_result(asdict(export(model, adapter, output, dtype)), json)
