"""Tiny networks of the transformers library, as checkpoints on disk, and data for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.core.factories import random

PLACES, TOLD, LETTERS = 9, 5, 60
_TEXT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": LETTERS,
    "max_position_embeddings": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_VISION: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
_DISTIL = {
    "dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 24,
    "vocab_size": LETTERS,
    "max_position_embeddings": 40,
}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": LETTERS, "n_positions": 40, "pad_token_id": 0}
_T5 = {"vocab_size": LETTERS, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "num_labels": 3}
_T5 |= {"eos_token_id": 2, "decoder_start_token_id": 0}
_GROUPED = _TEXT | {"num_key_value_heads": 1}
_STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 3}


@dataclass(frozen=True)
class Family:
    """An architecture, its configuration's class and arguments, and what it gives for each example."""

    architecture: str
    config: str
    arguments: dict[str, Any]
    gives: str

    @property
    def reads_images(self) -> bool:
        return bool(getattr(transformers, self.architecture).main_input_name == "pixel_values")

    def build(self, seed: int) -> Any:
        """A network whose numbers are far from their start, so that no tensor is without effect."""
        config = getattr(transformers, self.config)(**self.arguments)
        module = getattr(transformers, self.architecture)(config).eval()
        drawn = random(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=drawn))
            for name, buffer in module.named_buffers():
                if name.endswith("running_var"):
                    buffer.copy_(1 + torch.rand(buffer.shape, generator=drawn))
        return module

    def data(self, seed: int, count: int = 12) -> dict[str, Tensor]:
        """The tensors of a data file."""
        drawn = random(seed)
        if self.reads_images:
            given = {"pixel_values": torch.randn(count, 3, 8, 8, generator=drawn)}
        else:
            ids = torch.randint(3, LETTERS, (count, PLACES), generator=drawn)
            lengths = torch.randint(2, PLACES + 1, (count, 1), generator=drawn)
            ids.scatter_(1, lengths - 1, 2)  # the end, where T5's classifier looks for it
            given = {"input_ids": ids, "attention_mask": (torch.arange(PLACES) < lengths).long()}
        match self.gives:
            case "classes":
                return given | {"labels": torch.randint(0, 3, (count,), generator=drawn)}
            case "values":
                return given | {"labels": torch.randn(count, 16, generator=drawn)}
            case "next":
                return given | {"labels": given["input_ids"].clone()}
            case "told":
                labels = torch.randint(3, LETTERS, (count, TOLD), generator=drawn)
                lengths = torch.randint(1, TOLD + 1, (count, 1), generator=drawn)
                return given | {"labels": torch.where(torch.arange(TOLD) < lengths, labels, -100)}
            case _:
                return given | {"labels": torch.randint(0, 3, (count, PLACES), generator=drawn)}


FAMILIES = {
    "bert": Family("BertForSequenceClassification", "BertConfig", _TEXT | {"num_labels": 3}, "classes"),
    "roberta": Family("RobertaForSequenceClassification", "RobertaConfig", _TEXT | {"num_labels": 3}, "classes"),
    "distilbert": Family("DistilBertForSequenceClassification", "DistilBertConfig", _DISTIL | {"num_labels": 3}, "classes"),
    "bert encoder": Family("BertModel", "BertConfig", _TEXT, "values"),
    "bert masked": Family("BertForMaskedLM", "BertConfig", _TEXT, "labels"),
    "bert tokens": Family("BertForTokenClassification", "BertConfig", _TEXT | {"num_labels": 3}, "labels"),
    "gpt2": Family("GPT2LMHeadModel", "GPT2Config", _GPT2, "next"),
    "gpt2 classifier": Family("GPT2ForSequenceClassification", "GPT2Config", _GPT2 | {"num_labels": 3}, "classes"),
    "llama": Family("LlamaForCausalLM", "LlamaConfig", _GROUPED, "next"),
    "qwen2": Family("Qwen2ForCausalLM", "Qwen2Config", _GROUPED | {"tie_word_embeddings": True}, "next"),
    "qwen3": Family("Qwen3ForCausalLM", "Qwen3Config", _GROUPED | {"head_dim": 8}, "next"),
    "gemma": Family("GemmaForCausalLM", "GemmaConfig", _GROUPED | {"head_dim": 8}, "next"),
    "gemma2": Family("Gemma2ForCausalLM", "Gemma2Config", _GROUPED | {"head_dim": 8, "sliding_window": 4}, "next"),
    "gemma3": Family("Gemma3ForCausalLM", "Gemma3TextConfig", _GROUPED | {"head_dim": 8, "sliding_window": 4}, "next"),
    "mixtral": Family("MixtralForCausalLM", "MixtralConfig", _GROUPED | {"num_local_experts": 3}, "next"),
    "t5 classifier": Family("T5ForSequenceClassification", "T5Config", _T5, "classes"),
    "t5": Family("T5ForConditionalGeneration", "T5Config", _T5, "told"),
    "t5 encoder": Family("T5EncoderModel", "T5Config", _T5, "values"),
    "vit": Family("ViTForImageClassification", "ViTConfig", _VISION | {"num_labels": 3}, "classes"),
    "vit encoder": Family("ViTModel", "ViTConfig", _VISION, "values"),
    "clip vision": Family("CLIPVisionModel", "CLIPVisionConfig", _VISION, "values"),
    "resnet": Family("ResNetForImageClassification", "ResNetConfig", _STAGES | {"embedding_size": 8}, "classes"),
    "convnext": Family(
        "ConvNextForImageClassification", "ConvNextConfig", _STAGES | {"num_stages": 2, "patch_size": 2}, "classes"
    ),
}  # fmt: skip


def saved(folder: Path, family: str, seed: int = 0, change: Callable[[Any], None] = lambda _: None) -> Path:
    """A checkpoint as the library writes it."""
    path = folder / f"{family.replace(' ', '-')}-{seed}"
    module = FAMILIES[family].build(seed)
    change(module)
    module.save_pretrained(path)
    return path


def own_outputs(module: Any, family: str, data: dict[str, Tensor]) -> Tensor:
    """What the library's own network gives, each text by itself and without padding; −∞ where there is nothing to compare.

    Encoders' states are averaged over places in float64.
    """
    if FAMILIES[family].reads_images:
        with torch.no_grad():
            return _given(module(pixel_values=data["pixel_values"]))
    found = []
    for ids, mask in zip(data["input_ids"], data["attention_mask"], strict=True):
        with torch.no_grad():
            found.append(_given(module(input_ids=ids[mask.bool()][None]))[0])
    if FAMILIES[family].gives in ("classes", "values"):
        return torch.stack(found)
    whole = torch.full((len(found), PLACES, found[0].shape[-1]), -torch.inf)
    for row, output in zip(whole, found, strict=True):
        row[: len(output)] = output
    return whole


def _given(output: Any) -> Tensor:
    if "logits" in output:
        logits: Tensor = output.logits
        return logits
    hidden = output.last_hidden_state.double()
    return (hidden.flatten(2).mean(dim=2) if hidden.ndim == 4 else hidden.mean(dim=1)).float()
