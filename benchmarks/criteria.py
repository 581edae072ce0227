"""Every criterion on one network: `python benchmarks/criteria.py --url URL MODEL DATA [--macs 50 25] [--seeds 0] [--spec JSON]`.

Jobs of a running service (`featherweight serve`): one cut to a share of the MACs, repaired without labels and without
training. Prints a Markdown table of the accuracy on the held-out rows, or of the agreement where there are no labels;
several seeds give the median. `--spec` is merged into the spec (preprocessing, say); `--allocation` is that of the global
cuts.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import httpx

SCOPES = ("global", "isomorphic", "layer")


class Service:
    """The calls that are needed."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=300)

    def upload(self, collection: str, path: Path) -> str:
        with path.open("rb") as file:
            row = self._json("POST", f"/v1/{collection}", files={"file": (path.name, file)})
        return self._settled(f"/v1/{collection}/{row['id']}", "inspecting")["id"]

    def run(self, model: str, dataset: str, spec: dict[str, Any]) -> dict[str, Any]:
        job = self._json("POST", "/v1/jobs", json={"model": model, "dataset": dataset, "spec": spec})
        return self._settled(f"/v1/jobs/{job['id']}", "queued", "running")

    def criteria(self) -> list[str]:
        rows = self._json("GET", "/v1/catalog")["criteria"]
        return [row["name"] for row in rows if "channels" in row["structures"]]

    def _settled(self, path: str, *unsettled: str) -> dict[str, Any]:
        while (row := self._json("GET", f"{path}?wait=30"))["status"] in unsettled:
            pass
        return row

    def _json(self, method: str, path: str, **arguments: Any) -> Any:
        answer = self._http.request(method, path, headers={"Accept": "application/json"}, **arguments)
        answer.raise_for_status()
        return answer.json()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--macs", type=int, nargs="+", default=[50, 25])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--scopes", nargs="+", default=SCOPES, choices=SCOPES)
    parser.add_argument("--criteria", nargs="+")
    parser.add_argument("--allocation", default="score", choices=("score", "sensitivity"))
    parser.add_argument("--spec", type=json.loads, default={})
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    told = parser.parse_args()
    service = Service(told.url)
    model, dataset = service.upload("models", told.model), service.upload("datasets", told.data)
    cells = [(share, scope) for share in told.macs for scope in told.scopes]
    print("| criterion | " + " | ".join(f"{share} %, {scope}" for share, scope in cells) + " |")
    print("|---" * (len(cells) + 1) + "|", flush=True)
    for criterion in told.criteria or service.criteria():
        row = []
        for share, scope in cells:
            prune = {"criterion": criterion, "scope": scope, "target": {"macs": f"{share}%"}}
            if scope == "global":
                prune["allocation"] = told.allocation
            figures = []
            for seed in told.seeds:
                spec = {"version": 1, "seed": seed, "steps": [{"prune": prune}], **told.spec}
                result = service.run(model, dataset, spec).get("result")
                made = result["compressed"] if result else {}
                figures.append(made.get("accuracy") or made.get("agreement") or float("nan"))
            row.append(f"{statistics.median(figures):.4f}")
        print(f"| `{criterion}` | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
