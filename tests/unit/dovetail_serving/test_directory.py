"""Whom the ledger serves."""

import pytest
from starlette.requests import Request

from dovetail.errors import Unauthorized
from dovetail_serving.directory import Directory
from dovetail_serving.intake import token_digest

DIGEST = "sha256:" + "a" * 64


def request(**headers: str) -> Request:
    named = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    return Request({"type": "http", "headers": named})


def deployment(token: str | None, bundle: str = DIGEST) -> dict[str, object]:
    return {
        "tokens": {"camera": token_digest(token)} if token else {},
        "bundles": {bundle: "/bundles/one"},
        "placement": {"camera": "default--one--aaaa"},
    }


def directory(**deployments: dict[str, object]) -> Directory:
    made = Directory()
    named = {f"default/{name}": one for name, one in deployments.items()}
    made.replace({"operator_token": token_digest("operator"), "deployments": named})
    return made


def test_a_token_speaks_for_its_own_deployment_alone():
    """A device of one deployment gets nothing of another."""
    known = directory(one=deployment("first"), two=deployment("second"))

    (guest,) = known.admit(request(authorization="Bearer second"))

    assert (guest.key, guest.device_class) == ("default/two", "camera")
    with pytest.raises(Unauthorized, match="not valid"):
        known.admit(request(authorization="Bearer third"))


def test_a_token_that_was_replaced_is_refused_at_once():
    """That is how a device is revoked."""
    known = directory(one=deployment("first"))
    known.replace({"deployments": {"default/one": deployment("second")}})

    with pytest.raises(Unauthorized):
        known.admit(request(authorization="Bearer first"))


def test_whose_token_is_known_is_asked_before_who_is_open():
    """Otherwise an open deployment would answer for every other."""
    known = directory(an_open_one=deployment(None), closed=deployment("first"))

    guests = known.admit(request(authorization="Bearer first"))

    assert [guest.key for guest in guests] == ["default/closed", "default/an_open_one"]


@pytest.mark.parametrize(
    "bad",
    [
        {"deployments": 7},
        {"deployments": {"default/one": {"tokens": {"camera": "plain text"}}}},
        {"deployments": {"default/one": {"bundles": {"../../etc": "/bundles"}}}},
        {"operator_token": "plain text"},
        {"unknown": {}},
    ],
)
def test_a_config_that_does_not_hold_leaves_what_is_known(bad: dict[str, object]):
    """Raising here would make Serve kill the ledger."""
    known = directory(one=deployment("first"))

    known.replace(bad)

    assert known.admit(request(authorization="Bearer first"))
    assert known.operator_token == token_digest("operator")


def test_before_the_first_config_nobody_is_let_in():
    """An empty token would mean that anybody may."""
    assert Directory().operator_token
    with pytest.raises(Unauthorized):
        Directory().admit(request(authorization="Bearer first"))
