"""A gateway that speaks OpenAI's protocol, before models of this process and servers elsewhere.

`protocol` reads requests and `answers` writes replies. A `backend` answers a request piece by piece: `local`
with a model here, `upstream` with a server elsewhere, `routed` with an edge that defers to a cloud. `app`
puts them behind HTTP. Imports every folder below it but those of training, and torch only where a model is
loaded.
"""
