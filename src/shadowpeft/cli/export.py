"""`shadowpeft export`."""

from dataclasses import asdict
from typing import Literal

from shadowpeft.cli._choice import Dtype

ExportDtype = Literal[Dtype, "q8_0"]


def run(
    model: str,
    output: str,
    adapter: str | None = None,
    shadow_model: str | None = None,
    to: Literal["hf", "gguf"] = "hf",
    dtype: ExportDtype = "auto",
    max_shard_size: str | None = None,
    push: str | None = None,
    json: bool = False,
) -> None:
    """Write the shadow alone as a complete model that stock transformers or llama.cpp loads, with the
    base's tokenizer.

    Args:
        model: folder or hub id of the base that the shadow was trained beside. Of a multimodal checkpoint
            too a model of text is written.
        output: folder to write, must be new or empty; with --to gguf the file, such as small.gguf.
        adapter: folder or hub id of the adapter.
        shadow_model: folder of a pretrained shadow, in place of --adapter.
        to: hf for a model folder, gguf for a file that llama.cpp runs.
        dtype: type of the weights; auto for the base's. q8_0 (8 bits) only with --to gguf.
        max_shard_size: largest file of weights in a folder, such as 2GB; transformers' default otherwise.
        push: repository on the Hugging Face hub (user/name) to upload to, too.
        json: print the summary as JSON.
    """
    from shadowpeft.cli import _models
    from shadowpeft.export import export

    _models.refuse_swapped(model, adapter)
    result = export(
        model,
        adapter,
        output,
        dtype=dtype,
        to=to,
        shadow=shadow_model,
        max_shard_size=max_shard_size,
        push=push,
    )
    _models.print_result(asdict(result), json)
