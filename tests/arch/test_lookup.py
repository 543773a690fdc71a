"""Which row a model has: what no row describes is refused in one sentence that says what to take."""

import pytest
import transformers
from helpers.families import attached, tiny_config, tiny_model
from transformers import AutoConfig, T5Config, T5ForConditionalGeneration

from shadowpeft import UnsupportedModelError, arch


def test_an_encoder_decoder_is_refused_by_what_it_is():
    config = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=97)
    with pytest.raises(UnsupportedModelError, match=r"T5ForConditionalGeneration .* is an encoder-decoder"):
        attached(T5ForConditionalGeneration(config))
    for refuse in (arch.family_of_config, arch.refuse_no_language_model):
        with pytest.raises(UnsupportedModelError, match="'t5' is an encoder-decoder, and a shadow runs"):
            refuse(config)


@pytest.mark.parametrize(
    ("name", "kind", "has"),
    [
        ("LlamaModel", "llama", "no head"),
        ("Gemma3TextModel", "gemma3_text", "no head"),
        ("LlamaForTokenClassification", "llama", "a head of another task"),
        ("Qwen2ForQuestionAnswering", "qwen2", "a head of another task"),
    ],
)
def test_other_classes_of_a_known_family_are_refused(name, kind, has):
    """Catches a decoder without a head, and an answer of a head that nobody trains."""
    model = getattr(transformers, name)(tiny_config(kind))
    with pytest.raises(UnsupportedModelError, match=rf"got {name}, which has {has}; load it with AutoModel"):
        attached(model)


@pytest.mark.parametrize("changes", [{"use_bidirectional_attention": True}, {"is_causal": False}])
def test_a_decoder_that_is_configured_as_an_encoder_is_refused(changes):
    """Catches an embedding model whose tokens see the very tokens that they shall learn to write."""
    config = tiny_config("gemma3_text", **changes)
    field = next(iter(changes))
    with pytest.raises(UnsupportedModelError, match=rf"gemma3_text is an encoder \({field}\), as embedding"):
        attached(tiny_model("gemma3_text", config=config))
    with pytest.raises(UnsupportedModelError, match=rf"is an encoder \({field}\)"):
        arch.refuse_no_language_model(config)
    # A classifier may look both ways.
    attached(tiny_model("gemma3_text", "sequence-classification", config=config))


@pytest.mark.parametrize(
    "head", ["LlamaForTokenClassification", "LlamaForSequenceClassification", "LlamaForRewardModel"]
)
def test_a_checkpoint_with_another_head_is_refused(head):
    """Catches a reward model whose tied embeddings answer in place of the head that it was trained with."""
    config = AutoConfig.for_model("llama", architectures=[head])
    with pytest.raises(UnsupportedModelError, match=f"the checkpoint is a {head}, whose head is not that of"):
        arch.refuse_no_language_model(config)
    for taken in (None, ["LlamaForCausalLM"], ["LlamaModel"]):
        config.architectures = taken
        arch.refuse_no_language_model(config)
