"""The trainings of the robot task: each takes a learning rate and returns the models that answer."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft import ShadowConfig, ShadowedModel, attach
from shadowpeft.compare.peft_methods import peft_model
from shadowpeft.compare.training import Training, train
from shadowpeft.data.encode import encode
from shadowpeft.data.packing import Collator
from shadowpeft.data.rows import Row
from shadowpeft.data.tokenizers import padding_id
from shadowpeft.model import sources
from shadowpeft.pretrain import warm
from shadowpeft.storage import stock_models

Models = dict[str, PreTrainedModel]


class Trainings:
    """Base and smaller model, and what is made of them.

    Args:
        args: the flags of `run.py`.
        tokenizer: of both.
        rows: to train on.
        dev: more rows, on which a projection is tried.
        scratch: folder for adapters.
        say: told what happens.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        dev: Sequence[Row],
        scratch: Path,
        say: Callable[[str], None],
    ) -> None:
        self.args, self.tokenizer, self.scratch, self.say = args, tokenizer, scratch, say
        self.rows, self.dev = list(rows), list(dev)
        self.device = torch.device(args.device)
        self.on_gpu = self.device.type == "cuda"
        # What answers is in bfloat16 on a GPU.
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32

    # Models

    def base(self) -> PreTrainedModel:
        """Load the base in the type that it answers in."""
        return self._load(self.args.model, self.dtype)

    def small(self) -> PreTrainedModel:
        """Load the smaller model by itself; a pretrained shadow comes with the base's embeddings and head."""
        if sources.holds(self.args.small):
            return attach(self.base(), shadow=self.args.small).detached()
        return self._load(self.args.small, self.dtype)

    def _load(self, source: str, dtype: torch.dtype) -> PreTrainedModel:
        return stock_models.load_model(source, dtype).to(self.device).eval()  # type: ignore[arg-type]

    def folder(self, rate: float) -> Path:
        """Return where the adapter is that was trained from a rate."""
        return self.scratch / f"adapter-{rate:g}"

    # Trainings

    def shadow(self, rate: float) -> Models:
        """Train the shadow beside the base; return what answers attached and detached."""
        base = self.base()
        config = ShadowConfig(
            r=self.args.shadow_rank, alpha=self.args.alpha, shadow_loss_weight=self.args.shadow_loss_weight
        )
        small = sources.open_source(self.args.small, torch.float32)
        if isinstance(small, PreTrainedModel):
            small.to(self.device)  # type: ignore[arg-type]
        model = attach(base, config, small)
        if isinstance(small, PreTrainedModel) and model.adapter.shadow.projection is not None:
            self._fit_projection(model, base, small)
        self._fit(model, self.args.shadow_rate, backbone_rate=rate)
        model.save_pretrained(self.folder(rate))
        del model, base, small
        # Read again in the type that it answers in.
        shadowed = ShadowedModel.from_pretrained(self.base(), self.folder(rate))
        return {"detached": shadowed.detached(), "attached": shadowed}

    def lora(self, model: PreTrainedModel, name: str, rate: float) -> Models:
        """Train LoRA on a model; return it merged."""
        rank = self.args.lora_rank
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = peft_model(model, config)
        self._fit(adapted, rate)
        return {name: adapted.merge_and_unload().to(self.dtype).eval()}

    def full(self, model: PreTrainedModel, name: str, rate: float) -> Models:
        """Train all weights of a model."""
        self._fit(model.requires_grad_(True), rate)
        return {name: model.to(self.dtype).eval()}

    def _fit_projection(self, model: ShadowedModel, base: PreTrainedModel, small: PreTrainedModel) -> None:
        ids = [
            torch.tensor([self._encode(row)["input_ids"]], device=self.device) for row in self.rows + self.dev
        ]
        fit = warm.start(model.adapter.shadow, base, small, "weighted", text=ids, held_out=ids[:50])
        self.say(f"the projection misses {fit.in_logits:.3g} of the smaller model's logits")

    def _encode(self, row: Row) -> Any:
        return encode(row, self.tokenizer, self.args.max_length)

    def _fit(self, model: Any, rate: float, backbone_rate: float | None = None) -> None:
        for weight in model.parameters():
            if weight.requires_grad:
                # In bfloat16 small steps would be lost.
                weight.data = weight.data.float()
        outcome = train(
            model,
            [self._encode(row) for row in self.rows],
            Collator(padding_id(self.tokenizer)),
            Training(
                self.args.steps,
                self.args.batch_size,
                rate,
                self.args.seed,
                self.device,
                bf16=self.on_gpu,
                backbone_learning_rate=backbone_rate,
            ),
        )
        self.say(f"trained {self.args.steps} steps in {outcome.seconds:.0f} s, loss {outcome.train_loss:.3f}")
