"""What people do in a browser: compare runs in MLflow, fill in the form of a deployment in Prefect. In Chromium, where there is one."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml
from team import wait_for

pytest.importorskip("playwright", reason="needs playwright")
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.servers,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt install chromium)"),
]
PICTURES = os.environ.get("WARMSTART_SCREENSHOTS")  # a folder to keep what was seen


@pytest.fixture(scope="module")
def page():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        one = browser.new_page(viewport={"width": 1400, "height": 950})
        one.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)  # which is another, and five seconds by itself
        yield one
        browser.close()


def keep(page: Page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES) / f"{name}.png"))


@pytest.fixture(scope="module")
def runs(team) -> list[str]:
    """Two pipeline runs of one recipe; gives the ids of their pretrainings."""
    content = yaml.safe_load((team.folder / "tiny.yaml").read_text())
    content["pretraining"]["fit"] = {"epochs": 12, "batch_size": 16}
    (team.folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    for seed in (0, 1):
        team.run("run", "tiny.yaml", f"seed={seed}", "--json")
    experiment = team.mlflow("experiments/get-by-name?experiment_name=tiny")["experiment"]["experiment_id"]
    found = team.mlflow("runs/search", {"experiment_ids": [experiment], "filter": "attributes.run_name = 'pretrain'"})["runs"]
    assert len(found) == 2
    return [one["info"]["run_id"] for one in found]


def test_two_runs_side_by_side(team, page, runs):
    experiment = team.mlflow("experiments/get-by-name?experiment_name=tiny")["experiment"]["experiment_id"]
    query = urllib.parse.urlencode({"runs": json.dumps(runs), "experiments": json.dumps([experiment])})
    page.goto(f"{team.status()['mlflow']}/#/compare-runs?{query}")
    expect(page.get_by_text("Comparing 2 Runs").first).to_be_visible()
    for run in runs:
        expect(page.get_by_text(run).first).to_be_visible()
    keep(page, "mlflow-compare")
    page.goto(f"{team.status()['mlflow']}/#/metric?{urllib.parse.urlencode({'runs': json.dumps(runs), 'metric': json.dumps('train/loss'), 'experiments': json.dumps([experiment]), 'plot_metric_keys': json.dumps(['train/loss'])})}")
    lines = page.locator(".js-plotly-plot .scatterlayer .trace path.js-line")
    expect(lines.nth(1)).to_be_visible()
    drawn = [lines.nth(number).get_attribute("d") for number in range(lines.count())]
    assert len({path for path in drawn if path.count("L") >= 10}) >= 2, "both curves, each its own"
    keep(page, "mlflow-curves")


@pytest.fixture(scope="module")
def served(team, runs, outside):
    """`warmstart serve tiny@champion` on a free port; gives its address."""
    command = [str(Path(sys.executable).parent / "warmstart"), "serve", "tiny@champion", "--port", "0", "--follow", "0.2", "--sample", "1", "--samples", "samples"]
    environment = {**{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "WARMSTART_"))}, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=team.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield re.search(r"http://[\w.:]+", process.stdout.readline()).group()
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_a_picture_is_tried_in_the_page(team, page, served, pictures):
    page.goto(served)
    page.locator("input[type=file]").set_input_files(str(next((pictures / "class1").glob("*.png"))))
    keep(page, "serve-chosen")
    page.get_by_role("button", name=re.compile("send|try|predict|ask", re.IGNORECASE)).click()
    expect(page.get_by_text("class1").first).to_be_visible()
    keep(page, "serve-answer")


def test_an_alias_set_in_mlflows_page_changes_what_is_served(team, page, served):
    def version() -> str:
        with urllib.request.urlopen(f"{served}/model", timeout=30) as answer:
            return str(json.load(answer)["version"])

    before = version()
    other = "2" if before == "1" else "1"
    page.goto(f"{team.status()['mlflow']}/#/models/tiny/versions/{other}")
    page.get_by_role("button", name=re.compile("aliases|edit aliases|add", re.IGNORECASE)).first.click()
    field = page.get_by_role("combobox").last
    field.fill("champion")
    field.press("Enter")
    keep(page, "mlflow-alias")
    page.get_by_role("button", name=re.compile("save", re.IGNORECASE)).last.click()
    wait_for(lambda: version() == other, 60)
    assert "moved by hand" in team.run("models", "tiny")


def test_a_deployments_form_shows_the_recipe(team, page):
    team.run("deploy", "tiny.yaml")
    found = team.prefect("deployments/name/pretrain-finetune/tiny")
    page.goto(f"{team.status()['prefect']}/deployments/deployment/{found['id']}/run")
    for label in ("Backbone", "Pretraining", "Splitting", "Finetuning", "Registration"):
        expect(page.get_by_text(label).first).to_be_visible()
    keep(page, "prefect-form")
    page.get_by_role("button", name="Submit").click()
    wait_for(lambda: [one for one in team.prefect("flow_runs/filter", {}) if one["deployment_id"] == found["id"]])


def test_a_flow_run_leads_to_mlflow(team, page):
    run = wait_for(lambda: next(one for one in team.prefect("flow_runs/filter", {}) if one["state_type"] == "COMPLETED" and one["deployment_id"]))
    summary = wait_for(lambda: next(one for one in team.prefect("artifacts/filter", {}) if one["type"] == "markdown" and one["flow_run_id"] == run["id"]))
    page.goto(f"{team.status()['prefect']}/artifacts/artifact/{summary['id']}")
    link = page.get_by_role("link", name="Parameters, curves and the report in MLflow")
    expect(link).to_be_visible()
    keep(page, "prefect-summary")
    page.goto(link.get_attribute("href"))
    expect(page.get_by_text("This run in Prefect").first).to_be_visible()
    keep(page, "mlflow-run")
