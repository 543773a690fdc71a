"""The demo: adapt the embedded model to intents by LoRA and by a shadow, and compare what comes out.

`run` is the work, `screen` shows it while it goes on, and `report` writes it down; `recipes/demo_settings`
chose the settings. It may import `model`, `data` and all below them; only the command line and recipes import
it.
"""
