"""The store and its indexes."""

import json

from hypothesis import given
from hypothesis import strategies as st

from dovetail_operator.store import Store, key_of, slim


def item(name, owner):
    return {"metadata": {"namespace": "n", "name": name, "owner": owner}}


OPERATIONS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y", None])), max_size=30
)


@given(OPERATIONS)
def test_an_index_finds_exactly_what_is_there(operations):
    """Verify over random puts and drops that the index equals a search of all objects."""
    store = Store({"owner": lambda one: [one["metadata"]["owner"]]})
    truth = {}
    for name, owner in operations:
        if owner is None:
            truth.pop(f"n/{name}", None)
            store.drop(f"n/{name}")
        else:
            truth[f"n/{name}"] = owner
            store.put(item(name, owner))

    for owner in ("x", "y"):
        expected = sorted(key for key, value in truth.items() if value == owner)
        assert [key_of(one) for one in store.by("owner", owner)] == expected
    assert sorted(store.values("owner")) == sorted(set(truth.values()))


def test_what_nobody_reads_is_not_kept():
    """Verify that managed fields and the last applied text are dropped, and fields not named."""
    last = "kubectl.kubernetes.io/last-applied-configuration"
    whole = {
        "metadata": {"name": "a", "managedFields": [1], "annotations": {last: "x", "mine": "y"}},
        "spec": {},
        "status": {},
    }

    kept = slim(whole, frozenset({"status"}))

    assert kept == {"metadata": {"name": "a", "annotations": {"mine": "y"}}, "status": {}}
    assert "managedFields" in whole["metadata"]


def test_what_is_equal_in_many_objects_is_kept_once():
    """Verify that objects read one by one share their strings, and that labels may be left out."""

    def read(name):
        text = json.dumps(
            {
                "metadata": {"name": name, "labels": {"app": "x"}, "owners": [{"uid": "u 1"}]},
                "data": {"ca.crt": "-----BEGIN " + "A" * 2000},
            }
        )
        return slim(json.loads(text), labels=False)

    one, other = read("a"), read("b")

    assert one["data"]["ca.crt"] is other["data"]["ca.crt"]
    assert one["metadata"]["owners"][0]["uid"] is other["metadata"]["owners"][0]["uid"]
    assert list(map(id, one["metadata"])) == list(map(id, other["metadata"]))
    assert one["metadata"] == {"name": "a", "owners": [{"uid": "u 1"}]}
