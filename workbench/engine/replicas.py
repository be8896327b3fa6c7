"""What several ranks do to a module: the whole of it on each (DDP), or its tensors split among them (FSDP2).

torch's own `DistributedDataParallel` and `fully_shard`, without accelerate between: it would wrap the model and divide
the loss by settings of its own, silently runs one process for some launchers and DDP where FSDP was asked for on a CPU,
and what is left for it here is two calls.

Two things decide the shape of this file. Both engines need one module whose `forward` is the whole way from ids to
hidden states (`Root`): it is where gradients are armed and weights gathered. And the loss multiplies by the head
outside of it. Under FSDP2 the root is therefore not split again after its forward: until the backward pass the head is
a plain tensor whose gradient is reduced with the rest. Gathering the head by `full_tensor()` instead gives the right
loss and a wrong gradient. The price is one whole head and embedding on each device.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.heads import base_model, decoder
from workbench.engine.ranks import Ranks, Strategy
from workbench.engine.scoring import states
from workbench.errors import UsageError


def whole(tensor: Tensor) -> Tensor:
    """A tensor as one process has it. Where it is split among ranks all of them must ask."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def split(tensor: Tensor) -> bool:
    """Whether a tensor is one rank's part of one."""
    return hasattr(tensor, "full_tensor")


def held(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: its own part of one that is split."""
    local = getattr(tensor, "to_local", None)
    return tensor if local is None else local()


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """What this process holds of them: of a tensor that is split its own part, whose `nbytes` are those of all."""
    return sum(int(held(t).nbytes) for t in tensors)


def part(like: Tensor, value: Tensor) -> Tensor:
    """`value`, which every rank holds whole, laid out as `like` is; as it is where it has another shape."""
    if not split(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    moved = value.to(device=like.device, dtype=like.dtype)
    return distribute_tensor(moved, like.device_mesh, like.placements)  # type: ignore[attr-defined]


class Root(nn.Module):
    """A causal LM whose forward ends at the hidden states that predict the completions."""

    def __init__(self, model: Any, *, apart: bool) -> None:
        """`apart`: in as many calls of the decoder as is cheapest.

        A split layer is a meeting of all ranks each time it runs: there each makes one call, however unlike its texts.
        """
        super().__init__()
        self.model, self._apart = model, apart

    def forward(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device
    ) -> Tensor:
        """(N, h), as `scoring.states`."""
        return states(decoder(self.model), prompts, completions, device, apart=self._apart)


class Replicas:
    """One process: modules are run as they are."""

    scale = 1.0
    """What a loss is multiplied by before its backward pass: both engines take the mean of the ranks' gradients."""

    def states(
        self, model: Any, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device
    ) -> Tensor:
        """(N, h) hidden states that predict each completion token; see `scoring.states`."""
        return states(decoder(model), prompts, completions, device)

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around forward and backward of a micro-batch: gradients cross between ranks in the `last` one alone."""
        return contextlib.nullcontext()

    def settle(self) -> None:
        """Before parameters are read, moved or forgotten: let each be what its rank keeps of it."""

    def decoding(self) -> contextlib.AbstractContextManager[None]:
        """While ranks decode, each in its own time."""
        return contextlib.nullcontext()

    def assembled(self, student: Any) -> Any:
        """The student with whole weights, on the first rank; all ranks must ask."""
        return student


class Replicated(Replicas):
    """DDP: every rank has the whole model, and gradients are averaged."""

    def __init__(self, ranks: Ranks, student: Any) -> None:
        """Weights are taken from the first rank."""
        from torch.nn.parallel import DistributedDataParallel

        self.scale, self._student = float(ranks.size), base_model(student)
        self._ddp = DistributedDataParallel(Root(student, apart=True))

    def states(
        self, model: Any, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device
    ) -> Tensor:
        """Through DDP where a gradient will follow."""
        if base_model(model) is not self._student or not torch.is_grad_enabled():
            return states(decoder(model), prompts, completions, device)
        hidden: Tensor = self._ddp(prompts, completions, device)
        return hidden

    @contextlib.contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """`no_sync` but for the last."""
        with contextlib.nullcontext() if last else self._ddp.no_sync():
            yield


class Sharded(Replicas):
    """FSDP2: each rank keeps its part of every tensor, its gradient and the optimizer's; layers are gathered to run."""

    def __init__(self, ranks: Ranks, student: Any, copies: Iterable[Any], device: torch.device) -> None:
        """Split the student and the `copies` of it that teach, in place."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

        self.scale, mesh = float(ranks.size), init_device_mesh(device.type, (ranks.size,))
        self._first, self._device, self._skeleton = ranks.first, device, Skeleton(student)
        policy = CPUOffloadPolicy(pin_memory=device.type == "cuda") if ranks.offload else OffloadPolicy()
        self._roots = {id(model): Root(model, apart=False) for model in (student, *copies)}
        for root in self._roots.values():
            for layer in layers_of(root.model):
                fully_shard(layer, mesh=mesh, offload_policy=policy)
            fully_shard(root, mesh=mesh, reshard_after_forward=False, offload_policy=policy)
            with torch.no_grad():  # the first module to run is the root: let it be this one
                root([[0]], [[0]], device)
        self.settle()

    def states(
        self, model: Any, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device
    ) -> Tensor:
        """Through the root. Another model, which no rank split, is run as it is."""
        root = self._roots.get(id(model))
        if root is None:
            return states(decoder(model), prompts, completions, device)
        hidden: Tensor = root(prompts, completions, device)
        head = base_model(model).get_output_embeddings().weight
        assert not split(head), "the head must be whole until the backward pass, or its gradient would be wrong"
        return hidden

    @contextlib.contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Gradients stay whole on each rank until the last."""
        for root in self._roots.values():
            root.set_requires_gradient_sync(last)  # type: ignore[operator]
        yield

    def settle(self) -> None:
        """Split what a forward without a backward left whole; the optimizer would move the parts and leave it stale."""
        for module in self._modules():
            module.reshard()

    @contextlib.contextmanager
    def decoding(self) -> Iterator[None]:
        """Every weight on every rank while they write: a sharded layer would make all ranks meet at every token.

        The price is a whole model on each device beside nothing else: gradients and optimizer stay split.
        """
        self._stay_whole(True)
        for module in self._modules():
            module.unshard()
        try:
            yield
            self._same_last()
        finally:
            self._stay_whole(False)
            self.settle()

    @torch.no_grad()
    def _same_last(self) -> None:
        """Let every rank have run the same layers last, as one that wrote nothing has not.

        torch gathers ahead, in a backward pass, what ran before the layer at hand, and remembers runs without gradient
        too: ranks whose memories differ would wait for each other in different places.
        """
        for root in self._roots.values():
            root([[0]], [[0]], self._device)

    def assembled(self, student: Any) -> Any:
        """A module of its own, filled tensor by tensor; elsewhere than on the first rank without weights."""
        self.settle()
        kept = {}
        for name, p in student.named_parameters():
            gathered = whole(p.detach())
            if self._first:
                kept[name] = gathered
        return self._skeleton.filled(kept)

    def _stay_whole(self, stay: bool) -> None:
        for root in self._roots.values():
            root.set_reshard_after_forward(not stay)  # type: ignore[operator]
            root.set_reshard_after_forward(False, recurse=False)  # type: ignore[operator]

    def _modules(self) -> Iterator[Any]:
        from torch.distributed.fsdp import FSDPModule

        for root in self._roots.values():
            yield from (module for module in root.modules() if isinstance(module, FSDPModule))


def layers_of(model: Any) -> list[nn.Module]:
    """The blocks that are gathered one at a time: those transformers would not split between devices."""
    base = base_model(model)
    names = set(getattr(base, "_no_split_modules", None) or ())
    return [module for module in base.modules() if type(module).__name__ in names]


def replicas(
    ranks: Ranks, student: Any, copies: Sequence[Any], adapter: str | None, device: torch.device
) -> tuple[Ranks, Replicas]:
    """What runs as was asked for, and `ranks` with its name. Raises UsageError for an adapter under FSDP2."""
    strategy: Strategy = (
        "ddp" if ranks.asked == "auto" and (adapter or fits(ranks, student, copies, device)) else "fsdp2"
    )
    strategy = strategy if ranks.asked == "auto" else ranks.asked
    if strategy == "ddp":
        return replace(ranks, strategy=strategy), Replicated(ranks, student)
    if adapter is not None:
        raise UsageError(
            f"--parallel fsdp2 with --adapter {adapter}: a teacher under an adapter is the student's weights with some "
            "swapped, which split tensors do not allow. Use --parallel ddp: an adapter's gradients are small."
        )
    return replace(ranks, strategy=strategy), Sharded(ranks, student, copies, device)


def fits(ranks: Ranks, student: Any, copies: Sequence[Any], device: torch.device) -> bool:
    """Whether every rank can hold all of it.

    Weights, gradients and AdamW's two averages, with the copies that teach, take at most half of the device: the rest
    is for activations and the cache of decoding. On a CPU the ranks of a host share its memory.
    """
    trained = sum(p.numel() * p.element_size() for p in student.parameters() if p.requires_grad)
    held = sum(p.numel() * p.element_size() for model in (student, *copies) for p in model.parameters())
    if device.type == "cuda":
        room = torch.cuda.get_device_properties(device).total_memory
    else:
        room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks.launch.local_size
    return all(ranks.together(lambda: 2 * (held + 3 * trained) <= room))


class Skeleton:
    """A module without its weights, to be filled with those that ranks hold in parts: for what must be one process's.

    Made before the module is split; buffers are copied, tied weights stay tied.
    """

    def __init__(self, model: Any) -> None:
        """Costs no memory but the buffers'."""
        memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
        self._bare = copy.deepcopy(model, memo)
        self._names = {id(p): name for name, p in self._bare.named_parameters()}

    def filled(self, weights: dict[str, Tensor]) -> Any:
        """The module with these weights, by name; a tied one stands once."""
        made = {name: nn.Parameter(value) for name, value in weights.items()}
        for module in self._bare.modules():
            for key, p in module._parameters.items():
                if p is not None and self._names.get(id(p)) in made:
                    module._parameters[key] = made[self._names[id(p)]]
        return self._bare
