"""Steady requests by tritonclient, as an application on a node sends them; run among its links.

`python driver.py HOST:PORT MODEL ROWS.npz RATE OUT`: sends the rows of the array `x` in turn, RATE
a second, until it is ended; writes a line of JSON a request to OUT. A request that fails is sent
no second time, so every failure is seen.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as triton


def main() -> None:
    """Send until ended."""
    host, model, rows, rate, out = sys.argv[1:]
    inputs = np.load(rows)["x"]
    client = triton.InferenceServerClient(host, network_timeout=30.0, connection_timeout=5.0)
    period, turn, due = 1 / float(rate), 0, time.monotonic()
    with Path(out).open("w", buffering=1) as file:
        while True:
            row = turn % len(inputs)
            file.write(json.dumps(_ask(client, model, inputs[row : row + 1]) | {"row": row}) + "\n")
            turn, due = turn + 1, max(due + period, time.monotonic())
            time.sleep(max(due - time.monotonic(), 0))


def _ask(client: Any, model: str, row: Any) -> dict[str, Any]:
    tensor = triton.InferInput("x", list(row.shape), "FP32")
    tensor.set_data_from_numpy(row)
    at, began = time.time(), time.perf_counter()
    try:
        result = client.infer(model, [tensor])
    except Exception as error:  # noqa: BLE001  whatever an application would see
        return {"at": at, "error": f"{type(error).__name__}: {error}"}
    answer = result.get_response()
    return {
        "at": at,
        "seconds": time.perf_counter() - began,
        "rung": answer["parameters"].get("rung"),
        "degraded": answer["parameters"].get("degraded", False),
        "version": answer.get("model_version"),
        "scores": result.as_numpy(answer["outputs"][0]["name"])[0].tolist(),
    }


if __name__ == "__main__":
    main()
