"""The page on watching names every metric there is; dashboard and alerts ask for metrics that there are."""

import json
import re
from itertools import combinations

import pytest
import yaml

from tests.helpers.every_metric import every_metric
from tests.helpers.places import ROOT

PAGE = (ROOT / "docs" / "monitoring.md").read_text()
PROMETHEUS = ROOT / "docs" / "deploy" / "prometheus"
DASHBOARD = json.loads((ROOT / "docs" / "deploy" / "grafana" / "fsl.json").read_text())
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
SCRAPED = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = {
    **{rule["alert"]: rule["expr"] for rule in RULES},
    **{f"{p['title']} {t['refId']} ({p['id']})": t["expr"] for p in PANELS for t in p["targets"]},
}
UNITS = {"none", "s", "bytes", "Bps", "ops", "percentunit"}
OF_PROMETHEUS = {"up"}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return every_metric(tmp_path_factory.mktemp("served"), patch)


def metrics_in(expression: str) -> set[str]:
    """The metrics that an expression asks for."""
    return set(re.findall(r"\b(?:fsl_\w+|up)\b(?!=)", re.sub(r'"[^"]*"', '""', expression)))


def balanced(expression: str) -> bool:
    """Whether every bracket is closed by its own kind."""
    opened = []
    for mark in re.sub(r'"[^"]*"', "", expression):
        if mark in "([{":
            opened.append(mark)
        elif mark in ")]}" and (not opened or "([{".index(opened.pop()) != ")]}".index(mark)):
            return False
    return not opened


def test_the_page_has_every_metric_with_its_labels_and_no_other(served):
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `fsl_")]
    named = [name for row in rows for name in re.findall(r"`(fsl_\w+(?:\{\w+\})?)`", row)]
    told = {one.name: one.labels for one in served}
    assert sorted(name.partition("{")[0] for name in named) == sorted(told)
    for name in named:
        bare, _, label = name.rstrip("}").partition("{")
        assert told[bare] == {label} - {""} or bare in ("fsl_info", "fsl_cloud_run_info")


def test_names_have_the_prefix_and_their_units(served):
    for one in served:
        assert one.name.startswith("fsl_")
        assert not re.search(r"_(ms|millis|kb|mb|percent)\b", one.name)
    times = [one.name for one in served if "timestamp" in one.name]
    assert all(name.endswith("_seconds") for name in times)


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_an_expression_asks_for_metrics_and_labels_that_there_are(expression, served):
    samples = {sample for one in served for sample in one.samples}
    labels = {label for one in served for label in one.labels} | {"instance", "job", "le"}
    asked = metrics_in(expression)
    assert asked
    assert asked <= samples | OF_PROMETHEUS
    grouped = [name for by in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for name in re.findall(r"\w+", by)]
    matched = re.findall(r"[{,] ?(\w+)=", expression)
    assert {*grouped, *matched} <= labels
    assert balanced(expression)
    try:
        from promql_parser import parse
    except ImportError:
        return
    parse(re.sub(r"\$\w+", "5m", expression.replace('"$', '"')))


def test_a_wrong_expression_is_found():
    assert not balanced("sum(rate(fsl_x[5m])")
    assert not balanced("sum(rate(fsl_x[5m)])")
    assert balanced('sum by (le) (fsl_x{a="("})')
    assert metrics_in('fsl_a_total{job="fsl_b"} / on (x) up{y="1"} > fsl_c') == {"fsl_a_total", "up", "fsl_c"}


def test_a_counter_is_never_shown_as_it_is():
    """What it counts since a process began tells little; its rate does."""
    for name, expression in EXPRESSIONS.items():
        bare = re.sub(r"(?:rate|increase)\([^()]*\)", "", expression)
        assert not re.search(r"_(?:total|bucket|sum|count)\b", bare), name


def test_alerts_have_what_prometheus_asks_for():
    jobs = {job["job_name"] for job in SCRAPED["scrape_configs"]}
    assert SCRAPED["rule_files"] == ["alerts.yml"]
    named = {
        name for line in PAGE.splitlines() if line.startswith("| `Fsl") for name in re.findall(r"`(\w+)`", line)[:1]
    }
    assert {rule["alert"] for rule in RULES} == named
    for rule in RULES:
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
    used = {job for expression in EXPRESSIONS.values() for job in re.findall(r'job="([^"]+)"', expression)}
    assert used <= jobs


def test_the_dashboard_is_one_that_grafana_takes():
    assert DASHBOARD["schemaVersion"] >= 36
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    variables = {one["name"] for one in DASHBOARD["templating"]["list"]}
    text = json.dumps(PANELS)
    used = set(re.findall(r"\$\{?(\w+)", text)) - {"__rate_interval"}
    assert used == variables
    for panel in PANELS:
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_no_two_panels_lie_on_each_other():
    def cells(panel):
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        return {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}

    for one, other in combinations(DASHBOARD["panels"], 2):
        assert not cells(one) & cells(other), (one["title"], other["title"])
