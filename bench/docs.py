"""Writes docs/benchmarks.md from what runs left in bench/out, and from nothing else."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import reasons
from bench.report import OUT, ROOT, cell, verdict

PAGE = ROOT / "docs" / "benchmarks.md"

_INTRO = """\
# Benchmarks

Written by `python -m bench --write-docs` from the JSON that `make bench` leaves in `bench/out`; do
not edit it. Every figure stands beside the command that made it and the machine it was made on.

How figures are made: variants are timed in interleaved rounds of one run, a figure is a ratio of
medians over those rounds (or a count), and its interval is the 95 % bootstrap interval over rounds.
A promise is met when that interval reaches the bound. Ratios carry to other machines better than
milliseconds do. A slow device is simulated in the open (`slowdown`), a link by the shaping proxy
that `dovetail up --link` uses; times of a link are round trips.
"""


def write(titles: Mapping[str, str]) -> Path:
    """Write the page; sections without a record are left out.

    Args:
        titles: section -> heading, in order.
    """
    found = [(titles[name], _load(name)) for name in titles if (OUT / f"{name}.json").is_file()]
    parts = [_INTRO, _machine([document for _, document in found]), _summary(found)]
    parts += [_section(title, document) for title, document in found]
    part = PAGE.with_suffix(f".part-{os.getpid()}")
    part.write_text("\n".join(parts))
    part.replace(PAGE)
    return PAGE


def _load(section: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((OUT / f"{section}.json").read_text())
    return document


def _machine(documents: Sequence[Mapping[str, Any]]) -> str:
    """Each machine that figures come from, once."""
    facts = {
        json.dumps({k: v for k, v in document["machine"].items() if k != "loadBefore"}): document[
            "machine"
        ]
        for document in documents
    }
    lines = []
    for fact in facts.values():
        packages = ", ".join(f"{name} {version}" for name, version in fact["packages"].items())
        lines.append(
            f"- {fact['cpu']}, {fact['cores']} cores, {fact['memoryGiB']} GiB; {fact['system']}; "
            f"Python {fact['python']}; {packages}"
        )
    return "\n".join(["## Machine", "", *lines, ""])


def _summary(found: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    rows = [
        [figure["promise"], figure["text"], figure["limit"], verdict(figure["met"])]
        for _, document in found
        for figure in document["figures"]
        if figure["bound"] is not None
    ]
    header = ("promise", "measured (95 % interval)", "bound", "")
    lines = ["## Promises", "", *_markdown(header, rows), ""]
    unmet = reasons.lines(figure for _, document in found for figure in document["figures"])
    if unmet:
        lines += ["### Not met, and why", "", *unmet, ""]
    return "\n".join(lines)


def _section(title: str, document: Mapping[str, Any]) -> str:
    host = document["machine"]
    lines = [
        f"## {title}",
        "",
        f"`{document['command']}` took {document['seconds']:.0f} s.",
        f"The load average before it was {host['loadBefore']} on {host['cores']} cores.",
        "",
        document["method"],
        "",
    ]
    figures = [
        [f["promise"], f["text"], f["limit"], verdict(f["met"])] for f in document["figures"]
    ]
    lines += [*_markdown(("figure", "measured (95 % interval)", "bound", ""), figures), ""]
    lines += [f"- *{f['promise']}*: {f['why']}" for f in document["figures"] if f["why"]]
    for table in document["tables"]:
        rows = [[cell(value) for value in row] for row in table["rows"]]
        lines += ["", f"### {table['title']}", "", *_markdown(table["columns"], rows)]
    if document["data"].get("plot"):
        lines += ["", f"![{title}]({Path(document['data']['plot']).relative_to('docs')})"]
    return "\n".join([*lines, ""])


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "|" + " --- |" * len(header),
        *("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows),
    ]
