"""From a trained adapter, or a pretrained shadow, to files that need neither the base nor this library."""

from shadowpeft.export.run import ExportResult, export

__all__ = ["ExportResult", "export"]
