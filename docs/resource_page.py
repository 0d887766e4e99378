"""The reference of `HybridDeployment`, from the very schema that the API server enforces.

Generated from the definition rather than from the types: what a person reads here is what
`kubectl explain` prints and what admission holds them to.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from dovetail.crd import definition
from dovetail.rules import LIST_KEYS, RULES

Schema = Mapping[str, Any]

_HEAD = """# HybridDeployment

`dovetail.dev/v1alpha1`, short name `hd`. One resource is one model in two places: its head on edge
devices, its tail in a pool of the cluster, and the cut between them, which moves with what is
measured. The same manifest is taken by `dovetail up` on one machine; what only a cluster has is
left there. `kubectl explain hd.spec.split` prints what is here.

```yaml
apiVersion: dovetail.dev/v1alpha1
kind: HybridDeployment
metadata:
  name: page
spec:
  model:
    uri: https://models.example/page.onnx
  edge:
    classes:
      - name: camera
        nodeSelector: {kind: camera}
```

An annotation of the resource, `dovetail.dev/slowdown: "30"`, has its edges on nodes run 30 times
slower: a slow device where there is none. Each says so in its log.

`Ready` holds as long as requests are answered, whichever version answers them;
[operations](operations.md) says what each condition means and what to do.

## A new version

A version is a bundle; another model, other inputs, calibration, quality or codecs make another one.
Its tail is started beside the old. Once that runs, plans name the new version, devices fetch its
bundle while they go on answering, and each changes over between two requests. The old tail stays
until no device has reported the old version for `spec.rollout.retain`.

A version that cannot be made (`PartitionFailed`) or served (`RolloutFailed`) never takes over: the
old goes on serving, `Ready` stays `True`, and `Degraded` says which version was refused and why.

`status.versions` lists the versions there are. To go back to one:

```sh
kubectl describe hd page
kubectl patch hd page --type=merge -p '{"spec": {"rollout": {"rollback": "sha256:…"}}}'
```

and forward again: `… -p '{"spec": {"rollout": {"rollback": null}}}'`. A rollout needs a free place
in its pool, because a place is a tail.

"""


def reference() -> str:
    """The whole page."""
    root = definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    parts = [_HEAD]
    for name in ("spec", "status"):
        parts.extend(_sections(root["properties"][name], name))
    return "".join(parts).rstrip() + "\n"


def _sections(schema: Schema, path: str) -> Iterator[str]:
    """A section for an object and for every object below it."""
    own = _object(schema)
    if own is None:
        return
    required = set(own.get("required", ()))
    rows = [
        f"| `{name}` | {_type(child)} | {_default(child, name in required)} | {_said(child)} |"
        for name, child in own["properties"].items()
    ]
    level = "##" if "." not in path else "###"
    yield f"{level} {path}\n\n{own['description']}\n\n"
    yield "| field | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n\n"
    rules = [rule["message"] for rule in own.get(RULES, ())]
    if rules:
        yield "Rules: " + "; ".join(rules) + ".\n\n"
    for name, child in own["properties"].items():
        suffix = "[]" if child["type"] == "array" else ""
        yield from _sections(child, f"{path}.{name}{suffix}")


def _object(schema: Schema) -> Schema | None:
    """The object that a field is, or has as its items; None for neither."""
    if schema["type"] == "array":
        return _object(schema["items"])
    return schema if "properties" in schema else None


def _type(schema: Schema) -> str:
    if "enum" in schema:
        choices = [f"`{choice}`" for choice in schema["enum"]]
        return ", ".join(choices)
    kind = schema["type"]
    if kind == "array":
        keyed = f", told apart by `{schema[LIST_KEYS][0]}`" if LIST_KEYS in schema else ""
        return f"list{_bounds(schema, 'Items')} of {_type(schema['items'])}{keyed}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"map{_bounds(schema, 'Properties')} of {_type(values)}" if values else "object"
    return f"{kind}{_bounds(schema, 'Length')}"


def _bounds(schema: Schema, of: str) -> str:
    """Bounds of a number, or of the length of anything else."""
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is None and most is None:
        least, most = schema.get(f"min{of}"), schema.get(f"max{of}")
    low = ("> " if schema.get("exclusiveMinimum") else "≥ ") + f"{least}"
    high = ("< " if schema.get("exclusiveMaximum") else "≤ ") + f"{most}"
    bounds = [text for text, value in ((low, least), (high, most)) if value is not None]
    return f" {', '.join(bounds)}" if bounds else ""


def _default(schema: Schema, required: bool) -> str:
    if required:
        return "required"
    if "default" not in schema or schema["default"] in ({}, []):
        return ""
    if schema["type"] in ("object", "array"):
        return "see below" if _object(schema) else f"`{schema['default']}`"
    return (
        f"`{str(schema['default']).lower() if schema['type'] == 'boolean' else schema['default']}`"
    )


def _said(schema: Schema) -> str:
    """Description and the form a value must have, in one cell."""
    text = schema["description"].split("\n\n")[0].replace("\n", " ")
    if schema["type"] == "string" and RULES in schema:
        text += f" It {schema[RULES][0]['message'].rstrip('.')}."
    return text.replace("|", "\\|")
