"""The network from a cut on: what was called before it is answered from a record instead of being computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cogram_core.networks.calls import Call, CallTree, rebuilt, replaced
from cogram_core.networks.network import Network

Key = tuple[str, int]


class _ReachedError(Exception):
    """Ends a forward pass where nothing after it is wanted."""


class Rest:
    """Runs what comes after a cut, on one batch of examples or on a choice of them.

    Every outermost call that ended before the cut's begins gives its recorded output. What stands between calls is run
    again, and so is everything around the cut, so that no list of known modules is needed.
    """

    def __init__(self, network: Network, inputs: Tensor) -> None:
        self._network = network
        self._modules = dict(network.module.named_modules())
        self._inputs = inputs
        self._record: dict[Key, Any] = {}
        self._copied = False  # whether something is changed in place after it was recorded
        self.cut: Call = network.calls.calls[0]
        self._needed: list[Call] = []
        self._forwards: dict[str, Callable[..., Any]] = {}
        self.chain: list[nn.Module] | None = None
        self._used: set[Key] | None = None
        self._inputs_used = True
        self._seen: Counter[str] = Counter()
        self._examples: Tensor | None = None

    @property
    def _tree(self) -> CallTree:
        return self._network.calls

    def go_to(self, cut: Call) -> None:
        """Cuts before ``cut`` and records what is still missing; what this cut doesn't need is dropped."""
        self._used = self.chain = None
        self.cut, self._needed = cut, self._tree.before(cut)
        self._forwards = {name: self._answer(name) for name in {call.module for call in self._needed}}
        keys = {call.key for call in self._needed}
        self._record = {key: value for key, value in self._record.items() if key in keys}
        if missing := keys - self._record.keys():
            self._fill(missing)

    def forget_after(self, cut: Call) -> None:
        """Drops what was computed after the beginning of ``cut``, where something has changed."""
        self._record = {
            (name, nth): value
            for (name, nth), value in self._record.items()
            if self._tree.of(name)[nth].end < cut.begin
        }

    def run(self, output: Tensor | None = None, examples: Tensor | None = None) -> Tensor:
        """The network's output (B, ...).

        Args:
            output: what the cut's call gives, shape (B, ...); None: it is computed.
            examples: int64 (B,), which examples of the batch; None: all, in order. Needs ``learn_use`` first.
        """
        if self.chain is not None and output is not None:
            return self._through_chain(self.chain, output)
        self._examples = examples
        forwards = self._forwards if output is None else {**self._forwards, self.cut.module: lambda *_, **__: output}
        inputs = self._inputs
        if examples is not None:
            inputs = inputs.index_select(0, examples) if self._inputs_used else self._stretched(inputs, len(examples))
        self._seen.clear()
        before = self._versions()
        with replaced(self._modules, forwards), torch.no_grad():
            result: Tensor = self._network.module(inputs)
        if self._versions() != before:
            # This pass was still right; the next ones get copies of what is recorded.
            self._copied, self._record, self._examples = True, {}, None
            self._fill({call.key for call in self._needed})
        return result

    def _versions(self) -> list[int]:
        """Counts how often each recorded tensor was changed in place."""
        return [v._version for v in pytree.tree_leaves(self._record) if isinstance(v, Tensor)]

    @staticmethod
    def _through_chain(chain: list[nn.Module], output: Tensor) -> Tensor:
        with torch.no_grad():
            for module in chain:
                # What comes in belongs to nobody else, so that no new memory is needed.
                output = torch.relu_(output) if type(module) is nn.ReLU else module(output)
        return output

    def capture(
        self, calls: Collection[Key], output: Tensor | None = None, copies: bool = True
    ) -> tuple[Tensor, dict[Key, tuple[Any, Any]]]:
        """The network's output, and first argument and output of some calls from the cut on; ``output`` as in ``run``.

        They are copies, for a later module may work in place, unless the very tensors are asked for.
        """
        found: dict[Key, tuple[Any, Any]] = {}
        counts: Counter[str] = Counter()

        def keep(name: str, arguments: tuple[Any, ...], output: Any) -> None:
            key = (name, counts[name])
            counts[name] += 1
            if key in calls:
                given = arguments[0] if arguments else None
                found[key] = (_copy(given), _copy(output)) if copies else (given, output)

        handles = [
            self._modules[name].register_forward_hook(
                lambda _, arguments, output, name=name: keep(name, arguments, output)
            )
            for name in {name for name, _ in calls}
        ]
        try:
            return self.run(output), found
        finally:
            for handle in handles:
                handle.remove()

    def fork(self) -> Rest:
        """Another rest with the same cut, which may go elsewhere; what is recorded is shared."""
        other = Rest(self._network, self._inputs)
        other._record, other._copied = dict(self._record), self._copied
        other.go_to(self.cut)
        return other

    def given_to(self, call: Call, output: Tensor, examples: Tensor) -> Tensor:
        """The first argument of a later call; ``output`` and ``examples`` as in ``run``, which ends there.

        Raises:
            RuntimeError: if the call is not reached, or given no tensor.
        """
        found: list[Any] = []
        passed = 0

        def reached(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            nonlocal passed
            passed += 1
            if passed > call.nth:
                found.extend(arguments[:1])
                raise _ReachedError

        handle = self._modules[call.module].register_forward_pre_hook(reached)
        try:
            self.run(output, examples)
        except _ReachedError:
            pass
        finally:
            handle.remove()
        if not found or not isinstance(found[0], Tensor):
            raise RuntimeError(f"{call.module} is given no tensor")
        return found[0]

    def learn_use(self, output: Tensor, most: int = 4) -> None:
        """Finds out which recorded outputs the rest really reads, so that the others need not be gathered."""
        few = torch.arange(min(most, len(self._inputs)), device=self._inputs.device)
        self._used, self._inputs_used = {call.key for call in self._needed}, True
        leaves: dict[Key | None, list[Tensor]] = {}
        kept = self._record

        def leaf(key: Key | None, value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                leaves.setdefault(key, []).append(torch.zeros(()))  # can't be told: it counts as used
                return value.index_select(0, few) if isinstance(value, Tensor) else value
            chosen = value.index_select(0, few).requires_grad_()
            leaves.setdefault(key, []).append(chosen)
            return chosen * 1

        try:
            with torch.enable_grad():
                self._record = {
                    key: pytree.tree_map(lambda v, key=key: leaf(key, v), value) for key, value in kept.items()
                }
                inputs = leaf(None, self._inputs)
                self._seen.clear()
                self._examples = None
                given = output.index_select(0, few)
                forwards = {**self._forwards, self.cut.module: lambda *_, **__: given}
                with replaced(self._modules, forwards):
                    total = self._network.module(inputs).sum()
                used = _reached(total, leaves)
        except (RuntimeError, IndexError):
            return
        finally:
            self._record = kept
        self._used = {key for key in used if key is not None}
        self._inputs_used = None in used

    def find_chain(self, output: Tensor) -> None:
        """Finds out whether the rest is nothing but one module after the other, which can then be called directly.

        ``output`` is what the cut's call gives, (N, ...); afterwards ``run`` may overwrite the outputs that it is given.
        """
        after = [call for call in self._tree.calls if call.begin > self.cut.end]
        inner = {call.parent for call in after}
        leaves = [call for place, call in enumerate(self._tree.calls) if call in after and place not in inner]
        result, seen = self.capture([call.key for call in leaves], output, copies=False)
        arriving = output
        for call in leaves:
            given, leaving = seen.get(call.key, (None, None))
            if given is not arriving or not isinstance(leaving, Tensor):
                return
            arriving = leaving
        if arriving is result:
            self.chain = [self._modules[call.module] for call in leaves]

    def _answer(self, name: str) -> Callable[..., Any]:
        forward = self._modules[name].forward

        def answer(*arguments: Any, **named: Any) -> Any:
            key = (name, self._seen[name])
            self._seen[name] += 1
            if key not in self._record:
                return forward(*arguments, **named)
            return self._given(key)

        return answer

    def _given(self, key: Key) -> Any:
        value = self._record[key]
        examples = self._examples
        if examples is not None and (self._used is None or key in self._used):
            return pytree.tree_map(lambda v: v.index_select(0, examples) if isinstance(v, Tensor) else v, value)
        if examples is not None:
            value = pytree.tree_map(lambda v: self._stretched(v, len(examples)), value)
        return _copy(value) if self._copied else rebuilt(value)

    def _stretched(self, value: Any, count: int) -> Any:
        """A tensor whose numbers nobody reads, for so many examples, without a copy: its shape may be asked for."""
        if not isinstance(value, Tensor) or value.shape[:1] != self._inputs.shape[:1]:
            return value
        return value[:1].expand(count, *value.shape[1:])

    def _fill(self, missing: set[Key]) -> None:
        """Runs up to the cut and keeps the outputs of the missing calls."""
        fresh: dict[Key, Any] = {}
        versions: list[tuple[Tensor, int]] = []
        counts: Counter[str] = Counter()

        def keep(name: str, output: Any) -> None:
            key = (name, counts[name])
            counts[name] += 1
            if key in missing:
                fresh[key] = _copy(output) if self._copied else rebuilt(output)
                versions.extend((v, v._version) for v in pytree.tree_leaves(fresh[key]) if isinstance(v, Tensor))

        def reached(*_: Any) -> None:
            raise _ReachedError

        handles = [
            self._modules[name].register_forward_hook(lambda _, __, output, name=name: keep(name, output))
            for name in {name for name, _ in missing}
        ]
        handles.append(self._modules[self.cut.module].register_forward_pre_hook(reached))
        before = self._versions()
        try:
            self.run()
        except _ReachedError:
            pass
        finally:
            for handle in handles:
                handle.remove()
        changed = self._versions() != before or any(tensor._version != version for tensor, version in versions)
        if changed and not self._copied:
            self._copied = True
            self._record = {}
            self._fill({call.key for call in self._needed})
            return
        self._record |= fresh


def _copy(value: Any) -> Any:
    return pytree.tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, value)


def _reached(total: Tensor, leaves: dict[Key | None, list[Tensor]]) -> set[Key | None]:
    """The leaves' keys that have a part in the total, and those of which that can't be told."""
    asked = [(key, leaf) for key, group in leaves.items() for leaf in group if leaf.requires_grad]
    used = {key for key, group in leaves.items() for leaf in group if not leaf.requires_grad}
    if not total.requires_grad or not asked:
        return used
    gradients = torch.autograd.grad(total, [leaf for _, leaf in asked], allow_unused=True)
    return used | {key for (key, _), gradient in zip(asked, gradients, strict=True) if gradient is not None}
