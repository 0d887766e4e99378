"""From pydantic's JSON schema to the structural schema that Kubernetes accepts and enforces.

The API server refuses a raw pydantic schema for `$ref`, `anyOf` with null, numeric exclusive
bounds and `additionalProperties: false` beside properties, and, worse, takes a `const` and does not
enforce it. So nothing is passed through: each keyword is either translated here or ends the build
with `NotStructural`, which also refuses what would be legal and wrong for users: a string, list or
map without a bound (the API server could then not bound the cost of a CEL rule), a list that does
not say how it merges, and a field without a description (`kubectl explain` must teach).

What differs on purpose: `extra="forbid"` has no structural form. The API server drops unknown
fields with a warning; it refuses them under strict field validation, which is what `kubectl apply`
asks for by default, and what the tests demand to be the same verdict as pydantic's.

Follows "Specifying a structural schema" of the Kubernetes documentation on custom resources.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic.alias_generators import to_camel

from dovetail.errors import NotStructural
from dovetail.rules import LIST_KEYS, LIST_TYPE, RULES, without_nulls

Schema = dict[str, Any]

# Keywords that mean the same to JSON schema and to the API server.
_SAME: Final = (
    "type",
    "enum",
    "format",
    "required",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minimum",
    "maximum",
    LIST_TYPE,
    LIST_KEYS,
    RULES,
)
_TRANSLATED: Final = frozenset(
    {
        "$ref",
        "$defs",
        "title",
        "description",
        "default",
        "const",
        "anyOf",
        "properties",
        "additionalProperties",
        "items",
        "exclusiveMinimum",
        "exclusiveMaximum",
    }
)
_ATTRIBUTE: Final = re.compile(r"^    (\w+): (.*)$")


def structural(schema: Mapping[str, Any], where: str) -> Schema:
    """Convert one pydantic JSON schema, made by alias and in validation mode.

    Args:
        schema: as `model_json_schema()` gives it, with its `$defs`.
        where: path of the schema in the resource, for messages, such as `spec`.

    Raises:
        NotStructural: a keyword without a structural form, no bound, or no description; the
            message names the field.
    """
    return _Converter(schema.get("$defs", {})).convert(schema, where)


class _Converter:
    """Walks a schema; holds what its references refer to."""

    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions

    def convert(
        self, schema: Mapping[str, Any], where: str, said: str = "", otherwise: str = ""
    ) -> Schema:
        """One node of the tree, described as its parent said, its class says, or otherwise."""
        node = self._resolved(schema, where)
        unknown = node.keys() - _TRANSLATED - set(_SAME)
        if unknown:
            raise NotStructural(f"{where}: {', '.join(sorted(unknown))} has no structural form")
        prose, attributes = read_docstring(node.get("description", ""))
        result: Schema = {"description": _described(said or prose or otherwise, where)}
        result |= {key: node[key] for key in _SAME if key in node}
        result |= _constant(node) | _exclusive(node, where)
        if "default" in node:
            result["default"] = without_nulls(node["default"])
        result |= self._children(node, where, attributes)
        _check_bounds(result, where)
        return result

    def _resolved(self, schema: Mapping[str, Any], where: str) -> Schema:
        """The schema without references and without "or null"."""
        node = dict(schema)
        if "anyOf" in node:  # a null means "not given": the API server drops it, and so do we
            choices = [item for item in node.pop("anyOf") if item != {"type": "null"}]
            if len(choices) != 1:
                raise NotStructural(f"{where}: a choice of types has no structural form")
            node = choices[0] | node
        if "$ref" in node:
            name = node.pop("$ref").removeprefix("#/$defs/")
            node = self._definitions[name] | node
        if node.get("default", ...) is None:
            del node["default"]
        return node

    def _children(self, node: Schema, where: str, attributes: Mapping[str, str]) -> Schema:
        if node.get("type") == "array":
            items = self.convert(node.get("items", {}), f"{where}[]", otherwise="One item.")
            return {LIST_TYPE: node.get(LIST_TYPE, "atomic"), "items": items}
        if node.get("type") != "object":
            return {}
        if "properties" in node:
            return {
                "properties": {
                    name: self.convert(child, f"{where}.{name}", attributes.get(name, ""))
                    for name, child in node["properties"].items()
                }
            }
        values = node.get("additionalProperties")
        if not isinstance(values, dict):
            raise NotStructural(f"{where}: an object needs properties or a type for its values")
        return {"additionalProperties": self.convert(values, f"{where}.*", otherwise="One value.")}


def read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Prose and attributes (by their names in the manifest) of a Google-style class docstring."""
    prose, _, section = text.partition("\nAttributes:\n")
    attributes: dict[str, str] = {}
    current = ""
    for line in section.splitlines():
        if match := _ATTRIBUTE.match(line):
            current = to_camel(match[1])
            attributes[current] = match[2]
        elif line.strip() and current:
            attributes[current] += " " + line.strip()
    return prose.strip(), attributes


def _described(text: str, where: str) -> str:
    if not text:
        raise NotStructural(f"{where}: no description; add it under Attributes of its class")
    return text[0].upper() + text[1:]


def _constant(node: Schema) -> Schema:
    """`const`, which the API server drops in silence, as an `enum` of one."""
    return {"enum": [node["const"]]} if "const" in node else {}


def _exclusive(node: Schema, where: str) -> Schema:
    """Exclusive bounds in the form that structural schemas have: a bound and a flag."""
    result: Schema = {}
    for bound in ("minimum", "maximum"):
        exclusive = f"exclusive{bound.capitalize()}"
        if exclusive not in node:
            continue
        if bound in node:
            raise NotStructural(f"{where}: {bound} and {exclusive} cannot both be given")
        result |= {bound: node[exclusive], exclusive: True}
    return result


def _check_bounds(node: Schema, where: str) -> None:
    kind = node.get("type")
    if kind not in {"string", "integer", "number", "boolean", "array", "object"}:
        raise NotStructural(f"{where}: type {kind!r} has no structural form")
    bounds = {"string": "maxLength", "array": "maxItems", "object": "maxProperties"}
    exempt = "enum" in node or "properties" in node
    if kind in bounds and not exempt and bounds[kind] not in node:
        raise NotStructural(f"{where}: {kind} needs a bound ({bounds[kind]})")
