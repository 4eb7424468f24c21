"""Which kind of GPU a run trains on, as far as is known: by its node selector, its node, or nodes it may get. Pure."""

from collections.abc import Iterable, Sequence

from finetune_api.names import GPU_MEMORY_LABEL, GPU_PRODUCT_LABEL
from finetune_api.resource import Finetune
from finetune_api.run import GpuSize

from finetune_operator.observed import Labels, Observed
from finetune_operator.prices import GpuKind
from finetune_operator.quantities import bytes_of
from finetune_operator.settings import Settings


def kind_of(finetune: Finetune, observed: Observed, settings: Settings) -> GpuKind | None:
    """The entry of the operator's table; None for a run without GPU, or while nobody can say.

    What the user asks for and where a pod runs decide; until then what was known, and what all nodes agree on.
    """
    if not finetune.spec.trainer.gpus_per_node:
        return None
    particular = [kind for kind in settings.gpus if kind.node_labels]
    if asked := first_match(particular, finetune.spec.trainer.node_selector):
        return asked
    if observed.node is not None:
        return first_match(settings.gpus, observed.node)
    cost = finetune.status.cost
    known = next((kind for kind in settings.gpus if cost and kind.name == cost.gpu), None)
    return known or _agreed(settings.gpus, observed.nodes)


def first_match(kinds: Iterable[GpuKind], labels: Labels) -> GpuKind | None:
    """The first kind whose labels are all among these."""
    return next((kind for kind in kinds if kind.node_labels.items() <= labels.items()), None)


def size_of(finetune: Finetune, observed: Observed, settings: Settings) -> GpuSize | None:
    """The GPU that training will get: the largest, where its nodes have several kinds; None for a run without."""
    if not finetune.spec.trainer.gpus_per_node:
        return None
    kind = kind_of(finetune, observed, settings)
    sizes = [
        (int(labels[GPU_MEMORY_LABEL]) * 2**20, _product(labels)) for labels in observed.nodes if _has_memory(labels)
    ]
    largest, product = max(sizes, default=(None, finetune.spec.trainer.gpu_resource))
    memory = bytes_of(kind.memory) if kind and kind.memory else largest
    return GpuSize(name=kind.name if kind else product, memory_bytes=memory)


def _has_memory(labels: Labels) -> bool:
    return labels.get(GPU_MEMORY_LABEL, "").isdecimal() and int(labels[GPU_MEMORY_LABEL]) > 0


def _product(labels: Labels) -> str:
    return labels.get(GPU_PRODUCT_LABEL, "GPU")


def _agreed(kinds: Sequence[GpuKind], nodes: Sequence[Labels]) -> GpuKind | None:
    """The one kind of all nodes with a GPU that training may get; without any node, the kind for all others."""
    particular = [kind for kind in kinds if kind.node_labels]
    other = next((kind for kind in kinds if not kind.node_labels), None)
    with_gpu = [labels for labels in nodes if first_match(particular, labels) or GPU_PRODUCT_LABEL in labels]
    found = {kind.name: kind for labels in with_gpu if (kind := first_match(kinds, labels))}
    if not with_gpu:
        return other
    return next(iter(found.values())) if len(found) == 1 else None
