"""What only a GPU can show. Skipped where there is none; error is judged against the error plain bf16 makes
on the bare base.
"""

import dataclasses

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


def build(variant, dtype=torch.float32, trained=None):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(qwen3_config()).eval().to("cuda", dtype)
    torch.manual_seed(1)
    return perturb(attach(base, ShadowConfig(variant=variant, alpha=0.5), dtype=trained))


@pytest.fixture
def tokens():
    return torch.randint(2, 97, (3, 63), generator=torch.Generator().manual_seed(0)).cuda()


@pytest.mark.parametrize("trained", [torch.bfloat16, torch.float32])
@torch.inference_mode()
def test_bf16_is_as_exact_as_the_bare_base_is(tokens, variant, trained):
    """Catches a boundary that loses precision: its error in bf16 stays within twice that of the base
    alone.
    """

    def error(run):
        truth, got = run(build(variant)), run(build(variant, torch.bfloat16, trained))
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


@pytest.mark.parametrize("impl", ["auto", "reference", "compile"])
def test_gradients_of_float32_weights_beside_bf16(tokens, variant, impl):
    """Catches a gradient that is rounded to the base's type, and one far from that of float32 throughout."""
    grads = []
    for dtype in (torch.float32, torch.bfloat16):
        model = build(variant, dtype).eval()
        model.set_impl("reference" if dtype == torch.float32 else impl)
        model(tokens, labels=tokens, skip_logits=True).loss.backward()
        found = [weight.grad for weight in model.parameters() if weight.requires_grad]
        assert {grad.dtype for grad in found} == {torch.float32}
        grads.append(torch.cat([grad.flatten() for grad in found]))
    truth, got = grads
    assert (got - truth).norm() <= 0.1 * truth.norm()


def test_float32_weights_beside_bf16_compile_whole(tokens, variant):
    """Catches a cast that breaks a graph, and a compiled step that is another one."""
    model = build(variant, torch.bfloat16)
    model.adapter.settings = dataclasses.replace(model.adapter.settings, dropout=0.0)
    compiled, losses = torch.compile(model.train(), fullgraph=True), []
    for run in (model, compiled):
        loss = run(tokens, labels=tokens).loss
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


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
    model = build(variant, torch.bfloat16, torch.bfloat16)
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


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.bfloat16, False), (torch.bfloat16, True), (torch.float16, False)]
)
def test_a_float32_adapter_trains_on_a_base_in_a_lower_type(tokens, variant, dtype, autocast):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(qwen3_config()).to("cuda", dtype)
    model = attach(base, ShadowConfig(variant=variant, dropout=0.0)).train()
    scaler = torch.amp.GradScaler("cuda", init_scale=256.0, enabled=dtype == torch.float16)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(8):
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            loss = model(tokens, labels=tokens).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
