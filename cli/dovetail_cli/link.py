"""Links as a person writes them: `20mbit,15ms`, `down`, and traces that change over time.

A simulated link is only honest if everyone reads the same numbers into it, so its one spelling is
parsed here: the rate holds for each direction on its own, and the time is the **round trip**, as
`ping` prints it (each direction is delayed by half of it). `down` loses contact the way a pulled
cable does: connections stay open and nothing arrives. `refuse` is a host that answers with a reset.

A trace is a text file of lines `SECONDS, LINK`, such as `20, 2mbit, 40ms`; the last line stands
for good. Comments start with `#`.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from dovetail.errors import LinkError

Mode = Literal["up", "down", "refuse"]

_BITS: Final = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_SECONDS: Final = {"ms": 1e-3, "s": 1.0}
_RATE = re.compile(r"^([0-9]{1,9}(?:\.[0-9]{1,6})?)(kbit|mbit|gbit)$")
_TIME = re.compile(r"^([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s)$")
_LEAST_RATE, _MOST_RTT = 1e3, 60.0  # bytes/s and s: beyond these a typing error is likelier

EXPECTED = "expected RATE,RTT such as 20mbit,15ms (kbit, mbit, gbit; ms, s round trip), or down"


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """A link to be simulated.

    Attributes:
        rate: bytes per second, each way.
        rtt: seconds to the other side and back.
        mode: `up`, `down` (nothing arrives) or `refuse` (connections are reset).
    """

    rate: float = 125e6
    rtt: float = 0.0
    mode: Mode = "up"

    def __str__(self) -> str:
        """The spelling `parse_link` reads."""
        if self.mode != "up":
            return self.mode
        bits = self.rate * 8
        unit = next((u for u in ("gbit", "mbit") if bits >= _BITS[u]), "kbit")
        return f"{_plain(bits / _BITS[unit])}{unit},{_plain(self.rtt * 1e3)}ms"


@dataclass(frozen=True, slots=True)
class Trace:
    """A link that changes: `links[i]` holds from `starts[i]` seconds on.

    Attributes:
        starts: seconds, rising, the first is 0.
        links: as many.
    """

    starts: tuple[float, ...]
    links: tuple[LinkSpec, ...]

    def at(self, seconds: float) -> LinkSpec:
        """The link `seconds` after the start."""
        return self.links[max(bisect_right(self.starts, seconds) - 1, 0)]


def parse_link(text: str) -> LinkSpec:
    """Read `RATE,RTT`, `down` or `refuse`; raises `LinkError` on anything else."""
    match [part.strip().lower() for part in text.split(",")]:
        case ["down"]:
            return LinkSpec(mode="down")
        case ["refuse"]:
            return LinkSpec(mode="refuse")
        case [rate, time]:
            spec = LinkSpec(
                _number(_RATE, rate, _BITS, text) / 8, _number(_TIME, time, _SECONDS, text)
            )
        case _:
            raise LinkError(f"{text!r} is not a link; {EXPECTED}")
    if spec.rate < _LEAST_RATE or spec.rtt > _MOST_RTT:
        raise LinkError(f"{text!r} is slower than can be simulated: at least 8kbit, at most 60s")
    return spec


def load_trace(path: Path) -> Trace:
    """Read a trace file.

    Raises:
        LinkError: no such file, an empty one, a line that is not `SECONDS, LINK`, or times that
            do not start at 0 and rise; the message names the line.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise LinkError(f"{path} cannot be read as a trace: {error}") from error
    starts: list[float] = []
    links: list[LinkSpec] = []
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        at, _, link = content.partition(",")
        try:
            start, spec = float(at), parse_link(link)
        except (ValueError, LinkError) as error:
            raise LinkError(
                f"{path}:{number}: {line.strip()!r} is not SECONDS, LINK such as 20, 2mbit, 40ms"
            ) from error
        if start != 0 if not starts else not start > starts[-1]:
            raise LinkError(f"{path}:{number}: times must start at 0 and rise; got {at.strip()}")
        starts.append(start)
        links.append(spec)
    if not starts:
        raise LinkError(f"{path} is an empty trace; write lines such as 0, 20mbit, 15ms")
    return Trace(tuple(starts), tuple(links))


def _number(pattern: re.Pattern[str], text: str, units: dict[str, float], whole: str) -> float:
    found = pattern.match(text)
    if found is None:
        raise LinkError(f"{whole!r} is not a link: {text!r} does not parse; {EXPECTED}")
    return float(found[1]) * units[found[2]]


def _plain(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")
