"use strict";
// Two complete networks side by side: their figures, stages, learning curves and mistakes.

const MB = 1e6;
const MAX_CLASSES = 12; // at first, only the classes on which the two networks differ most are shown

const NOT_MEASURED = "not measured";
const inDigits = (value, unit) => (isKnown(value) ? `${Number(value.toPrecision(3))} ${unit}` : NOT_MEASURED);
const percentOr = (value, otherwise) => (isKnown(value) ? percent(value) : otherwise);

// Rows on one network in fp32 and int8 in a runtime: of further trainings, and of the weights that the run keeps.
function int8RowsOf(trial, runtime) {
  const found = trial.int8?.[runtime], further = trial.further?.runtime === runtime ? trial.further : null;
  const [fp32Mb, int8Mb] = found?.mb ?? [null, null], [fp32Ms, int8Ms] = found?.ms ?? [null, null];
  return [
    ...(page.data.front_score === page.data.score ? [] : [["further trainings in int8, mean", further?.mean ?? null,
      further ? percentWithSd(further.mean, further.sd) : trial.failed ? `${trial.failed} failed` : NOT_MEASURED, "points"]]),
    ["these weights in fp32", found?.fp32 ?? null, percentOr(found?.fp32, NOT_MEASURED), "points"],
    ["these weights in int8", found?.int8 ?? null, percentOr(found?.int8, found?.faults.length ? "failed" : NOT_MEASURED), "points"],
    ["images that these are judged on", found?.images ?? null, found ? found.images.toLocaleString("en") : NOT_MEASURED, "text"],
    ["file in fp32", fp32Mb, inDigits(fp32Mb, "MB"), "ratio"],
    ["file in int8", int8Mb, inDigits(int8Mb, "MB"), "ratio"],
    ["one image in fp32", fp32Ms, inDigits(fp32Ms, "ms"), "ratio"],
    ["one image in int8", int8Ms, inDigits(int8Ms, "ms"), "ratio"],
    ["measured in", found?.where ?? null, found?.where ?? NOT_MEASURED, "text"],
  ];
}

function int8Tables(one, other) {
  if (!page.data.int8.length) return [element("p", {}, "In int8: not measured. ", element("code", {}, "cvt-nas export … --format onnx-int8"), " measures it.")];
  return page.data.int8.flatMap((runtime) => {
    const theirs = int8RowsOf(other, runtime);
    const rows = int8RowsOf(one, runtime).map(([name, value, text, kind], index) => [name, text, theirs[index][2], differenceOf(value, theirs[index][1], kind)]);
    const faults = [one, other].filter((trial, place, both) => both.indexOf(trial) === place).flatMap((trial) =>
      (trial.int8?.[runtime]?.faults ?? []).map((fault) => element("p", { class: "muted" }, `Trial ${trial.number} failed in int8: ${fault}.`)));
    return [tableOf(`In fp32 and int8, ${runtime}`, ["", ...headsOf(one, other), "change"], rows), ...faults];
  });
}

// Rows of name, value for comparison, text, and the form of a difference: percentage "points", "ratio", or none for "text".
function figuresOf(trial) {
  const measured = isKnown(trial.measured_ms) ? trial.measured_ms : null;
  const batch = page.data.batch === 1 ? "one at a time" : `${page.data.batch} at a time`;
  return [
    [inFp32(page.data.score), trial.accuracy, percentWithSd(trial.accuracy, trial.sd), "points"],
    ["test split", trial.test, percent(trial.test), "points"],
    ["expected at the proposal", trial.predicted ? trial.predicted[0] : null,
      trial.predicted ? percentWithSd(...trial.predicted) : "–", "points"],
    ["parameters", trial.params, trial.params.toLocaleString("en"), "ratio"],
    ["weights in fp32", trial.params, `${(4 * trial.params / MB).toPrecision(3)}\u00a0MB`, "ratio"],
    ["weights in fp16", trial.params, `${(2 * trial.params / MB).toPrecision(3)}\u00a0MB`, "ratio"],
    ["weights in int8", trial.params, `${(trial.params / MB).toPrecision(3)}\u00a0MB`, "ratio"],
    ["FLOPs (multiply-adds)", trial.flops, trial.flops.toLocaleString("en"), "ratio"],
    ["additions and multiplications", trial.flops, short(2 * trial.flops), "ratio"],
    ["latency, predicted", trial.latency_ms, isKnown(trial.latency_ms) ? `${trial.latency_ms.toPrecision(3)} ms` : "–", "ratio"],
    ["latency, measured", measured, measured === null ? "–" : `${measured.toPrecision(3)} ms`, "ratio"],
    [`images a second, predicted, ${batch}`, trial.throughput, isKnown(trial.throughput) ? trial.throughput.toFixed(0) : "–", "ratio"],
    [`images a second, measured, ${batch}`, measured === null ? null : 1000 * page.data.batch / measured,
      measured === null ? "–" : (1000 * page.data.batch / measured).toFixed(0), "ratio"],
    ["memory, predicted", trial.peak_memory_mb, isKnown(trial.peak_memory_mb) ? `${trial.peak_memory_mb.toPrecision(3)} MB` : "–", "ratio"],
    ["memory, measured", trial.measured_memory_mb, isKnown(trial.measured_memory_mb) ? `${trial.measured_memory_mb.toPrecision(3)} MB` : "–", "ratio"],
    ["training", trial.seconds, `${trial.seconds.toFixed(0)} s`, "ratio"],
  ];
}

function differenceOf(one, other, kind) {
  if (!isKnown(one) || !isKnown(other) || kind === "text") return "";
  if (one === other) return "same";
  if (kind === "points") return `${other > one ? "+" : "−"}${Math.abs(100 * (other - one)).toFixed(2)} points`;
  return one === 0 ? "" : `× ${Number((other / one).toPrecision(3))}`;
}

function tableOf(caption, names, rows, differs = () => false) {
  return element("div", { class: "scroll" }, element("table", { class: "pair-table" }, element("caption", {}, caption),
    element("thead", {}, element("tr", {}, names.map((name, index) => element("th", { scope: "col", class: index ? null : "text" }, name)))),
    element("tbody", {}, rows.map((row) => element("tr", { class: differs(row) ? "differs" : null },
      row.map((value, index) => (index ? element("td", {}, value) : element("th", { scope: "row", class: "text" }, value))))))));
}

const nameOf = (trial) => `trial ${trial.number}${trial.tags.length ? ` (${trial.tags.join(", ")})` : ""}`;
const headsOf = (...trials) => trials.map((trial) => `trial ${trial.number}`);

function figureTable(one, other) {
  const rows = figuresOf(one).map(([name, value, text, kind], index) => {
    const [, otherValue, otherText] = figuresOf(other)[index];
    return !isKnown(value) && !isKnown(otherValue) ? null : [name, text, otherText, differenceOf(value, otherValue, kind)];
  });
  return tableOf("Figures", ["", ...headsOf(one, other), "change"], rows.filter(isKnown));
}

function stageTable(one, other) {
  const facts = (trial) => stagesOf(trial).map((stage) => [
    ["tokens", `${stage.rows} × ${stage.columns}${stage.token ? " + 1" : ""}`], ["width", String(stage.width)],
    ["depth", String(stage.blocks.length)],
    ...CHOICES.map((name, place) => [name, choiceOf(stage, place) ?? "–"]),
    ["embedding", `${stage.kernel} × ${stage.kernel}, stride ${stage.stride}`],
    ["params", short(stage.params)], ["FLOPs", short(stage.flops)],
  ]);
  const ours = facts(one), theirs = facts(other);
  const rows = Array.from({ length: Math.max(ours.length, theirs.length) }, (_, stage) => stage).flatMap((stage) =>
    (ours[stage] ?? theirs[stage]).map(([name], index) => {
      const left = ours[stage]?.[index][1] ?? "–", right = theirs[stage]?.[index][1] ?? "–";
      return [`stage ${stage}: ${name}`, left, right, left === right ? "" : "differs"];
    }));
  return tableOf("Stages", ["", ...headsOf(one, other), ""], rows, (row) => row[3] === "differs");
}

function classTable(one, other) {
  if (!one.classes && !other.classes) return [element("p", {}, "What each class is recognised with is known of members of the front whose test split was read.")];
  const recall = (trial, index) => (trial.classes && trial.classes[0][index] ? trial.classes[1][index] / trial.classes[0][index] : null);
  const rows = page.data.classes.map((name, index) => [name, recall(one, index), recall(other, index)])
    .filter(([, left, right]) => left !== null || right !== null)
    .sort((a, b) => Math.abs((b[2] ?? 0) - (b[1] ?? 0)) - Math.abs((a[2] ?? 0) - (a[1] ?? 0)))
    .map(([name, left, right]) => [name, percent(left, 1), percent(right, 1), differenceOf(left, right, "points")]);
  const heads = ["class", ...headsOf(one, other), "change"];
  const shown = tableOf(`Recall of each class on the test split${rows.length > MAX_CLASSES ? `; the ${MAX_CLASSES} that differ most` : ", those that differ most first"}`, heads, rows.slice(0, MAX_CLASSES));
  return rows.length <= MAX_CLASSES ? [shown]
    : [shown, element("details", {}, element("summary", {}, `All ${rows.length} classes`), tableOf("Recall of each class", heads, rows))];
}

const mistakesBeside = (one, other) => (!one.mistakes?.length && !other.mistakes?.length ? [] : [
  element("h3", {}, "What each gets wrong on the test split"),
  element("div", { class: "pair" }, [one, other].map((trial) => element("div", {}, element("h4", {}, nameOf(trial)),
    trial.mistakes?.length ? mistakeList(trial) : element("p", { class: "muted" }, "No images are kept of it.")))),
]);

let pairShown = null;
page.fillPair = (isSame = false) => {
  const [one, other] = page.state.pair.map(trialOf);
  const told = JSON.stringify([one, other]);
  if (isSame && told === pairShown && byId("pair-shown").childElementCount) return;
  pairShown = told;
  if (!one || !other) {
    byId("pair-shown").replaceChildren(element("p", {}, "Two complete trials are needed."));
    return;
  }
  byId("pair-shown").replaceChildren(
    element("div", { class: "pair tables" },
      element("div", {}, figureTable(one, other), ...int8Tables(one, other),
        curvesOf([nameOf(one), one, "--accent", "solid"], [nameOf(other), other, "--mark", "dash"]), classTable(one, other)),
      stageTable(one, other)),
    ...mistakesBeside(one, other),
  );
};

function fillChoices() { // fills the two lists with the front, then the other complete trials
  const complete = page.data.trials.filter((trial) => trial.status === "complete").sort((a, b) => b.judged - a.judged);
  const optionOf = (trial) => element("option", { value: trial.number },
    `${nameOf(trial)}: ${percent(trial.judged)}${trial.further ? " in int8" : ""}, ${short(trial.params)} params, ${short(trial.flops)} FLOPs`);
  const groups = [["on the front", complete.filter((trial) => trial.front)], ["off the front", complete.filter((trial) => !trial.front)]];
  const [knee, best] = ["knee", "best"].map((tag) => complete.find((trial) => trial.tags.includes(tag)));
  const usual = [knee ?? complete[0], best !== knee ? best : complete.find((trial) => trial !== knee)];
  page.state.pair = page.state.pair.map((number, place) => (trialOf(number) ? number : usual[place]?.number ?? null));
  ["pair-one", "pair-other"].forEach((id, place) => {
    byId(id).replaceChildren(...groups.filter(([, trials]) => trials.length).map(([label, trials]) =>
      element("optgroup", { label }, trials.map(optionOf))));
    byId(id).value = String(page.state.pair[place] ?? "");
  });
}

function pairWith(place, number) {
  page.state.pair[place] = number;
  byId(place ? "pair-other" : "pair-one").value = String(number);
  page.fillPair();
}
on("change", "#pair-one", (list) => pairWith(0, Number(list.value)));
on("change", "#pair-other", (list) => pairWith(1, Number(list.value)));
on("click", "[data-pairs]", (button) => {
  pairWith(Number(button.dataset.pairs), page.state.selected);
  byId("pair").scrollIntoView();
  byId(Number(button.dataset.pairs) ? "pair-other" : "pair-one").focus({ preventScroll: true });
});

page.parts.push({
  start() {
    fillChoices();
    page.fillPair(true);
  },
  themed: () => page.fillPair(),
});
page.start(); // this is the last of the scripts
