"""The edge runtime: runs the head, sends what crosses, answers alone when the cloud is gone."""

from dovetail_edge.access import Credentials
from dovetail_edge.request import Answer
from dovetail_edge.session import Session
from dovetail_edge.status import Status

__all__ = ["Answer", "Credentials", "Session", "Status"]
