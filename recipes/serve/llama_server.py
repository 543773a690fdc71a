"""Serve a GGUF file by llama.cpp's own server, where no llama-server is installed.

    pip install xllamacpp
    python recipes/serve/llama_server.py small.gguf --port 8080

It answers at http://127.0.0.1:PORT/v1 until it is interrupted.
"""

import argparse
import threading

import xllamacpp


def start(path: str, port: int, context: int = 4096, parallel: int = 4) -> xllamacpp.Server:
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.port, settings.verbosity = path, port, 0
    settings.n_ctx, settings.n_parallel = context, parallel
    # Else llama.cpp adjusts settings to the memory that it finds.
    settings.fit_params = False
    return xllamacpp.Server(settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", help="GGUF file")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--context", type=int, default=4096, help="tokens of all requests at once")
    parser.add_argument("--parallel", type=int, default=4, help="requests at once")
    settings = parser.parse_args()
    server = start(settings.file, settings.port, settings.context, settings.parallel)
    print(f"{server.listening_address}/v1", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
