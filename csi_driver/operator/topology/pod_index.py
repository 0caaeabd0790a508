"""Which pods without a node use a PVC: a change of the PVC concerns them."""

from collections.abc import Iterable, Iterator

from csi_driver.operator.topology.observe import Key


class PodIndex:
    """Pods that use PVCs, by their keys. A PVC that does not exist yet may be used as well."""

    def __init__(self) -> None:
        self._pvcs: dict[Key, tuple[Key, ...]] = {}
        self._pods: dict[Key, set[Key]] = {}

    def __contains__(self, pod: object) -> bool:
        return pod in self._pvcs

    def __iter__(self) -> Iterator[Key]:
        return iter(self._pvcs)

    def put(self, pod: Key, names: Iterable[str]) -> None:
        """Replace what is known of a pod by the names of its PVCs; without any, the pod is dropped."""
        for pvc in self._pvcs.pop(pod, ()):
            users = self._pods[pvc]
            users.discard(pod)
            if not users:
                del self._pods[pvc]
        pvcs = tuple((pod[0], name) for name in dict.fromkeys(names))
        if pvcs:
            self._pvcs[pod] = pvcs
        for pvc in pvcs:
            self._pods.setdefault(pvc, set()).add(pod)

    def using(self, pvc: Key) -> Iterable[Key]:
        """Return the pods that use a PVC."""
        return self._pods.get(pvc, ())
