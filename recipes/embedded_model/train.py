"""Train the embedded language model on token shards from `prepare.py` within a time budget.

    python -u recipes/embedded_model/train.py --data DIR --output DIR --minutes 6.2

The learning rate follows the elapsed share of the budget, so a run ends annealed whatever the speed of the
machine. The output folder is a `transformers` checkpoint from the first save on.
"""

import argparse
import copy
import json
import lzma
import math
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional
from transformers import AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

SEED = 20250101
# Small sources get few passes: with 11 % dolly and 9 % utterances the held-out loss rose after three minutes.
WEIGHTS = {"wiki_en": 0.48, "novels_en": 0.43, "dolly": 0.05, "dolly_lower": 0.02, "utterances": 0.02}
PARTIAL_EVALUATION = 32  # windows a source while training
FINAL_EVALUATION = 512
NO_MASK = {"full_attention": None}  # packed sequences: let SDPA use its causal flag


class Tokens:
    """The token streams of one split, in one tensor on the device."""

    def __init__(self, folder: Path, split: str, device: torch.device) -> None:
        """Decompress the shards that the manifest lists for `split`."""
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.rows = [row for row in manifest if row["split"] == split]
        parts = [
            np.frombuffer(lzma.decompress((folder / row["file"]).read_bytes()), "<u2") for row in self.rows
        ]
        self.data = torch.from_numpy(np.concatenate(parts).astype(np.int16)).to(device)
        lengths = torch.tensor([len(part) for part in parts], dtype=torch.float64, device=device)
        self.lengths, self.offsets = lengths, lengths.cumsum(0) - lengths
        self.weights = torch.tensor([WEIGHTS[row["source"]] for row in self.rows], device=device)

    def sample(self, batch: int, length: int, generator: torch.Generator) -> torch.Tensor:
        """Draw random windows of `length + 1` tokens, sources in proportion to their weights."""
        source = torch.multinomial(self.weights, batch, replacement=True, generator=generator)
        place = torch.rand(batch, dtype=torch.float64, device=self.data.device, generator=generator)
        start = (self.offsets[source] + place * (self.lengths[source] - length - 1)).long()
        return self.data[start[:, None] + torch.arange(length + 1, device=start.device)].long()

    def windows(self, index: int, count: int, length: int) -> torch.Tensor:
        """Return the first `count` disjoint windows of one source."""
        start, size = int(self.offsets[index]), int(self.lengths[index])
        count = min(count, (size - 1) // length)
        rows = torch.arange(count, device=self.data.device)[:, None] * length
        return self.data[start + rows + torch.arange(length + 1, device=self.data.device)].long()


def build(tokenizer: Any, length: int) -> Qwen3ForCausalLM:
    """Build a small Qwen3 with tied embeddings, randomly initialised."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=max(1024, length),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config)


def token_loss(model: Qwen3ForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Return the mean next-token cross-entropy of packed windows."""
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=batch.is_cuda):
        hidden = model.model(batch[:, :-1], attention_mask=NO_MASK, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden)
    return functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: Qwen3ForCausalLM, tokens: Tokens, count: int, length: int) -> dict[str, dict[str, float]]:
    """Return held-out loss, perplexity and bits per byte of each source."""
    scores = {}
    for index, row in enumerate(tokens.rows):
        windows = tokens.windows(index, count, length)
        losses = [token_loss(model, part).item() * len(part) for part in windows.split(32)]
        loss = sum(losses) / len(windows)
        scores[row["source"]] = {
            "loss": round(loss, 4),
            "perplexity": round(math.exp(loss), 2),
            "bits_per_byte": round(loss / math.log(2) * row["tokens"] / row["utf8_bytes"], 4),
            "tokens": len(windows) * length,
        }
    return scores


def learning_rate(share: float, peak: float) -> float:
    """Return the learning rate: linear warm-up over the first 2 % of the time, then cosine to zero."""
    if share < 0.02:
        return peak * share / 0.02
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (share - 0.02) / 0.98)))


def optimizer_for(model: Qwen3ForCausalLM, peak: float, decay: float) -> torch.optim.AdamW:
    """Build AdamW, fused on a GPU, with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), fused=next(model.parameters()).is_cuda)


def save(model: Qwen3ForCausalLM, tokenizer: Any, log: dict[str, Any], folder: Path) -> None:
    """Write the bf16 checkpoint, the tokenizer and `training_log.json`."""
    stored = copy.deepcopy(model).to(torch.bfloat16)
    stored.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=64
    )
    stored.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # written private, but the package ships it
    shutil.copytree(tokenizer.name_or_path, folder, dirs_exist_ok=True)
    (folder / "training_log.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")


def describe(args: argparse.Namespace, model: Qwen3ForCausalLM, device: torch.device) -> dict[str, Any]:
    """Return the facts of a run that are known before it starts."""
    words = ["python -u recipes/embedded_model/train.py --data DATA --output MODEL"]
    for name, value in vars(args).items():
        # A switch that is on stands without a value; one that is off is left out.
        if name not in ("data", "output", "resume") and value is not False:
            words.append(f"--{name.replace('_', '-')} {value}".removesuffix(" True"))
    if args.resume:
        words.append("--resume PARTIAL")
    machine = platform.machine() + " CPU"
    if device.type == "cuda":
        machine = torch.cuda.get_device_name()
    return {
        "command": " ".join(words),
        "device": machine,
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {"transformers": transformers.__version__},
        "seed": SEED,
        "length": args.length,
        "source_weights": WEIGHTS,
        "parameters": sum(p.numel() for p in model.parameters()),
        "sources": json.loads((args.data / "manifest.json").read_text(encoding="utf-8")),
    }


def train(
    model: Qwen3ForCausalLM, tokenizer: Any, args: argparse.Namespace, log: dict[str, Any], began: float
) -> None:
    """Train until `args.minutes` have passed since `began`, saving on the way."""
    device = model.device
    data, held_out = (Tokens(args.data, split, device) for split in ("train", "validation"))
    optimizer = optimizer_for(model, args.learning_rate, args.weight_decay)
    loss_of = token_loss
    if args.compile:
        loss_of = torch.compile(token_loss)
    generator = torch.Generator(device).manual_seed(SEED + log["tokens_seen"])
    # A first pass compiles the loss, so that this takes none of the time that the learning rate follows.
    loss_of(model, data.sample(args.batch, args.length, generator)).backward()
    optimizer.zero_grad()

    start, stop = time.monotonic(), began + 60 * args.minutes
    print(f"start after {start - began:.1f} s, {len(data.data):,} training tokens", flush=True)
    steps, shown, saved, before = 0, start, start, log["tokens_seen"]
    while (now := time.monotonic()) < stop:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate((now - start) / (stop - start), args.learning_rate)
        loss = loss_of(model, data.sample(args.batch, args.length, generator))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        if now - shown > args.report_seconds:
            log["tokens_seen"] = before + steps * args.batch * args.length
            log["train_seconds"] = round(now - start, 1)
            log["validation"] = evaluate(model, held_out, PARTIAL_EVALUATION, length=args.length)
            line = report(log, round(now - began), loss.item())
            print(json.dumps(line), f"lr {optimizer.param_groups[0]['lr']:.2e}", flush=True)
            shown = now
            if now - saved > args.save_seconds:
                save(model, tokenizer, log, args.output)
                saved = now

    log |= {"status": "complete", "steps": steps, "tokens_seen": before + steps * args.batch * args.length}
    log["train_seconds"] = round(time.monotonic() - start, 1)
    log["validation"] = evaluate(model, held_out, FINAL_EVALUATION, length=args.length)
    save(model, tokenizer, log, args.output)
    print(
        json.dumps(log["validation"], indent=1), f"{steps} steps, {log['tokens_seen']:,} tokens", flush=True
    )


def report(log: dict[str, Any], seconds: int, loss: float) -> dict[str, float]:
    """Add a line to the history of the log, and return it."""
    line = {"seconds": seconds, "tokens": log["tokens_seen"], "train_loss": round(loss, 4)}
    line |= {name: score["loss"] for name, score in log["validation"].items()}
    log["history"].append(line)
    return line


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder written by prepare.py")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--resume", type=Path, help="start from this (partial) checkpoint's weights")
    parser.add_argument("--minutes", type=float, default=6.2, help="from start to end of training")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--report-seconds", type=float, default=20)
    parser.add_argument("--save-seconds", type=float, default=110)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


def main() -> None:
    """Build or reload the model and train it."""
    began, args = time.monotonic(), arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    tokenizer = AutoTokenizer.from_pretrained(args.data / "tokenizer")
    log: dict[str, Any] = {"status": "partial", "tokens_seen": 0, "history": []}
    if args.resume:
        model = Qwen3ForCausalLM.from_pretrained(args.resume, dtype=torch.float32)
        earlier = json.loads((args.resume / "training_log.json").read_text(encoding="utf-8"))
        log |= {key: earlier[key] for key in ("tokens_seen", "history")}
    else:
        model = build(tokenizer, args.length)
    model.to(device)
    log |= describe(args, model, device)
    print(f"{log['parameters']:,} parameters on {log['device']}", flush=True)
    train(model, tokenizer, args, log=log, began=began)


if __name__ == "__main__":
    main()
