"""The demo: adapt the embedded model to intents by LoRA and by a shadow, and compare what comes out."""
