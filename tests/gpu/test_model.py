"""What only a GPU can show. Skipped where there is none; error is judged against the error plain bf16 makes
on the bare base.
"""

import pytest
import torch
from helpers.families import perturb
from helpers.tiny import qwen3_config
from transformers import AutoModelForCausalLM

from shadowpeft import ShadowConfig, attach

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(params=["normed", "paper"])
def variant(request):
    return request.param


def build(variant, dtype=torch.float32):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(qwen3_config()).eval().to("cuda", dtype)
    torch.manual_seed(1)
    return perturb(attach(base, ShadowConfig(variant=variant, alpha=0.5)))


@pytest.fixture
def tokens():
    return torch.randint(2, 97, (3, 63), generator=torch.Generator().manual_seed(0)).cuda()


@torch.inference_mode()
def test_bf16_is_as_exact_as_the_bare_base_is(tokens, variant):
    """Catches a boundary that loses precision: its error in bf16 stays within twice that of the base
    alone.
    """

    def error(run):
        truth, got = run(build(variant)), run(build(variant, torch.bfloat16))
        return ((got.float() - truth).norm() / truth.norm()).item()

    def bare(model):
        with model.disabled():
            return model(tokens).logits

    assert error(lambda model: model(tokens).logits) < 2 * error(bare) + 1e-3


def test_gradients_equal_the_cpu_s(tokens, variant):
    """Catches an operation that computes something else on a GPU, forward or backward."""
    grads = []
    for device in ("cuda", "cpu"):
        model = build(variant).to(device)
        model(tokens.to(device), labels=tokens.to(device)).loss.backward()
        grads.append([p.grad.cpu() for p in model.parameters() if p.requires_grad])
    for one, two in zip(*grads, strict=True):
        assert (one - two).norm() <= 1e-3 * two.norm() + 1e-6


def test_compiles_whole_and_computes_the_same(tokens, variant):
    model = build(variant)
    compiled = torch.compile(model, fullgraph=True)
    want, got = model(tokens, use_cache=False).logits, compiled(tokens, use_cache=False).logits
    assert (got - want).norm() < 1e-4 * want.norm()


def test_caches_agree_on_a_gpu(tokens, variant):
    model = build(variant)
    choices = ({"use_cache": False}, {}, {"cache_implementation": "static"})
    one, *others = (
        model.generate(tokens, max_new_tokens=20, do_sample=False, **choice) for choice in choices
    )
    assert all(torch.equal(one, other) for other in others)


def test_a_decode_step_fits_a_cuda_graph(tokens, variant):
    """Catches a synchronisation or an allocation in the one-token step with a static cache."""
    model = build(variant, torch.bfloat16)
    with torch.inference_mode():
        cache = model.new_cache(max_length=96)
        model(tokens, past_key_values=cache, use_cache=True)
        step, position = tokens[:, :1].clone(), torch.full((3, 1), 63, device="cuda")
        mask = torch.ones(3, 96, dtype=torch.long, device="cuda")
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(2):
                model(step, mask, position, past_key_values=cache, use_cache=True)
        side.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = model(step, mask, position, past_key_values=cache, use_cache=True).logits
        graph.replay()
        torch.cuda.synchronize()
        assert torch.isfinite(out).all()


def test_autocast_trains_a_float32_adapter_on_a_bf16_base(tokens, variant):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(qwen3_config()).to("cuda", torch.bfloat16)
    model = attach(base, ShadowConfig(variant=variant, dropout=0.0), dtype=torch.float32).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(8):
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
