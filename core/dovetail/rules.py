"""Rules said once, kept twice: by pydantic here, by the API server in a cluster.

A manifest that `dovetail up` takes and a cluster refuses, or the other way round, would make the
one resource two. So a rule is declared where the type is, with its message, its Python predicate
and its CEL expression side by side; pydantic runs the first, and the second travels into the
`CustomResourceDefinition` as `x-kubernetes-validations`. Nothing proves that the two agree but a
property test that gives the same specs to both, which is why it exists (`tests/kube`).

The same holds for reading: the API server takes 4.0 for 4 and no `"4"`, and treats a null as not
given, so `Checked` does too when a manifest is parsed. The trade-off is that pydantic's own short
forms (`pattern=`, a lone `model_validator`) are not used in the resource: they would give the API
server a message with a regular expression in it, or no rule at all.

Follows the Kubernetes API concepts on structural schemas and CEL validation rules
(https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from dovetail.tensor import Document

RULES: Final = "x-kubernetes-validations"
LIST_TYPE: Final = "x-kubernetes-list-type"
LIST_KEYS: Final = "x-kubernetes-list-map-keys"


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule over several fields of one object.

    Attributes:
        holds: whether a parsed object keeps it.
        cel: the same in CEL, where `self` is the object; its optional fields need `has()`.
        message: what a person must change, in the manifest's own names.
    """

    holds: Callable[[Any], bool]
    cel: str
    message: str

    @property
    def validation(self) -> dict[str, str]:
        """The rule as Kubernetes writes it."""
        return {"rule": self.cel, "message": self.message}


class Checked(Document):
    """Base of every object in the resource: read as the API server reads, held to its rules.

    Attributes:
        rules: rules over several fields, in the order in which they are reported.
    """

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _as_the_api_server_reads(cls, data: Any) -> Any:
        """Take null for "not given", 4.0 for 4, and a list for a tuple where types are strict."""
        if not isinstance(data, Mapping):
            return data
        known = {field.alias for field in cls.model_fields.values()}
        return {
            key: _read(value)
            for key, value in data.items()
            if value is not None or key not in known
        }

    @model_validator(mode="after")
    def _keeps_its_rules(self) -> Self:
        broken = [rule.message for rule in self.rules if not rule.holds(self)]
        if broken:
            raise ValueError("; ".join(broken))
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Add the rules to the object's JSON schema."""
        schema = handler(core)
        if cls.rules:
            handler.resolve_ref_schema(schema)[RULES] = [rule.validation for rule in cls.rules]
        return schema


def without_nulls(value: Any) -> Any:
    """A document without the nulls in its objects, which mean "not given"."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_read(item) for item in value)
    if isinstance(value, float) and value.is_integer():
        return int(value)  # a field that holds fractions makes a float of it again
    return value


@dataclass(frozen=True, slots=True)
class Matches:
    """A string of a given form, refused in words instead of with the expression.

    Attributes:
        pattern: anchored expression in the syntax that RE2 and `re` share.
        message: what the string must be, with an example.
    """

    pattern: str
    message: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Check the expression after the type."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Give editors the expression and people the message."""
        rule = {"rule": f"self.matches(r'{self.pattern}')", "message": self.message}
        return {**handler(core), "pattern": self.pattern, RULES: [rule]}

    def _check(self, text: str) -> str:
        # fullmatch, because a `$` of Python's also matches before a last newline
        if not re.fullmatch(self.pattern, text):
            raise ValueError(self.message)
        return text


@dataclass(frozen=True, slots=True)
class Keyed:
    """A list whose items differ in one field, which lets several writers own items of it.

    Attributes:
        key: the field, by its name in Python, which must equal its name in the manifest.
    """

    key: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Check for repeated keys after the items."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Declare the list a map, which the API server holds to be free of repeats."""
        return {**handler(core), LIST_TYPE: "map", LIST_KEYS: [self.key]}

    def _check(self, items: tuple[Any, ...]) -> tuple[Any, ...]:
        keys = [getattr(item, self.key) for item in items]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise ValueError(f"{self.key} {repeated[0]!r} is given more than once")
        return items
