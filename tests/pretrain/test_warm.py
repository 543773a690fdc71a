"""Warm starts of the projection, each against a slow one written from what it is to minimise."""

import pytest
import torch
from helpers.families import tiny_config, tiny_model, token_ids

from shadowpeft import ConfigError, UnsupportedModelError, arch, attach
from shadowpeft.pretrain import warm
from shadowpeft.pretrain.start import fresh, from_model
from shadowpeft.storage.base_facts import BaseFacts
from shadowpeft.storage.shadow_folder import save

V, WIDE, NARROW = 97, 32, 16
SIZES = {"gptj": {"n_embd": NARROW}, "gpt2": {"n_embd": NARROW}}


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """Several blocks of the vocabulary, the last one short."""
    monkeypatch.setattr(warm, "_ROWS", 20)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def heads() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two heads and the weights of their rows, one of them nothing."""
    share_V = drawn(V, seed=3).abs()
    share_V[5] = 0
    return drawn(V, WIDE) + drawn(WIDE, seed=8), drawn(V, NARROW, seed=1) + drawn(NARROW, seed=9), share_V


def close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return ((actual - expected).norm() / expected.norm()).item() < 1e-9


def with_mean_taken(logits: torch.Tensor) -> torch.Tensor:
    return logits - logits.mean(-1, keepdim=True)


def pair(model_type: str, exact: bool = True, tied: bool = False):
    """A base, a narrower model, and P. If `exact`, both heads have the same logits through P."""
    base = tiny_model(
        model_type, dtype=torch.float64, config=tiny_config(model_type, tie_word_embeddings=tied)
    )
    sizes = SIZES.get(model_type, {"hidden_size": NARROW, "intermediate_size": 24})
    model = tiny_model(
        model_type,
        seed=7,
        dtype=torch.float64,
        config=tiny_config(model_type, tie_word_embeddings=tied, **sizes),
    )
    true_Dd = drawn(WIDE, NARROW, seed=4) / 4
    if exact:
        with torch.no_grad():
            arch.head_of(model).weight.copy_(arch.head_of(base).weight @ true_Dd)
    return base, model, true_Dd


def rows(count: int, length: int = 9, seed: int = 0) -> list[torch.Tensor]:
    return [token_ids(2, length, seed=seed * 100 + i) for i in range(count)]


def test_pinv_is_the_pseudo_inverse():
    base_VD, own_Vd, _ = heads()
    assert close(warm.pinv(base_VD, own_Vd), torch.linalg.pinv(base_VD) @ own_Vd)


def test_pinv_of_a_head_with_dependent_columns_is_the_smallest():
    """Catches a plain solve, which such a head makes infinite."""
    base_VD, own_Vd, _ = heads()
    base_VD[:, 3] = base_VD[:, 7] - 2 * base_VD[:, 1]
    assert close(warm.pinv(base_VD, own_Vd), torch.linalg.pinv(base_VD, rcond=1e-10) @ own_Vd)


def test_sums_are_exact_where_float32_would_not_be():
    """Catches sums in the heads' own type: these columns differ in size by a factor of 10,000."""
    base_VD, own_Vd, _ = heads()
    base_VD = (base_VD * torch.logspace(0, -4, WIDE, dtype=torch.float64)).float()
    wanted = torch.linalg.pinv(base_VD.double()) @ own_Vd
    assert ((warm.pinv(base_VD, own_Vd.float()) - wanted).norm() / wanted.norm()).item() < 1e-5


def test_weighted_minimises_over_the_shift_too():
    """The slow way has a variable for each column's shift, and the roots of the weights on both sides."""
    base_VD, own_Vd, share_V = heads()
    root_V1 = share_V.sqrt()[:, None]
    with_shift = torch.cat([base_VD, torch.ones(V, 1, dtype=torch.float64)], 1)
    slow = torch.linalg.lstsq(root_V1 * with_shift, root_V1 * own_Vd).solution[:WIDE]
    assert close(warm.weighted(base_VD, own_Vd, share_V), slow)
    assert not close(warm.weighted(base_VD, own_Vd, torch.ones(V)), slow)


def test_a_shift_of_all_logits_changes_nothing_but_the_published_start():
    """Catches heads that are not centred, or centred by another mean than that of the weights."""
    base_VD, own_Vd, share_V = heads()
    shifted = base_VD + drawn(WIDE, seed=5), own_Vd + drawn(NARROW, seed=6)
    assert close(warm.weighted(*shifted, share_V), warm.weighted(base_VD, own_Vd, share_V))
    assert not close(warm.pinv(*shifted), warm.pinv(base_VD, own_Vd))


def test_the_error_is_that_of_the_logits_themselves():
    base_VD, own_Vd, _ = heads()
    weight_Dd, x_Nd = drawn(WIDE, NARROW, seed=2), drawn(50, NARROW, seed=3)
    said, meant = with_mean_taken(x_Nd @ weight_Dd.T @ base_VD.T), with_mean_taken(x_Nd @ own_Vd.T)
    got = warm.reconstruction_error(base_VD, own_Vd, weight_Dd, x_Nd.T @ x_Nd)
    assert got == pytest.approx(((said - meant).norm() / meant.norm()).item(), rel=1e-9)
    shifted = own_Vd @ torch.eye(NARROW, dtype=torch.float64) + drawn(NARROW, seed=6)
    assert warm.reconstruction_error(base_VD, shifted, weight_Dd, x_Nd.T @ x_Nd) == pytest.approx(
        got, rel=1e-9
    )


def moments(x_Nd: torch.Tensor, y_ND: torch.Tensor) -> warm.Moments:
    return warm.Moments(len(x_Nd), x_Nd.T @ x_Nd, y_ND.T @ x_Nd, yy=y_ND.square().sum().item())


def test_ridge_finds_the_map_from_noisy_states():
    """The truth is known: y = A x + noise. The error falls as one over the square root of the tokens."""
    true_Dd, errors = drawn(WIDE, NARROW, seed=4), []
    for tokens in (400, 40000):
        x_Nd = drawn(tokens, NARROW)
        text = moments(x_Nd, x_Nd @ true_Dd.T + drawn(tokens, WIDE, seed=1))
        held_Nd = drawn(200, NARROW, seed=7)
        weight_Dd, _ = warm.ridge(text, moments(held_Nd, held_Nd @ true_Dd.T))
        errors.append(((weight_Dd - true_Dd).norm() / true_Dd.norm()).item())
    assert errors[1] < 0.01
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.3)


def test_ridge_solves_its_equation():
    """Against the normal equations at the strength it reports, which is the best one on held-out text."""
    true_Dd, x_Nd, held_Nd = drawn(WIDE, NARROW, seed=4), drawn(30, NARROW), drawn(500, NARROW, seed=5)
    y_ND, held_ND = x_Nd @ true_Dd.T + 5 * drawn(30, WIDE, seed=1), held_Nd @ true_Dd.T
    got, strength = warm.ridge(moments(x_Nd, y_ND), moments(held_Nd, held_ND))

    def slow(strength: float) -> torch.Tensor:
        eased = x_Nd.T @ x_Nd + strength * x_Nd.square().sum() / NARROW * torch.eye(
            NARROW, dtype=torch.float64
        )
        return torch.linalg.solve(eased, x_Nd.T @ y_ND).T

    misses = {tried: (held_ND - held_Nd @ slow(tried).T).square().sum().item() for tried in warm._STRENGTHS}
    assert strength == min(misses, key=misses.get)
    assert strength > 0, "noise this strong wants some"
    assert close(got, slow(strength))


def test_ridge_of_fewer_tokens_than_widths_is_finite():
    x_Nd, y_ND = drawn(NARROW // 2, NARROW), drawn(NARROW // 2, WIDE, seed=1)
    weight_Dd, strength = warm.ridge(moments(x_Nd, y_ND), moments(x_Nd, y_ND))
    assert strength == 0
    assert close(x_Nd @ weight_Dd.T, y_ND)


def test_moments_are_of_what_the_heads_read():
    """Catches states from before the final norm, which no head reads, and tokens counted twice."""
    base, model, _ = pair("qwen3")
    text = rows(3)
    got, x, y = warm.Moments.of(model, text, base=base), [], []
    for ids_BT in text:
        for network, states in ((model, x), (base, y)):
            out = network(input_ids=ids_BT, output_hidden_states=True)
            states.append(out.hidden_states[-1].flatten(0, 1).detach())
            assert torch.allclose(arch.head_of(network)(states[-1]), out.logits.flatten(0, 1)), (
                "the head reads them as they are"
            )
    x_Nd, y_ND = torch.cat(x), torch.cat(y)
    assert close(got.xx_dd, x_Nd.T @ x_Nd)
    assert close(got.yx_Dd, y_ND.T @ x_Nd)
    assert got.yy == pytest.approx(y_ND.square().sum().item())
    assert got.tokens == 54


def test_frequencies_are_shares_of_the_text():
    """Catches counts of the last row alone, and no weight for tokens that the text lacks."""
    text = rows(3)
    share_V, every = warm.frequencies(text, V, evenly=0.1), torch.cat(text).flatten().tolist()
    for token in range(V):
        assert share_V[token].item() == pytest.approx(0.9 * every.count(token) / 54 + 0.1 / V)
    assert warm.frequencies(text, V).min() > 0


def test_models_are_run_only_where_their_states_are_read():
    """Catches a base run for a fit that reads heads alone, and a model run for the counting of tokens."""
    base, model, _ = pair("llama")
    ran: list[str] = []
    for name, network in (("base", base), ("model", model)):
        network.model.register_forward_hook(lambda *_, name=name: ran.append(name))
    for method in ("pinv", "weighted"):
        assert warm.fit(base, model, method, text=rows(2), held_out=rows(1, seed=1)).target_rms is None
    assert ran == ["model"] * 2
    warm.fit(base, model, "ridge", text=rows(2), held_out=rows(1, seed=1))
    assert sorted(ran[2:]) == ["base"] * 3 + ["model"] * 3


@pytest.mark.parametrize("method", ["pinv", "weighted"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2", "gpt2", "gptj"])
def test_logits_that_a_projection_can_reach_are_reached(model_type, method):
    """If some P gives the base's head the model's logits, the detached shadow is the model.

    gemma2's soft cap comes after the logits; of gptj's biased heads the base's bias stays.
    """
    base, model, true_Dd = pair(model_type)
    ids = token_ids(2, 9, seed=3)
    want = model(ids).logits.detach()
    shadow = from_model(base, model)
    found = warm.start(shadow, base, model, method=method, text=rows(2), held_out=rows(1, seed=1))
    assert close(shadow.projection.weight.detach(), true_Dd)
    assert max(found.in_weights, found.in_logits) < 1e-8
    with torch.no_grad():
        state_BTD = shadow(ids, None, None, None, None)
        got, bias_V = arch.logits(base, state_BTD), arch.head_of(base).bias
        if bias_V is not None:
            got = got - bias_V + arch.head_of(model).bias
    assert torch.allclose(got, want, atol=1e-8)


def test_a_tied_head_is_read_through_its_table():
    base, model, _ = pair("qwen3", exact=False, tied=True)
    base_VD, own_Vd = (network.model.embed_tokens.weight.detach() for network in (base, model))
    wanted = torch.linalg.pinv(base_VD) @ own_Vd
    assert close(warm.fit(base, model, "pinv", text=[], held_out=rows(1)).weight_Dd, wanted)


def test_the_printed_errors_are_of_the_models_themselves():
    """Catches an error computed on other weights than the fit's; the published one is of a random head."""
    base, model, _ = pair("qwen2", exact=False)
    held_out = rows(2, seed=1)
    for method in ("pinv", "weighted", "ridge"):
        found = warm.fit(base, model, method, text=rows(6), held_out=held_out)
        with torch.no_grad():
            said, meant, sizes, aims = [], [], [], []
            for ids_BT in held_out:
                x_BTd = model.model(ids_BT).last_hidden_state
                meant.append(with_mean_taken(model(ids_BT).logits))
                said.append(with_mean_taken(arch.head_of(base)(x_BTd @ found.weight_Dd.T)))
                sizes.append(x_BTd @ found.weight_Dd.T)
                aims.append(base.model(ids_BT).last_hidden_state)
            error = (torch.cat(said) - torch.cat(meant)).norm() / torch.cat(meant).norm()
        assert found.in_logits == pytest.approx(error.item(), rel=1e-9), method
        assert found.state_rms == pytest.approx(torch.cat(sizes).square().mean().sqrt().item(), rel=1e-9)
        assert 0.01 < found.in_weights < 2
        if method == "ridge":
            wanted = torch.cat(aims)
            assert found.in_states == pytest.approx(
                ((torch.cat(sizes) - wanted).norm() / wanted.norm()).item(), rel=1e-9
            )
            assert found.target_rms == pytest.approx(wanted.square().mean().sqrt().item(), rel=1e-9)


def test_ridge_matches_the_base_best_and_weighted_the_likely_tokens_best():
    """Catches two fits swapped: each is the best at what it minimises, on the text that it was fitted to."""
    base, model, _ = pair("qwen2", exact=False)
    text = rows(20)
    read = warm.Moments.of(model, text, base)
    fits = {
        method: warm.fit(base, model, method, text=text, held_out=text).weight_Dd
        for method in ("pinv", "weighted", "ridge")
    }
    missed = {method: read.miss(weight_Dd) for method, weight_Dd in fits.items()}
    assert min(missed, key=missed.get) == "ridge"

    def likely(weight_Dd: torch.Tensor) -> float:
        share_V = warm.frequencies(text, V)
        error_Vd = arch.head_of(base).weight @ weight_Dd - arch.head_of(model).weight
        return (share_V[:, None] * (error_Vd - share_V @ error_Vd) ** 2).sum().item()

    weighed = {method: likely(weight_Dd) for method, weight_Dd in fits.items()}
    assert min(weighed, key=weighed.get) == "weighted"


def test_what_cannot_be_started():
    base, model, _ = pair("llama")
    with pytest.raises(
        ConfigError, match="the shadow has the base's width, 32, and so no projection to start"
    ):
        warm.start(fresh(base, attach(base).adapter.settings), base, model, "pinv", [], rows(1))
    with pytest.raises(ConfigError, match="needs text, and there is none"):
        warm.start(from_model(base, model), base, model, method="weighted", text=[], held_out=rows(1))
    arch.head_of(model).weight = torch.nn.Parameter(
        torch.zeros(V, NARROW, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(UnsupportedModelError, match="one is quantised or not in memory"):
        warm.fit(base, model, "pinv", text=[], held_out=rows(1))


def test_a_started_shadow_is_kept_and_attached(tmp_path):
    """The whole way: start, folder, adapter, detached."""
    base, model, _ = pair("qwen2")
    want = model(token_ids(2, 9)).logits.detach()
    shadow = from_model(base, model)
    warm.start(shadow, base, model, method="weighted", text=rows(2), held_out=rows(1, seed=1))
    save(shadow, BaseFacts.of(base), tmp_path, {})
    small = attach(base, shadow=tmp_path).detached()
    assert torch.allclose(small(token_ids(2, 9)).logits, want, atol=1e-6)
