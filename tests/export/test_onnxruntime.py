"""An exported folder in ONNX Runtime, through the exporter that comes with it: the same greedy answers as in
transformers."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.exported import ANSWER, PROMPTS, SHADOWS, greedy, save_adapter, until_end
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowpeft.export import export

runtime = pytest.importorskip("onnxruntime_genai")
pytest.importorskip("onnx_ir")


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHADOWS)
def test_the_embedded_models_shadow_gives_the_same_64_tokens_on_20_prompts(kind: str, tmp_path: Path) -> None:
    """Catches a folder that ONNX Runtime's exporter refuses or understands otherwise."""
    base = save_adapter(tmp_path / "adapter", kind)
    export(base, tmp_path / "adapter", tmp_path / "small", "float32")
    builder = [
        sys.executable,
        "-m",
        "onnxruntime_genai.models.builder",
        "-m",
        "small",
        "-o",
        "onnx",
        "-p",
        "fp32",
        "-e",
        "cpu",
    ]
    done = subprocess.run(
        builder, cwd=tmp_path, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    model, tokenizer = (
        auto.from_pretrained(tmp_path / "small") for auto in (AutoModelForCausalLM, AutoTokenizer)
    )
    theirs = runtime.Model(str(tmp_path / "onnx"))
    for text in PROMPTS:
        ids = tokenizer(text).input_ids
        assert list(runtime.Tokenizer(theirs).encode(text)) == ids
        settings = runtime.GeneratorParams(theirs)
        settings.set_search_options(max_length=len(ids) + ANSWER, do_sample=False)
        generator = runtime.Generator(theirs, settings)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        got = [int(token) for token in generator.get_sequence(0)[len(ids) :]]
        assert until_end(got, tokenizer) == until_end(greedy(model.eval(), ids), tokenizer), text
