"""What a person decides by on the page of a run: the most that a network may cost, and two of them side by side."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from cvt_nas.config import Experiment
from cvt_nas.report import write_report
from cvt_nas.results import ConfirmPlan, TrialResult
from cvt_nas.run import RunFolder
from cvt_nas.run.folder import CLASSES_FILE
from pages import made_up_run, open_page
from test_confirm_int8 import further, int8
from test_deploy import table_for, with_deploy

_LIMITED = """metric => {
    const plot = document.querySelector(`[data-figure=front-${metric}]`);
    const shade = plot.layout.shapes.find(shape => shape.type === "rect");
    const inside = plot.data.flatMap(trace => trace.selectedpoints
        ? trace.selectedpoints.map(index => trace.customdata[index]) : []);
    return [shade && shade.x0, inside];
}"""


@pytest.fixture(scope="module")
def decided(digits: Experiment, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run whose front has figures of each class."""
    run = made_up_run(tmp_path_factory.mktemp("decided") / "run", digits, 40)
    for place, member in enumerate(run.front().members):
        folder = run.model_path(member.arch_id)
        folder.mkdir(parents=True)
        rows = [
            {"class": f"<i>{name}</i>", "images": 50, "found": 40 + (index + place) % 10}
            for index, name in enumerate("abc")
        ]
        (folder / CLASSES_FILE).write_text(json.dumps(rows))
    write_report(run)
    return run


def best_within(run: RunFolder, *, params: float = 1e18, flops: float = 1e18) -> TrialResult:
    within = [r for r in run.results() if r.status == "complete" and r.cost.params <= params and r.cost.flops <= flops]
    return max(within, key=lambda result: (result.metric("accuracy"), -result.cost.flops))


def test_a_limit_names_the_best_network_within_it(decided: RunFolder, page: Page, complaints: list[str]) -> None:
    open_page(page, decided.path / "report.html")
    page.wait_for_selector("[data-figure=front-params] .main-svg")
    costs = sorted(result.cost.params for result in decided.results() if result.status == "complete")
    limit = costs[len(costs) // 2]
    page.fill("#limit-params-entry", str(limit / 1000))
    picked = best_within(decided, params=limit)
    page.wait_for_selector(f"#pick-said:has-text('trial {picked.number} ')")
    assert f"cvt-nas export {decided.place} --pick {picked.arch_id} --to my_model" in page.locator("#pick").inner_text()
    shaded, inside = page.evaluate(_LIMITED, "params")
    assert shaded == pytest.approx(limit)
    cheap = {result.number for result in decided.results() if result.cost.params <= limit}
    assert set(inside) <= cheap
    assert {r.number for r in decided.results() if r.status == "complete"} & cheap <= set(inside)
    assert page.evaluate(_LIMITED, "flops")[0] is None
    rows = page.locator("tr[data-picked]").evaluate_all("rows => rows.map(row => Number(row.dataset.number))")
    assert set(rows) == {picked.number}
    page.fill("#limit-params-entry", str(costs[0] / 1000 / 2))
    page.wait_for_selector("#pick-said:has-text('No complete network')")
    assert page.locator("tr[data-picked]").count() == 0
    page.fill("#limit-params-entry", "")
    page.wait_for_selector(f"#pick-said:has-text('trial {best_within(decided).number} ')")
    assert page.evaluate(_LIMITED, "params")[0] is None
    assert complaints == []


def test_a_slider_obeys_the_keyboard_and_says_its_value(decided: RunFolder, page: Page) -> None:
    open_page(page, decided.path / "report.html")
    page.focus("#limit-flops")
    assert page.get_attribute("#limit-flops", "aria-valuetext") == "no limit"
    page.keyboard.press("Home")
    cheapest = min(result.cost.flops for result in decided.results() if result.status == "complete")
    page.wait_for_selector("#pick-said:has-text('within at most')")
    value = float(page.input_value("#limit-flops-entry")) * 1e6
    assert cheapest <= value < 1.01 * cheapest
    assert (
        page.get_attribute("#limit-flops", "aria-valuetext")
        == f"at most {page.locator('#limit-flops-output').inner_text()}"
    )
    for key in ("ArrowRight",) * 20 + ("PageUp",):
        page.keyboard.press(key)
    value = float(page.input_value("#limit-flops-entry")) * 1e6
    assert value > 1.2 * cheapest
    picked = best_within(decided, flops=value)
    page.wait_for_selector(f"#pick-said:has-text('trial {picked.number} ')")
    page.keyboard.press("End")
    assert page.get_attribute("#limit-flops", "aria-valuetext") == "no limit"
    named = "input => Boolean(document.querySelector(`label[for='${input.id}']`) || input.getAttribute('aria-label'))"
    assert all(page.locator("#limits input").evaluate_all(f"inputs => inputs.map({named})"))


def test_the_row_of_the_pick_is_found_on_whatever_page_of_the_table_it_is(decided: RunFolder, page: Page) -> None:
    open_page(page, decided.path / "report.html")
    page.fill("#filter-text", "no such trial")
    page.click("[data-row]")
    best = best_within(decided)
    assert page.evaluate("document.activeElement.closest('tr').dataset.number") == str(best.number)


def test_two_networks_stand_side_by_side(decided: RunFolder, page: Page, complaints: list[str]) -> None:
    open_page(page, decided.path / "report.html")
    front = decided.front().members
    first, second = front[0], front[-1]
    page.select_option("#pair-one", str(first.number))
    page.select_option("#pair-other", str(second.number))
    shown = page.locator("#pair-shown").inner_text()
    assert f"{first.cost.params:,}" in shown
    assert f"{second.cost.flops:,}" in shown
    points = 100 * (second.metric("accuracy") - first.metric("accuracy"))
    sign = "+" if points > 0 else "\N{MINUS SIGN}"
    assert f"{sign}{abs(points):.2f} points" in shown
    for index, (one, other) in enumerate(zip(first.arch.stages, second.arch.stages, strict=True)):
        row = page.locator(f"#pair-shown tr:has(th:text-is('stage {index}: width'))")
        assert row.locator("td").all_inner_texts()[:2] == [str(one.embed_dim), str(other.embed_dim)]
        assert (row.get_attribute("class") == "differs") == (one.embed_dim != other.embed_dim)
    recalls = [json.loads((decided.model_path(m.arch_id) / CLASSES_FILE).read_text()) for m in (first, second)]
    for one, other in zip(*recalls, strict=True):
        row = page.locator("#pair-shown tr", has=page.locator(f"th:text-is('{one['class']}')"))
        expected = [f"{100 * of['found'] / 50:.1f} %" for of in (one, other)]
        assert row.locator("td").all_inner_texts()[:2] == expected
    assert page.locator("#pair-shown .plot .main-svg").count() > 0
    page.fill("#filter-text", front[1].arch_id)
    page.click(f"#rows button:has-text('{front[1].arch_id}')")
    page.click("[data-pairs='1']")
    assert page.input_value("#pair-other") == str(front[1].number)
    assert page.evaluate("document.activeElement.id") == "pair-other"
    assert page.locator("#pair-shown:has-text('In int8: not measured.')").count() == 1
    assert page.locator("#pair-shown tr:has(th:has-text('these weights'))").count() == 0
    assert complaints == []


def test_fp32_and_int8_stand_side_by_side_and_what_was_not_measured_says_so(
    decided: RunFolder, tmp_path: Path, page: Page, complaints: list[str]
) -> None:
    run = RunFolder(Path(shutil.copytree(decided.path, tmp_path / "run")))
    first, second, *_ = run.front().members
    run.int8.append(first.arch_id, int8(0.8, fp32=0.9))
    write_report(run)
    open_page(page, run.path / "report.html")
    page.click("#fronts summary")
    table = page.locator("#fronts table:has(tr[data-number])")
    heads = table.locator("th[scope=col]").all_inner_texts()
    rows = {
        row["number"]: dict(zip(heads, row["cells"], strict=True))
        for row in table.locator("tr[data-number]").evaluate_all("""rows => rows.map(row => ({
            number: Number(row.dataset.number), cells: [...row.children].map(cell => cell.innerText) }))""")
    }
    told = [
        "these weights: fp32 | int8, onnxruntime",
        "MB: fp32 | int8, onnxruntime",
        "ms: fp32 | int8, onnxruntime",
    ]
    assert [rows[first.number][name] for name in told] == ["0.9000 | 0.8000", "4 | 1.1", "2 | 1"]
    assert [rows[second.number][name] for name in told] == ["not measured"] * 3
    page.select_option("#pair-one", str(first.number))
    page.select_option("#pair-other", str(second.number))
    for name, value in {
        "these weights in fp32": "90.00 %",
        "these weights in int8": "80.00 %",
        "file in fp32": "4 MB",
        "file in int8": "1.1 MB",
        "one image in fp32": "2 ms",
        "one image in int8": "1 ms",
    }.items():
        row = page.locator(f"#pair-shown tr:has(th:text-is('{name}'))")
        assert row.locator("td").all_inner_texts() == [value, "not measured", ""]
    page.click(f"#rows button:has-text('{first.arch_id}')")
    assert "these weights in int8, onnxruntime, 80.00 %, in fp32 90.00 %" in page.locator("#arch").inner_text()
    assert complaints == []


def test_picks_and_plots_of_a_front_in_int8_go_by_that_and_name_it(
    decided: RunFolder, tmp_path: Path, page: Page, complaints: list[str]
) -> None:
    run = RunFolder(Path(shutil.copytree(decided.path, tmp_path / "run")))
    best, other, *_ = run.front().members
    plan = ConfirmPlan(top="front", seeds=1, members=(best.number, other.number), runtime="onnxruntime-int8")
    run.confirmations.write_plan(plan)
    for member, accuracy in ((best, 0.5), (other, 0.6)):
        run.confirmations.append(further(member, 1, member.metric("accuracy"), int8(accuracy)))
    write_report(run)
    open_page(page, run.path / "report.html")
    said = f"trial {other.number} ({other.arch_id}), accuracy in int8, onnxruntime 60.00 %"
    page.wait_for_selector(f"#pick-said:has-text('{said}')")
    page.select_option("#pair-one", str(best.number))
    row = page.locator("#pair-shown tr:has(th:text-is('further trainings in int8, mean'))")
    assert row.locator("td").first.inner_text() == "50.00 %"
    assert "accuracy in int8, onnxruntime" in page.locator("#heads").inner_text()
    assert complaints == []


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run whose objectives are throughput and memory."""
    experiment = with_deploy("{runtime: onnxruntime, batch: 4, threads: 1}")
    experiment = experiment.changed(training={"epochs": 3}).with_latency(table_for(experiment))
    run = made_up_run(tmp_path_factory.mktemp("deployed") / "run", experiment, 24, share_complete=1.0)
    write_report(run)
    return run


def test_throughput_has_a_least_value_and_memory_and_size_have_a_greatest(
    deployed: RunFolder, page: Page, complaints: list[str]
) -> None:
    open_page(page, deployed.path / "report.html")
    page.wait_for_selector("[data-figure=front-throughput] .main-svg")
    labels = page.locator("#limits .limit > label:first-child").all_inner_texts()
    assert labels == [
        "at most, parameters", "at most, FLOPs", "at most, latency", "at least, throughput", "at most, memory",
        "at most, size",
    ]  # fmt: skip
    speeds = sorted(result.cost.throughput for result in deployed.results())
    slider = page.locator("#limit-throughput")
    assert (slider.input_value(), slider.get_attribute("aria-valuetext")) == ("0", "no limit")
    slider.focus()
    page.keyboard.press("End")
    page.wait_for_selector("#pick-said:has-text('within at least')")
    value = float(page.input_value("#limit-throughput-entry"))
    assert 0.99 * speeds[-1] < value <= speeds[-1], "the fastest network is within it"
    assert slider.get_attribute("aria-valuetext") == f"at least {page.locator('#limit-throughput-output').inner_text()}"
    limit = speeds[len(speeds) // 2]
    page.fill("#limit-throughput-entry", repr(limit))
    fast = [result for result in deployed.results() if result.cost.throughput >= limit]
    picked = max(fast, key=lambda result: (result.metric("accuracy"), -result.cost.flops))
    page.wait_for_selector(f"#pick-said:has-text('trial {picked.number} ')")
    rect = "document.querySelector('[data-figure=front-throughput]').layout.shapes.find(shape => shape.type === 'rect')"
    page.wait_for_function(f"limit => Math.abs({rect}.x0 / limit - 1) < 1e-6", arg=limit)
    assert page.evaluate(f"{rect}.x1") < speeds[0], "what is slower is shaded"
    assert set(page.evaluate(_LIMITED, "throughput")[1]) == {result.number for result in fast}
    page.fill("#limit-throughput-entry", repr(2 * speeds[-1]))
    page.wait_for_selector("#pick-said:has-text('the greatest throughput: ')")
    slider.focus()
    page.keyboard.press("Home")
    assert slider.get_attribute("aria-valuetext") == "no limit"
    least = min(result.cost.peak_memory_mb for result in deployed.results())
    page.fill("#limit-peak_memory_mb-entry", repr(1.0001 * least))
    page.wait_for_selector("#pick-said:has-text('at most')")
    rows = page.locator("#rows tr[data-picked]").evaluate_all("rows => rows.map(row => Number(row.dataset.number))")
    memory = {result.number: result.cost.peak_memory_mb for result in deployed.results()}
    assert [memory[number] for number in rows] == [pytest.approx(least)]
    named = "input => Boolean(document.querySelector(`label[for='${input.id}']`) || input.getAttribute('aria-label'))"
    assert all(page.locator("#limits input").evaluate_all(f"inputs => inputs.map({named})"))
    row = page.locator("#pair-shown tr:has(th:text-is('images a second, predicted, 4 at a time'))")
    assert row.count() == 1
    assert complaints == []


def test_contents_that_are_replaced_keep_what_a_reader_has_chosen(
    decided: RunFolder, page: Page, complaints: list[str]
) -> None:
    """As a page that is served anew while a search runs: new sections, new data, and `page.start()` once more."""
    open_page(page, decided.path / "report.html")
    page.fill("#limit-params-entry", "100")
    page.fill("#filter-text", "complete nothing")
    page.fill("#filter-text", "1")
    front = decided.front().members
    page.select_option("#pair-one", str(front[-1].number))
    shown = page.locator("#found").inner_text()
    said = page.locator("#pick-said").inner_text()
    page.evaluate("""async () => {
        for (const section of document.querySelectorAll("main > section")) {
            const fresh = new DOMParser().parseFromString(section.outerHTML, "text/html").querySelector("section");
            for (const filled of fresh.querySelectorAll("[data-owned]")) {
                filled.replaceChildren();
                delete filled.dataset.built;
            }
            for (const plot of fresh.querySelectorAll("[data-figure]")) plot.replaceChildren();
            section.replaceWith(fresh);
        }
        await page.start();
    }""")
    page.locator("[data-figure=front-params]").scroll_into_view_if_needed()
    page.wait_for_selector("[data-figure=front-params] .main-svg")
    assert page.locator("#found").inner_text() == shown
    assert page.locator("#pick-said").inner_text() == said
    assert page.input_value("#limit-params-entry") == "100"
    assert page.input_value("#pair-one") == str(front[-1].number)
    page.click("#heads button:has-text('params')")
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("params")
    assert page.evaluate(_LIMITED, "params")[0] == pytest.approx(100_000)
    page.focus("#limit-flops")
    page.evaluate("""() => {
        const data = structuredClone(page.data);
        for (const trial of data.trials) trial.accuracy = trial.number === 3 ? 1 : trial.accuracy / 2;
        data.trials[3].params = 1000;
        data.trials[3].competes = true;
        dispatchEvent(new CustomEvent("results", { detail: { data, figures: page.figures } }));
    }""")
    page.wait_for_selector("#pick-said:has-text('trial 3 ')")
    assert page.evaluate("document.activeElement.id") == "limit-flops"
    assert page.input_value("#limit-params-entry") == "100"
    assert complaints == []


def test_without_scripts_there_are_no_controls_that_do_nothing(decided: RunFolder, browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(Path(decided.path / "report.html").as_uri())
    for name in ("#limits", "#pair", "nav [href='#pair']"):
        assert not page.locator(name).is_visible()
    assert page.locator("#fronts details table").count() == 1
    context.close()
