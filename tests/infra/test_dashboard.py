"""The Grafana dashboard queries metrics and labels that exist."""

import json
import re
from pathlib import Path

from imagemill.pipeline.cluster.metrics import SERVED

DASHBOARD = json.loads((Path(__file__).parents[2] / "infra/monitoring/grafana-imagemill.json").read_text())


def test_dashboard_queries_existing_metrics_and_labels() -> None:
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    queries += [variable["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    assert len(queries) >= 8
    metric_names = set()
    for query in queries:
        (name,) = re.findall(r"ray_\w+", query)
        labels = set(re.findall(r"(\w+)=~?\"", query))
        for group in re.findall(r"by \(([^)]*)\)", query):
            labels |= {label.strip() for label in group.split(",")}
        assert labels <= SERVED[name] | {"le"}, query
        metric_names.add(name)
    # The dashboard shows all metrics except the counts of timings.
    assert {name.rpartition("_")[0] for name in SERVED} == {name.rpartition("_")[0] for name in metric_names}


def test_dashboard_panels_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    squares = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(squares) == len(set(squares))
    assert max(x for x, _ in squares) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
