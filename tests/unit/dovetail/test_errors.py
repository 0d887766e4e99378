"""The tree of typed errors."""

import re

import pytest

from dovetail import errors
from dovetail.errors import DovetailError, RequestError, Unavailable, UserError, by_code


def classes() -> list[type[DovetailError]]:
    return [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, DovetailError)
    ]


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
def test_a_code_that_travelled_finds_its_class_again(cls):
    """Verify that code and class map onto each other."""
    assert by_code(cls("text").code) is cls


def test_an_unknown_code_is_still_our_error():
    """Verify that a newer peer's error does not become an exception of another tree."""
    assert by_code("SomethingNewer") is DovetailError
    assert by_code("") is DovetailError
    assert by_code("Exception") is DovetailError


def test_the_tree_in_the_docstring_is_the_tree_of_classes():
    """Verify that what people read names every class, under its own parent."""
    drawn: dict[str, str] = {}
    stack: list[tuple[int, str]] = [(0, "DovetailError")]
    for line in (errors.__doc__ or "").splitlines():
        found = re.search(r"[├└]── (\w+)", line)
        if found is None:
            continue
        while stack[-1][0] >= found.start():
            stack.pop()
        drawn[found[1]] = stack[-1][1]
        stack.append((found.start(), found[1]))

    real = {cls.__name__: cls.__bases__[0].__name__ for cls in classes()}
    del real["DovetailError"]

    assert drawn == real


def test_a_callers_mistake_and_an_outage_are_told_apart():
    """Verify status, exit code and retry of the branches."""
    for cls in classes():
        if issubclass(cls, UserError):
            assert 400 <= cls.http_status < 500
            assert cls.exit_code == 2
            assert not cls.retryable
        if issubclass(cls, Unavailable):
            assert cls.http_status in (503, 504)
            assert cls.retryable
    assert issubclass(RequestError, UserError)
