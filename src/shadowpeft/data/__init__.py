"""From a file of rows to token examples: reading and splitting rows, encoding them, and checks on tokenizers.

Everything that trains or measures a model on text starts here. May import `errors`, and nothing else of this
package.
"""
