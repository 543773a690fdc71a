"""From a file of rows to token examples: reading rows, encoding them, and what tokenizers must agree on.

Imports `errors` and nothing else of this package.
"""
