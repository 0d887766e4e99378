"""What the cluster holds, as last seen: objects by key, found again by index.

An informer writes it, reconcilers read it; nobody asks the API server for what is here. Objects
are slimmed before they are kept: `managedFields` alone is often more than half of an object, and of
the rest more than half is names of fields, labels, owners and reasons, which are kept once for all
objects. An object in the store is never changed in place, so readers need no copy.
"""

import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from dovetail_operator.client import Json

_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"

Index = Callable[[Json], Iterable[str]]


def key_of(item: Mapping[str, Any]) -> str:
    """`<namespace>/<name>`; of a cluster-wide object `/<name>`."""
    metadata = item["metadata"]
    return f"{metadata.get('namespace', '')}/{metadata['name']}"


def slim(item: Json, keep: frozenset[str] = frozenset(), *, labels: bool = True) -> Json:
    """The object without what nobody here reads, and with equal strings kept once.

    Args:
        item: the object.
        keep: the fields that are kept beside the metadata; all where none is named.
        labels: whether its labels are kept.
    """
    metadata = dict(item["metadata"])
    metadata.pop("managedFields", None)
    if not labels:
        metadata.pop("labels", None)
    if _LAST_APPLIED in metadata.get("annotations", {}):
        kept = {k: v for k, v in metadata["annotations"].items() if k != _LAST_APPLIED}
        metadata["annotations"] = kept
    fields = {key: value for key, value in item.items() if not keep or key in keep}
    slimmed: Json = _shared({**fields, "metadata": metadata})
    return slimmed


def _shared(value: Any) -> Any:
    """The same, with every string the very one that equal ones are."""
    if isinstance(value, dict):
        return {sys.intern(key): _shared(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shared(item) for item in value]
    return sys.intern(value) if isinstance(value, str) else value


class Store:
    """Objects of one kind.

    Args:
        indexes: by name, what an object can be found by besides its key.
    """

    def __init__(self, indexes: Mapping[str, Index] | None = None) -> None:
        self._indexes = dict(indexes or {})
        self._items: dict[str, Json] = {}
        self._found: dict[str, dict[str, set[str]]] = {
            name: defaultdict(set) for name in self._indexes
        }
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: str) -> Json | None:
        """The object of that key."""
        return self._items.get(key)

    def keys(self) -> list[str]:
        """Every key, at this moment."""
        with self._lock:
            return list(self._items)

    def by(self, index: str, value: str) -> list[Json]:
        """Objects that an index files under a value, sorted by key."""
        with self._lock:
            keys = sorted(self._found[index].get(value, ()))
            return [self._items[key] for key in keys]

    def values(self, index: str) -> list[str]:
        """Every value that an index has objects for."""
        with self._lock:
            return [value for value, keys in self._found[index].items() if keys]

    def put(self, item: Json) -> Json | None:
        """Take an object in; returns the one it replaces."""
        key = key_of(item)
        with self._lock:
            old = self._items.get(key)
            self._unfile(key, old)
            self._items[key] = item
            for name, index in self._indexes.items():
                for value in index(item):
                    self._found[name][value].add(key)
            return old

    def drop(self, key: str) -> Json | None:
        """Forget an object; returns it."""
        with self._lock:
            old = self._items.pop(key, None)
            self._unfile(key, old)
            return old

    def _unfile(self, key: str, old: Json | None) -> None:
        if old is None:
            return
        for name, index in self._indexes.items():
            for value in index(old):
                self._found[name][value].discard(key)
                if not self._found[name][value]:
                    del self._found[name][value]
