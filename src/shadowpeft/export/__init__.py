"""Exports: an adapter's shadow, or a pretrained one, as files that need neither the base nor this library.

Formats are a model folder of transformers and a GGUF file; what both share is in `run`. May import `model`,
`storage`, `data` and everything below them.
"""

from shadowpeft.export.run import ExportResult, export

__all__ = ["ExportResult", "export"]
