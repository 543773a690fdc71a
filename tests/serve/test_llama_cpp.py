"""A real llama.cpp at the edge, with the exported shadow; the attached model of this process is the cloud."""

import pytest
from helpers.exported import save_adapter
from helpers.servers import client_of, policy, running

from shadowpeft.export import export
from shadowpeft.serve.run import built
from shadowpeft.serve.settings import Serve

pytest.importorskip("gguf")
xllamacpp = pytest.importorskip("xllamacpp")
pytestmark = [pytest.mark.llama_cpp, pytest.mark.slow]

SETTINGS = {"prompt": "The river flows", "temperature": 0, "max_tokens": 12}


def test_llama_cpp_is_an_edge(tmp_path):
    """Catches what llama.cpp words otherwise than others: streams, log-probabilities, ends and counts."""
    base = save_adapter(tmp_path / "adapter", "implicit")
    export(base, str(tmp_path / "adapter"), str(tmp_path / "small.gguf"), to="gguf", dtype="float32")
    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.verbosity = str(tmp_path / "small.gguf"), 0, 0
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads, params.fit_params = 512, 1, 1, False
    server = xllamacpp.Server(params)
    there = f"{server.listening_address}/v1"
    here = {"model": base, "adapter": str(tmp_path / "adapter"), "dtype": "float32", "device": "cpu"}
    for threshold, route in ((-1e3, "edge"), (1e3, "cloud")):
        policy(threshold, "min_margin", endpoint=there).save(tmp_path / "routing.json")
        found = built(Serve(**here, edge=there, cloud="attached", policy=str(tmp_path)))
        with running(found.gateway.app(), found) as address, client_of(address) as client:
            answer = client.completions.create(model="routed", logprobs=2, **SETTINGS)
            alone = client.completions.create(
                model="detached" if route == "edge" else "attached", logprobs=2, **SETTINGS
            )
            (choice,), (want,) = answer.choices, alone.choices
            assert choice.shadow["route"] == route
            assert choice.text == want.text
            assert choice.logprobs.token_logprobs == pytest.approx(want.logprobs.token_logprobs, abs=0.02)
            assert answer.usage == alone.usage
            chat = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 5}
            text = client.chat.completions.create(model="edge", **chat).choices[0].message.content
            assert text == client.chat.completions.create(model="detached", **chat).choices[0].message.content
    del server
