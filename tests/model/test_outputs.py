"""The output's losses: which there are, where they stand, and what the Trainer hands on of them."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers.families import attached, classification_batch, language_batch, perturb, tiny_model
from transformers import Trainer, TrainingArguments

from shadowpeft import ShadowConfig

BATCHES = {"causal-lm": language_batch, "sequence-classification": classification_batch}


@pytest.fixture(scope="module", params=BATCHES)
def task(request):
    return request.param


@pytest.fixture(scope="module")
def model(task):
    """A model whose loss has every term of eq. 9; tests only read it."""
    return perturb(
        attached(tiny_model("qwen3", task), ShadowConfig(shadow_loss_weight=0.7, shadow_distil=0.3))
    )


def test_the_loss_is_made_of_the_losses_beside_it(model, task):
    """Catches an attached loss that is another head's, weighted, or cut off from what it was computed
    from.
    """
    out = model(**BATCHES[task]())
    assert torch.equal(out.loss, out.attached_loss + 0.7 * (0.7 * out.shadow_loss + 0.3 * out.distil_loss))
    assert out.attached_loss.requires_grad
    logits, labels = out.logits, BATCHES[task]()["labels"]
    if task == "causal-lm":
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    torch.testing.assert_close(out.attached_loss, F.cross_entropy(logits, labels), rtol=1e-6, atol=0)


def test_without_labels_there_is_no_loss(model, task):
    out = model(BATCHES[task]()["input_ids"], BATCHES[task]()["attention_mask"])
    assert out.attached_loss is None
    assert "attached_loss" not in out


def test_a_plain_tuple_is_as_it_was_before_the_attached_loss(model, task):
    """Catches a value that moves the others: in a tuple each is known by its position."""
    out = model(**BATCHES[task](), output_shadow_logits=True, use_cache=True, output_hidden_states=True)
    plain = model(
        **BATCHES[task](),
        output_shadow_logits=True,
        use_cache=True,
        output_hidden_states=True,
        return_dict=False,
    )
    names = [
        "loss",
        "logits",
        "shadow_loss",
        "shadow_logits",
        "distil_loss",
        "past_key_values",
        "hidden_states",
    ]
    assert len(plain) == len(names) == len(out.to_tuple())
    for value, name in zip(plain[:5], names, strict=False):
        assert torch.equal(value, out[name]), name
    assert len(plain[5]) == len(out.past_key_values)
    assert len(plain[6]) == len(out.hidden_states)


def test_logits_keep_their_place_where_there_are_none():
    """Catches the shadow's loss in the place of the logits while the model trains."""
    model = attached(tiny_model("qwen3"), ShadowConfig(shadow_loss_weight=0.7)).train()
    out = model(**language_batch())
    assert out.logits is None
    assert out[1] is None
    assert torch.equal(out[0], out.loss)
    loss, logits, shadow_loss = out.to_tuple()
    assert torch.equal(loss, out.loss)
    assert logits is None
    assert torch.equal(shadow_loss, out.shadow_loss)
    plain = model(**language_batch(), return_dict=False)
    assert plain[1].shape == (2, 12, model.config.vocab_size)


def test_an_output_survives_pickling(model, task):
    with torch.no_grad():
        out = model(**BATCHES[task]())
    again = pickle.loads(pickle.dumps(out))
    assert torch.equal(again.attached_loss, out.attached_loss)


def test_the_trainer_predicts_logits_alone(model, task, tmp_path):
    """Catches a loss that the Trainer gathers as if it were one more tensor of predictions."""
    batch = BATCHES[task]()
    rows = [{name: values[i] for name, values in batch.items()} for i in range(2)]
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True)
    predictions = Trainer(model, arguments).predict(rows).predictions
    assert predictions.shape == (2, *model(**batch).logits.shape[1:])
