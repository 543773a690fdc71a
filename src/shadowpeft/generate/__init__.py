"""What transformers' loop cannot do: the shadow drafts for its own model, and texts come and go in a batch.

Of drafting `settings` is what a caller asks for, `loop` the rounds, `rules` what is taken from a
distribution, `text` what grows, `pace` how long a draft is, and `report` how well it went. `batch` writes
many texts at once, and `choose` their tokens. Knows token ids and logits, never a tokenizer, and a model only
as the steps that it is given. Imports `arch` and `decoder`.
"""

from shadowpeft.generate.loop import Past, Steps, decode, first
from shadowpeft.generate.report import DraftedOutput, DraftReport
from shadowpeft.generate.settings import Drafting, drafting_of, refuse_input, refuse_mode
from shadowpeft.generate.text import Text

__all__ = [
    "DraftReport",
    "DraftedOutput",
    "Drafting",
    "Past",
    "Steps",
    "Text",
    "decode",
    "drafting_of",
    "first",
    "refuse_input",
    "refuse_mode",
]
