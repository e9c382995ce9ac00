"""Networks of the transformers library, built from a checkpoint's ``config.json`` and run through one tensor.

The library's own classes and nothing else: no code and no file is ever fetched, and what a configuration says of code that
lies elsewhere is not followed. Importing the library takes seconds, so it waits until such a network is asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cogram_core.errors import NetworkError, Problem
from cogram_core.networks.naming import find_parts
from cogram_core.networks.packing import unpack
from cogram_core.networks.parts import Parts
from cogram_core.networks.shells import Shell
from cogram_core.networks.tokens import Tokens
from cogram_core.preflight.configuration import what_remains

Head = Literal["classes", "pooled", "causal", "aligned", "paired", "images", "pooled images"]
_ATTENTION = "cogram"
# Numbers of one layer's experts up to which each token gets the weights of its experts side by side, which can be mapped
# over examples; of more than that, the library's own way of many tokens an expert.
_GATHERED = 2**20


def build_shell(folder: Path, architecture: str, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> Shell:
    """The network of an architecture, on the CPU, for a checkpoint whose floating tensors have these ``shapes``.

    Args:
        folder: has the ``config.json``.
        architecture: a class of the installed library.
        shapes: by the checkpoint's names.
        dtype: of the network's tensors.

    Raises:
        NetworkError: if the library has no such network, it is of a kind that has no place here, the configuration is none
            of it, or its tensors are not the checkpoint's: listing every one.
    """
    found = _class_of(architecture)
    head = _head(architecture)
    with _offline():
        module = _instance(found, folder, dtype)
    _check_padding(module, head)
    parts = find_parts(module, shapes)
    problems = _mismatches(module, parts, shapes)
    if problems:
        raise NetworkError(problems)
    _tie(module, parts)
    vars(module)["door"] = _Door(head, _accepted(module), _padding_id(module))
    forwards = {"images": _of_images, "pooled images": _of_images, "paired": _of_pairs}
    vars(module)["forward"] = MethodType(forwards.get(head, _of_tokens), module)
    return Shell(module.eval(), parts, _tokens(module, head))


def _class_of(architecture: str) -> Any:
    import transformers

    found = getattr(transformers, architecture, None)
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    message = (
        f"the installed transformers {transformers.__version__} has no network {architecture!r}, and no code from "
    )
    message += f"elsewhere is run; {what_remains()}"
    raise NetworkError([Problem("network", "network.unknown_architecture", message)])


def _head(architecture: str) -> Head:
    """What a network gives, by the library's own lists.

    Raises:
        NetworkError: if it is in none of them that has a place here.
    """
    from transformers.models.auto import modeling_auto as auto

    kinds: list[tuple[Head, Any]] = [
        ("causal", auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        ("paired", auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
        ("aligned", auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
        ("aligned", auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
        ("classes", auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
        ("images", auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
        ("pooled", auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES),
        ("pooled", auto.MODEL_MAPPING_NAMES),
    ]
    found = next((kind for kind, names in kinds if architecture in _flat(names)), None)
    takes = getattr(_class_of(architecture), "main_input_name", "")
    if found == "pooled" and takes == "pixel_values":
        return "pooled images"
    if found is None or takes != ("pixel_values" if found == "images" else "input_ids"):
        message = (
            f"{architecture} is not a text or vision classifier, an encoder or a language model, so that no data say "
        )
        message += f"how good it is; {what_remains()}"
        raise NetworkError([Problem("network", "network.unsupported_architecture", message)])
    return found


def _flat(names: Mapping[str, Any]) -> Iterator[str]:
    for entry in names.values():
        yield from [entry] if isinstance(entry, str) else entry


@contextmanager
def _offline() -> Iterator[None]:
    """Inside the block the hub's library refuses to ask anybody."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _instance(found: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    from transformers import initialization

    _register_attention()
    try:
        config = found.config_class.from_pretrained(folder, local_files_only=True)
        config.return_dict, config.use_cache = True, False
        _choose_experts(config)
        with initialization.no_init_weights(), initialization.no_tie_weights():
            attention = _ATTENTION if found._supports_sdpa else "eager"
            module: nn.Module = found._from_config(config, dtype=dtype, attn_implementation=attention)
    except Exception as error:  # whatever a configuration of strangers makes the library do
        first = next(iter(str(error).splitlines()), type(error).__name__)
        message = f"transformers can't build {found.__name__} of the config.json: {first}; correct it, or "
        raise NetworkError([Problem("network", "network.invalid_configuration", message + what_remains())]) from error
    return module


def _register_attention() -> None:
    """The library's usual attention, with the mask always given in full.

    Else it looks whether anything is padded at all, so that an example's numbers depended on those beside it, and nothing
    could be mapped over examples.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    def full_mask(*arguments: Any, **named: Any) -> Any:
        return sdpa_mask(*arguments, **named | {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})

    AttentionInterface.register(_ATTENTION, sdpa_attention_forward)
    AttentionMaskInterface.register(_ATTENTION, full_mask)


def _choose_experts(config: Any) -> None:
    text = config.get_text_config()
    experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None)
    if isinstance(experts, int) and hasattr(text, "hidden_size"):
        width = getattr(text, "moe_intermediate_size", None) or getattr(text, "intermediate_size", None) or 0
        small = 3 * experts * width * text.hidden_size <= _GATHERED
        config._experts_implementation = "batched_mm" if small else "eager"


def _mismatches(module: nn.Module, parts: Parts, shapes: Mapping[str, tuple[int, ...]]) -> list[Problem]:
    """Tensors that the checkpoint has and the network hasn't, or has in another shape, or the other way round."""
    state = {name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if tensor.is_floating_point()}
    held: dict[str, int] = {}
    problems = []
    for name in sorted(shapes):
        part = parts.get(name)
        if part is None:
            message = f"the checkpoint has a tensor {list(shapes[name])}, the network has none of this name; name the "
            message += "architecture that has it: network: {kind: transformers, architecture: …}"
            problems.append(Problem(f"network: {name}", "network.unexpected_tensor", message))
            continue
        shape = tuple(state[part.tensor].shape) if part.whole else part.shape
        held[part.tensor] = held.get(part.tensor, 0) + torch.Size(shapes[name]).numel()
        if shape != shapes[name]:
            message = f"has shape {list(shapes[name])}, the network's is {list(shape)}; correct the config.json"
            problems.append(Problem(f"network: {name}", "network.shape_mismatch", message))
    tied = _tied(module)
    for name, tensor in state.items():
        others = [other for other in tied if tied[other] == tied.get(name, name)] if name in tied else []
        if not any(other in held for other in (name, *others)):
            message = f"the network has a tensor {list(tensor.shape)}, the checkpoint has none for it; name the "
            message += "architecture that the checkpoint is of: network: {kind: transformers, architecture: …}"
            problems.append(Problem(f"network: {name}", "network.missing_tensor", message))
        elif name in held and held[name] < tensor.numel() and not problems:
            message = f"the checkpoint has only parts of this tensor {list(tensor.shape)}; give it whole"
            problems.append(Problem(f"network: {name}", "network.missing_tensor", message))
    return problems


def _tied(module: Any) -> dict[str, str]:
    """The names that the library gives to one tensor, each with the one it is known by, which is among them."""
    pairs = dict(module.all_tied_weights_keys)
    return pairs | {source: source for source in pairs.values()}


def _tie(module: Any, parts: Parts) -> None:
    """Ties what the configuration ties and the checkpoint holds once; what it holds twice stays two tensors.

    So does the library, which compares the two that it finds.
    """
    held = {part.tensor for part in parts.values()}
    pairs = dict(module.all_tied_weights_keys)
    for target, source in pairs.items():
        if target in held and source in held:
            module.all_tied_weights_keys.pop(target)
    module.tie_weights(missing_keys={name for name in _tied(module) if name not in held}, recompute_mapping=False)


@dataclass(frozen=True)
class _Door:
    """How a network's own forward pass is to be called."""

    head: Head
    accepts: frozenset[str]
    padding_id: int


def _accepted(module: Any) -> frozenset[str]:
    """What the forward pass takes beside ids; token types where the network has any, for GPT-2 adds their words."""
    names = frozenset(inspect.signature(type(module).forward).parameters) & {"attention_mask", "token_type_ids"}
    return names if getattr(module.config.get_text_config(), "type_vocab_size", 0) else names - {"token_type_ids"}


def _padding_id(module: Any) -> int:
    known = getattr(module.config.get_text_config(), "pad_token_id", None)
    return known if isinstance(known, int) and known >= 0 else 0


def _check_padding(module: Any, head: Head) -> None:
    """A decoder's classifier looks for the last token that is no padding, and can't without knowing what padding is."""
    config = module.config.get_text_config()
    if head == "classes" and hasattr(module, "score") and not isinstance(getattr(config, "pad_token_id", None), int):
        message = "config.json has no pad_token_id, by which this classifier finds the last token of each text; add it"
        raise NetworkError([Problem("network", "network.invalid_configuration", message)])


def _tokens(module: Any, head: Head) -> Tokens | None:
    if head in ("images", "pooled images"):
        return None
    config, door = module.config.get_text_config(), module.door
    vocabulary = module.get_input_embeddings().num_embeddings
    types = config.type_vocab_size if "token_type_ids" in door.accepts else 1
    return Tokens(
        vocabulary,
        packed=True,
        masked="attention_mask" in door.accepts,
        types=types,
        aligned=head == "aligned",
        paired=head == "paired",
        longest=_longest(config),
        # Where the classifiers of encoder-decoders look; a batch with unequal numbers of it can't run.
        mark=config.eos_token_id if head == "classes" and module.config.is_encoder_decoder else None,
    )


def _longest(config: Any) -> int | None:
    """How many places a network with a table of positions has; None where it counts on."""
    known = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if not isinstance(known, int):
        return None
    # RoBERTa's table begins behind its padding's row.
    begins = config.pad_token_id + 1 if "roberta" in str(config.model_type) and config.pad_token_id is not None else 0
    return known - begins


def _of_images(self: Any, inputs: Tensor) -> Tensor:
    """Class scores (N, C) of pixels (N, channels, height, width); of a bare encoder the mean over places, (N, D)."""
    found = type(self).forward(self, pixel_values=inputs)
    if self.door.head == "images":
        logits: Tensor = found.logits
        return logits
    hidden: Tensor = found.last_hidden_state
    return hidden.mean(dim=1) if hidden.ndim == 3 else hidden.flatten(2).mean(dim=2)


def _of_tokens(self: Any, inputs: Tensor) -> Tensor:
    """Scores of packed tokens (N, T): (N, C) of a classifier; (N, T, V) of a language model, at each place for the next.

    Of a network that labels each place itself (N, T, V) with a last place that means nothing: its inputs have one of padding
    there, so that labels may stand one place behind what they are of, as those of language models do. Of a bare encoder
    the mean over all places that are no padding, (N, D).
    """
    door = self.door
    ids, mask, types = unpack(inputs[:, :-1] if door.head == "aligned" else inputs, door.padding_id)
    given = {"attention_mask": mask, "token_type_ids": types}
    found = type(self).forward(self, input_ids=ids, **{k: v for k, v in given.items() if k in door.accepts})
    if door.head == "pooled":
        share = (mask / mask.sum(dim=1, keepdim=True).clamp(min=1))[..., None]
        pooled: Tensor = (found.last_hidden_state * share.to(found.last_hidden_state.dtype)).sum(dim=1)
        return pooled
    logits: Tensor = found.logits
    return nn.functional.pad(logits, (0, 0, 0, 1)) if door.head == "aligned" else logits


def _of_pairs(self: Any, inputs: Tensor) -> Tensor:
    """Scores of packed pairs (N, 2·T), a text and then the one to be told of it, each padded to T places: (N, 2·T, V).

    Those of the second text's tokens stand one place before them, as those of language models do; what stands elsewhere
    means nothing.
    """
    half = inputs.shape[1] // 2
    ids, mask, _ = unpack(inputs[:, :half], self.door.padding_id)
    told, _, _ = unpack(inputs[:, half:], self.door.padding_id)
    start = torch.full_like(told[:, :1], self.config.decoder_start_token_id)
    before = torch.cat([start, told[:, :-1]], dim=1)
    found = type(self).forward(self, input_ids=ids, attention_mask=mask, decoder_input_ids=before)
    return nn.functional.pad(found.logits, (0, 0, half - 1, 1))
