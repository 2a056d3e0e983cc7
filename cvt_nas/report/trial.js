"use strict";
// One architecture: its stages, its learning curve, its mistakes, and its place on the plots.

const stagesOf = (trial) => trial.stages.map(([rows, columns, width, kernel, stride, token, params, flops, blocks]) =>
  ({ rows, columns, side: Math.sqrt(rows * columns), width, kernel, stride, token, params, flops,
    blocks: blocks.flatMap((block) => Array(block[0]).fill(block)) }));
const trialOf = (number) => page.byNumber.get(number);
const CHOICES = ["heads", "MLP ratio", "kernel", "kv stride", "projection"]; // of a block, in the order of the data

function choiceOf(stage, place) { // one value if all blocks are alike, or else one per block; null if it has no effect
  const values = stage.blocks.map((block) => block[place + 1]);
  const isLinear = stage.blocks.every((block) => block[5] === "linear"); // it has neither kernel nor stride
  if (isLinear && (CHOICES[place] === "kernel" || CHOICES[place] === "kv stride")) return null;
  return new Set(values).size === 1 ? String(values[0]) : values.join(" ");
}

const SVG = "http://www.w3.org/2000/svg";
function pictureOf(stage, widest, largest) {
  const svg = document.createElementNS(SVG, "svg");
  const room = 220;
  const gap = room / Math.max(stage.blocks.length, 4);
  svg.setAttribute("viewBox", `0 0 ${room} 84`);
  svg.setAttribute("preserveAspectRatio", "xMinYMax meet");
  svg.setAttribute("aria-hidden", "true");
  stage.blocks.forEach((block, index) => {
    const rect = document.createElementNS(SVG, "rect");
    const height = 12 + (68 * Math.log2(stage.side + 1)) / Math.log2(largest + 1);
    const width = Math.max(Math.min(gap - 2, (gap - 2) * (0.3 + (0.7 * stage.width) / widest)), 1.5);
    rect.setAttribute("x", index * gap);
    rect.setAttribute("y", 84 - height);
    rect.setAttribute("width", width);
    rect.setAttribute("height", height);
    rect.setAttribute("rx", 2);
    rect.setAttribute("opacity", 1 / block[4] ** 0.6); // a block with a greater stride of keys and values is paler
    svg.append(rect);
  });
  return svg;
}

function share(name, part, whole) {
  const fill = element("i");
  fill.style.width = `${(100 * part) / whole}%`;
  return element("div", { class: "share" }, element("span", {}, name), element("span", {}, fill),
    element("span", {}, `${short(part)}, ${percent(part / whole, 0)}`));
}

function stageCard(trial, stage, index) {
  const choices = CHOICES.map((name, place) => [name, choiceOf(stage, place)]).filter(([, value]) => value !== null);
  return element("li", {},
    element("strong", {}, `Stage ${index}`),
    element("div", { class: "muted" }, `${stage.rows} × ${stage.columns} tokens${stage.token ? " + class token" : ""}, width ` +
      `${stage.width}, depth ${stage.blocks.length}; embedding ${stage.kernel} × ${stage.kernel}, stride ${stage.stride}`),
    pictureOf(stage, Math.max(...stagesOf(trial).map((other) => other.width)), Math.max(...stagesOf(trial).map((other) => other.side))),
    element("ul", {}, choices.map(([name, value]) => element("li", {}, `${name} ${value}`))),
    share("params", stage.params, trial.params),
    share("FLOPs", stage.flops, trial.flops));
}

// The learning curves of one or two trials. Each is given as [name, trial, colour, dash].
function curvesOf(...shown) {
  const known = shown.filter(([, trial]) => trial.curve[0] && trial.curve[0].length > 1);
  if (!known.length) return null;
  const told = known.map(([name, trial]) => `${name}: ${trial.curve[0].map((epoch, index) => `${epoch}: ${percent(trial.curve[1][index])}`).join(", ")}`);
  const plot = element("div", { class: "plot small", role: "img", "aria-label": `${page.data.score} after each epoch; ${told.join("; ")}` });
  const rungs = page.data.rungs.map((epoch) => ({ type: "line", x0: epoch, x1: epoch, yref: "paper", y0: 0, y1: 1,
    line: { color: colour("--mark"), width: 1, dash: "dash" } }));
  const layout = { margin: { t: known.length > 1 ? 34 : 10, b: 40 }, shapes: rungs, xaxis: { title: { text: "Epochs" }, rangemode: "tozero" },
    yaxis: { title: { text: page.data.score }, tickformat: ".1%" }, showlegend: known.length > 1,
    legend: { orientation: "h", yanchor: "bottom", y: 1.0, x: 0 } };
  requestAnimationFrame(() => Plotly.newPlot(plot, known.map(([name, { curve: [epochs, accuracies] }, line, dash]) =>
    ({ x: epochs, y: accuracies, name, mode: "lines+markers", line: { color: colour(line), dash } })),
  themed(layout), { responsive: true, displayModeBar: false }));
  return plot;
}

const mistakeList = (trial) => element("ul", { class: "shown" }, trial.mistakes.map((shown) => element("li", {},
  element("img", { src: shown.image, alt: "" }),
  element("span", {}, `${shown.label}, taken for ${shown.answer} (${shown.probability})`))));

function classesOf(trial) { // a table of the classes, the worst first
  if (!trial.classes) return null;
  const rows = page.data.classes.map((name, index) => ({ name, images: trial.classes[0][index], right: trial.classes[1][index] }))
    .filter((row) => row.images).sort((one, other) => one.right / one.images - other.right / other.images);
  return element("details", {}, element("summary", {}, "Each class of the test split, the worst first"),
    element("div", { class: "scroll" }, element("table", {},
      element("thead", {}, element("tr", {}, element("th", { scope: "col", class: "text" }, "class"), ...["images", "found", "recall"].map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, rows.map((row) => element("tr", {}, element("td", { class: "prose" }, row.name),
        ...[row.images, row.right, percent(row.right / row.images, 1)].map((value) => element("td", {}, String(value)))))))));
}

let trialShown = null; // its data as JSON, so that the panel is filled again only if they have changed
page.fillTrial = (isSame = false) => {
  const trial = trialOf(page.state.selected);
  if (!trial || (isSame && JSON.stringify(trial) === trialShown && byId("arch").childElementCount)) return;
  trialShown = JSON.stringify(trial);
  keepingFocus(byId("arch"), () => fillArch(trial));
};

function fillArch(trial) {
  const tags = trial.tags.length ? ` (${trial.tags.join(", ")})` : "";
  const said = trial.predicted;
  const figuresOf = [
    `${inFp32(page.data.score)} ${percentWithSd(trial.accuracy, trial.sd)}`,
    isKnown(trial.test) ? `test ${percent(trial.test)}` : null,
    trial.failed ? `failed in int8 in ${trial.failed} further trainings` : null,
    ...page.data.int8.flatMap((runtime) => {
      const found = trial.int8?.[runtime], further = trial.further?.runtime === runtime ? trial.further : null;
      return [further ? `in int8, ${runtime}, ${percentWithSd(further.mean, further.sd)}` : null,
        isKnown(found?.int8) ? `these weights in int8, ${runtime}, ${percent(found.int8)}, in fp32 ${percent(found.fp32)}` : null,
        ...(found?.faults ?? []).map((fault) => `failed in int8: ${fault}`)];
    }),
    `${trial.params.toLocaleString("en")} params`, `${trial.flops.toLocaleString("en")} FLOPs`,
    isKnown(trial.latency_ms) ? `${trial.latency_ms.toPrecision(3)} ms predicted`
      + (isKnown(trial.measured_ms) ? `, ${trial.measured_ms.toPrecision(3)} measured` : "") : null,
    `${trial.status} after ${trial.epochs} epochs`, `seed ${trial.seed}`,
    said ? `${percentWithSd(said[0], said[1])} was expected of it` : null, trial.reason,
  ].filter(isKnown);
  byId("arch").replaceChildren(
    element("h3", {}, "Trial ", String(trial.number), ": ", element("span", { class: "id" }, trial.arch_id), tags),
    element("p", {}, figuresOf.join("; ")),
    element("ol", { class: "stages" }, stagesOf(trial).map((stage, index) => stageCard(trial, stage, index))),
    ...[curvesOf([`trial ${trial.number}`, trial, "--accent", "solid"])].filter(isKnown),
    ...(trial.mistakes && trial.mistakes.length
      ? [element("h4", {}, "What it gets wrong on the test split, the surest answers first"), mistakeList(trial)] : []),
    ...[classesOf(trial)].filter(isKnown),
    element("p", {}, trial.status === "complete" ? "As a model of its own:" : "It has no weights; to train it in full:"),
    command(trial.status === "complete" ? exportOf(trial)
      : `cvt-nas train ${quoted(`${page.data.place}:${trial.arch_id}`)} --out my_training`),
    ...(trial.status === "complete" ? [element("p", { class: "scripted" }, "Side by side with another: ",
      element("button", { type: "button", "data-pairs": "0" }, "as the first"), " ",
      element("button", { type: "button", "data-pairs": "1" }, "as the second"))] : []),
  );
}

page.select = (number, scrolls = false) => {
  if (!trialOf(number)) return;
  page.state.selected = number;
  page.fillTrial();
  selecting().forEach(page.decorate);
  for (const row of byId("rows").children) row.setAttribute("aria-selected", String(Number(row.dataset.number) === number));
  history.replaceState(null, "", `#trial=${number}`);
  if (scrolls) byId("arch").scrollIntoView({ block: "nearest" });
};
on("click", "[data-select]", (button) => page.select(Number(button.dataset.select), true));

page.parts.push({
  start() {
    page.byNumber = new Map(page.data.trials.map((trial) => [trial.number, trial]));
    const asked = /^#trial=(\d+)$/.exec(location.hash);
    const wanted = page.state.selected ?? (asked ? Number(asked[1]) : null);
    page.state.selected = trialOf(wanted) ? wanted : page.data.first;
    page.fillTrial(true);
    if (asked === null && page.state.selected !== null && !location.hash) history.replaceState(null, "", `#trial=${page.state.selected}`);
  },
  themed: () => page.fillTrial(),
});
