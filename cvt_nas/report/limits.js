"use strict";
// Limits on the costs of a network, and the best network within them: on the plots, in the tables, and as a command.

const STEPS = 100; // of a slider; no limit is the last step, and the first one if the limit is a least value
const UNITS = {
  params: [["M", 1e6, "million parameters"], ["k", 1e3, "thousand parameters"]],
  flops: [["G", 1e9, "billion FLOPs"], ["M", 1e6, "million FLOPs"]],
  latency_ms: [["ms", 1, "milliseconds, as predicted"]],
  throughput: [["images/s", 1, "images a second, as predicted"]],
  peak_memory_mb: [["MB", 1, "megabytes of parameters and values"]],
  model_mb: [["MB", 1, "megabytes of parameters"]],
};
const NAMES = { params: "parameters", flops: "FLOPs", latency_ms: "latency", throughput: "throughput", peak_memory_mb: "memory", model_mb: "size" };
const UNNAMED = ["latency_ms", "throughput"]; // their units say what they are
const isLeast = (metric) => metric === "throughput"; // its limit is the least value, and the limits of others are the most
const sideOf = (metric) => (isLeast(metric) ? "at least" : "at most");

const competing = () => page.data.trials.filter((trial) => trial.competes);
const rounded = (value, isDown) => { // to three digits, so that the limit still admits a network of this value
  const unit = 10 ** (Math.floor(Math.log10(value)) - 2);
  return Number(((isDown ? Math.floor(value / unit + 1e-9) : Math.ceil(value / unit - 1e-9)) * unit).toPrecision(3));
};
const unitOf = (metric, most) => UNITS[metric].find(([, factor]) => most >= factor) ?? UNITS[metric].at(-1);
const inUnit = (metric, value) => {
  const [unit, factor] = unitOf(metric, page.ranges[metric][1]);
  return `${Number((value / factor).toPrecision(3))} ${unit}`;
};

const openStep = (metric) => (isLeast(metric) ? 0 : STEPS); // the step that means no limit
function limitAt(metric, step) { // null at the open step
  const [least, most] = page.ranges[metric];
  return step === openStep(metric) ? null : rounded(least * (most / least) ** (step / STEPS), isLeast(metric));
}
function stepOf(metric, limit) {
  const [least, most] = page.ranges[metric];
  if (!isKnown(limit) || most <= least) return openStep(metric);
  const step = Math.round((STEPS * Math.log(limit / least)) / Math.log(most / least));
  return isLeast(metric) ? Math.min(Math.max(step, 1), STEPS) : Math.min(Math.max(step, 0), STEPS - 1);
}

function control(metric) {
  const [unit, , words] = unitOf(metric, page.ranges[metric][1]);
  const id = `limit-${metric}`;
  return element("div", { class: "limit", role: "group", "aria-label": `limit of ${NAMES[metric]}` },
    element("label", { for: id }, `${sideOf(metric)}, ${NAMES[metric]}`),
    element("output", { for: id, id: `${id}-output` }),
    element("input", { type: "range", id, min: 0, max: STEPS, step: 1, "data-limit": metric }),
    element("label", { class: "entry" }, `in ${unit} `,
      element("input", { type: "number", id: `${id}-entry`, min: 0, step: "any", inputmode: "decimal", "data-entry": metric,
        "aria-label": `${sideOf(metric)} so many ${words}`, placeholder: "any" })));
}

function buildControls() { // rebuilds them only if the costs or units have changed, so that a control in use stays
  const wanted = page.data.costs.join();
  const units = page.data.costs.map((metric) => unitOf(metric, page.ranges[metric][1])[0]).join();
  if (byId("limits").dataset.built === `${wanted} ${units}`) return;
  byId("limits").dataset.built = `${wanted} ${units}`;
  byId("limits").replaceChildren(
    element("h3", { id: "limits-name" }, "What may it cost?"),
    element("div", { class: "sliders", role: "group", "aria-labelledby": "limits-name" }, page.data.costs.map(control)),
    element("div", { id: "pick", class: "pick" }, element("p", { id: "pick-said", role: "status" }), element("div", { id: "pick-acts" })),
  );
}

function fillControls(typing) {
  for (const metric of page.data.costs) {
    const limit = page.state.limits[metric] ?? null;
    const slider = byId(`limit-${metric}`), entry = byId(`limit-${metric}-entry`);
    const said = limit === null ? "any" : inUnit(metric, limit);
    slider.value = stepOf(metric, limit);
    slider.setAttribute("aria-valuetext", limit === null ? "no limit" : `${sideOf(metric)} ${said}`);
    byId(`limit-${metric}-output`).textContent = said;
    if (entry !== typing) entry.value = limit === null ? "" : Number((limit / unitOf(metric, page.ranges[metric][1])[1]).toPrecision(6));
  }
}

const isWithin = (trial) => page.data.costs.every((metric) => {
  const limit = page.state.limits[metric], value = trial[metric];
  return !isKnown(limit) || (isKnown(value) && (isLeast(metric) ? value >= limit : value <= limit));
});
const isLimited = () => page.data.costs.some((metric) => isKnown(page.state.limits[metric]));

function fillPick() {
  const within = competing().filter(isWithin);
  const best = within.reduce((one, other) => (one === null || other.judged > one.judged
    || (other.judged === one.judged && other.flops < one.flops) ? other : one), null);
  page.picked = best === null ? null : best.number;
  const limits = page.data.costs.filter((metric) => isKnown(page.state.limits[metric]))
    .map((metric) => `${sideOf(metric)} ${inUnit(metric, page.state.limits[metric])} ${UNNAMED.includes(metric) ? "" : NAMES[metric]}`.trim());
  const where = limits.length ? `within ${limits.join(" and ")}` : "without a limit";
  if (best === null) {
    const missed = page.data.costs.filter((metric) => isKnown(page.state.limits[metric]))
      .map((metric) => `the ${isLeast(metric) ? "greatest" : "least"} ${NAMES[metric]}: ${inUnit(metric, page.ranges[metric][isLeast(metric) ? 1 : 0])}`);
    byId("pick-said").textContent = competing().length ? `No complete network is ${where}; ${missed.join(", ")}.`
      : "No trial has reached its last epoch yet.";
    byId("pick-acts").replaceChildren();
    return;
  }
  const costs = page.data.costs.map((metric) => `${UNNAMED.includes(metric) || metric.endsWith("_mb") ? inUnit(metric, best[metric]) : short(best[metric])} ${UNNAMED.includes(metric) ? "" : NAMES[metric]}`.trim());
  byId("pick-said").textContent = `Pick ${where}: trial ${best.number} (${best.arch_id}), ${page.data.front_score} ${percent(best.judged)}, ` +
    `${costs.join(", ")}; the best of ${within.length} of ${competing().length} complete networks.`;
  byId("pick-acts").replaceChildren(command(exportOf(best)), element("p", {},
    element("button", { type: "button", "data-select": best.number }, "show its architecture"), " ",
    element("button", { type: "button", "data-row": best.number }, "show its row")));
}

function markRows() { // includes the rows of the tables that the page has without scripts
  for (const row of document.querySelectorAll("tr[data-number]")) row.toggleAttribute("data-picked", Number(row.dataset.number) === page.picked);
}

page.decorate = (plot) => { // marks the selected trial and the pick, and fades what is beyond the limits
  const { selects } = plot.dataset, { layout, data: traces } = page.figures[plot.dataset.figure];
  const isLog = selects !== "predicted";
  const noteOf = (number, more) => {
    const trial = trialOf(number);
    const x = trial && (isLog ? trial[selects] : trial.predicted && trial.predicted[0]);
    const y = trial && (isLog ? trial.judged : trial.accuracy);
    return !trial || !isKnown(x) || !isKnown(y) ? [] : [{ x: isLog ? Math.log10(x) : x, y, text: "",
      showarrow: false, width: 16, height: 16, borderwidth: 3, borderpad: 0, bordercolor: colour("--text"), ...more }];
  };
  const pick = isLimited() ? noteOf(page.picked, { text: "pick", showarrow: true, ax: 0, ay: 34, arrowcolor: colour("--mark"),
    font: { color: colour("--mark"), size: 14 }, bordercolor: "rgba(0,0,0,0)", borderwidth: 0, width: undefined, height: undefined }) : [];
  const limit = isLog ? page.state.limits[selects] : null;
  const drawn = traces.filter((trace) => trace.visible !== "legendonly").flatMap((trace) => [...(trace.x ?? [])]);
  const end = isLeast(selects) ? Math.min(limit ?? Infinity, ...drawn) / 2 : 2 * Math.max(limit ?? 0, ...drawn);
  const shade = !isKnown(limit) ? [] : [{ type: "rect", x0: limit, x1: end, yref: "paper", y0: 0, y1: 1, layer: "above",
    fillcolor: colour("--shade"), line: { width: 0 } }, { type: "line", x0: limit, x1: limit, yref: "paper", y0: 0, y1: 1, line: { color: colour("--mark"), width: 2 } }];
  Plotly.relayout(plot, { annotations: [...noteOf(page.state.selected), ...pick], shapes: [...(layout.shapes ?? []), ...shade] });
  const wasLimited = plot.dataset.limited !== undefined;
  if (!isLimited() && !wasLimited) return;
  plot.toggleAttribute("data-limited", isLimited());
  const indices = traces.flatMap((trace, index) => (trace.customdata ? [index] : []));
  Plotly.restyle(plot, {
    selectedpoints: indices.map((index) => (isLimited()
      ? traces[index].customdata.flatMap((number, at) => (isWithin(trialOf(number)) ? [at] : [])) : null)),
    "unselected.marker.opacity": 0.12,
  }, indices);
};

let waits = false;
function limitsChanged(typing) {
  fillControls(typing);
  if (waits) return;
  waits = true;
  requestAnimationFrame(() => { // once per animation frame, however fast a slider moves
    waits = false;
    fillPick();
    markRows();
    selecting().forEach(page.decorate);
  });
}

on("input", "[data-limit]", (slider) => {
  page.state.limits[slider.dataset.limit] = limitAt(slider.dataset.limit, Number(slider.value));
  limitsChanged(null);
});
on("input", "[data-entry]", (entry) => {
  const metric = entry.dataset.entry, value = Number(entry.value);
  page.state.limits[metric] = entry.value !== "" && value > 0 ? value * unitOf(metric, page.ranges[metric][1])[1] : null;
  limitsChanged(entry);
});
on("click", "[data-row]", (button) => page.showRow(Number(button.dataset.row)));

page.parts.unshift({ // comes before the table, since the table marks the pick
  start() {
    page.byNumber = new Map(page.data.trials.map((trial) => [trial.number, trial]));
    page.ranges = Object.fromEntries(page.data.costs.map((metric) => {
      const costs = (competing().length ? competing() : page.data.trials).map((trial) => trial[metric]).filter(isKnown);
      return [metric, costs.length ? [Math.min(...costs), Math.max(...costs)] : [1, 1]];
    }));
    buildControls();
    fillControls(document.activeElement);
    fillPick();
    markRows();
  },
  drawn(plot) {
    if (plot.dataset.selects !== undefined) {
      delete plot.dataset.limited;
      page.decorate(plot);
    }
  },
});
