"use strict";
// The plots of the page, and functions that its scripts share. `page.start()` fills the page from its data. It can be
// called again after contents were replaced. The event `results` does the same. Its detail is `data` and `figures`.
// The document listens to clicks and input, so new contents need no listeners. `page.state` holds the reader's choices.
// Elements that scripts fill have `data-owned`, and plots have `data-figure`. Code that replaces contents must leave
// both unchanged.

const page = {
  data: {}, figures: {}, parts: [], drawn: new Set(),
  state: { shows: {}, selected: null, limits: {}, pair: [null, null] },
};
const byId = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

function on(kind, selector, heard) {
  document.addEventListener(kind, (event) => {
    const target = event.target instanceof Element ? event.target.closest(selector) : null;
    if (target) heard(target, event);
  });
}

// ---- figures in words --------------------------------------------------------------------------------------------

const short = (value) => {
  for (const [factor, suffix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= factor) return Number((value / factor).toPrecision(3)) + suffix;
  }
  return String(Number(value.toPrecision(3)));
};
const isKnown = (value) => value !== null && value !== undefined;
const inFp32 = (score) => (page.data.front_score === page.data.score ? score : `${score} in fp32`); // if the front is in int8
const percent = (value, digits = 2) => (isKnown(value) ? (100 * value).toFixed(digits) + " %" : "–");
const percentWithSd = (mean, sd) => (isKnown(sd) ? `${percent(mean)} ± ${percent(sd)}`.replaceAll(" ", "\u00a0") : percent(mean)); // on one line

function quoted(word) { // like Python's shlex.quote
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`;
}

function command(text) {
  return element("div", { class: "command" }, element("code", {}, text),
    element("button", { type: "button", "data-copies": text }, "copy"));
}
on("click", "[data-copies]", (button) => {
  if (navigator.clipboard) navigator.clipboard.writeText(button.dataset.copies).then(() => { button.textContent = "copied"; }, () => {});
});
const exportOf = (trial) => `cvt-nas export ${quoted(page.data.place)} --pick ${trial.arch_id} --to my_model`;

// ---- light and dark ----------------------------------------------------------------------------------------------

const root = document.documentElement;
const wantsDark = window.matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : wantsDark.matches);
const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

function themed(layout) {
  const small = window.innerWidth < 640;
  const found = { ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" };
  found.font = { ...layout.font, color: colour("--text"), size: small ? 11 : 12 };
  delete found.title; // the headings of the page contain it
  for (const name of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
    found[name] = {
      ...layout[name], gridcolor: colour("--grid"), linecolor: colour("--line"), zerolinecolor: colour("--grid"),
      automargin: true,
    };
    const { title } = found[name]; // without a distance, plotly writes the title over wide labels
    if (title && name.startsWith("y")) found[name].title = { ...title, standoff: 8 };
  }
  const hasButtons = layout.xaxis !== undefined && !small;
  found.margin = { t: 44, b: 48, r: hasButtons ? 40 : 14, l: small ? 44 : 64, ...layout.margin };
  // the buttons stand in the right margin, where they cover neither the legend nor points
  found.modebar = { orientation: "v", bgcolor: "rgba(0,0,0,0)", color: colour("--muted"), activecolor: colour("--accent") };
  if (layout.hoverlabel) found.hoverlabel = { ...layout.hoverlabel, bgcolor: colour("--raised") };
  found.uirevision = "kept"; // a plot keeps its zoom when it is drawn again with new data
  return found;
}

function restyle() {
  for (const plot of page.drawn) {
    Plotly.relayout(plot, themed(page.figures[plot.dataset.figure].layout));
    noteRanges(plot);
    page.parts.forEach((part) => part.drawn && part.drawn(plot));
  }
  if (page.data.trials) page.parts.forEach((part) => part.themed && part.themed());
}

on("click", "#theme", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  restyle();
});
wantsDark.addEventListener("change", restyle);

let atScreen = null; // the theme to restore after printing
window.addEventListener("beforeprint", () => {
  atScreen = atScreen ?? { theme: root.dataset.theme };
  root.dataset.theme = "light";
  plots().forEach((plot) => page.drawn.has(plot) || draw(plot));
  restyle();
});
window.addEventListener("afterprint", () => {
  if (atScreen === null) return;
  if (atScreen.theme) root.dataset.theme = atScreen.theme;
  else delete root.dataset.theme;
  atScreen = null;
  restyle();
});

// ---- plots -------------------------------------------------------------------------------------------------------

const plots = () => [...document.querySelectorAll("[data-figure]")].filter((plot) => page.figures[plot.dataset.figure]);
const selecting = () => [...page.drawn].filter((plot) => plot.dataset.selects !== undefined);

const axesOf = (layout) => Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));
const rangeOf = ({ autorange, range }) => (autorange === true ? "all" : JSON.stringify(range));
const ranges = new Map(); // the axis ranges that the page set for each plot; a different range is the reader's zoom
const noteRanges = (plot) => ranges.set(plot, new Map(axesOf(plot.layout).map((name) => [name, rangeOf(plot.layout[name])])));

function draw(plot) { // draws it for the first time, or again with new data; the reader's zoom is kept
  const { data: traces, layout } = page.figures[plot.dataset.figure];
  const isNew = !page.drawn.has(plot), shown = themed(layout);
  if (!isNew && plot.dataset.selects !== undefined && page.state.shows.stopped) {
    for (const name of axesOf(shown)) shown[name] = { ...shown[name], autorange: true, range: undefined };
  }
  const zoomed = isNew ? [] : axesOf(shown).filter((name) => plot.layout[name] && rangeOf(plot.layout[name]) !== ranges.get(plot).get(name));
  const known = new Map(zoomed.map((name) => [name, ranges.get(plot).get(name)]));
  for (const name of zoomed) {
    const { autorange, range } = plot.layout[name];
    shown[name] = { ...shown[name], autorange, range: autorange === true ? undefined : [...range] };
  }
  Plotly.react(plot, traces.map((trace) => ({ ...trace })), shown, {
    responsive: true, displaylogo: false, // of the buttons below, the last would upload the plot
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "sendChartToCloud"],
    displayModeBar: layout.xaxis !== undefined && window.innerWidth >= 640 ? "hover" : false,
  });
  page.drawn.add(plot);
  if (plot.dataset.selects !== undefined) {
    if (isNew) plot.on("plotly_click", (event) => {
      const number = event.points.map((point) => point.customdata).find(isKnown);
      if (number !== undefined) page.select(number);
    });
    switches().forEach((box) => show(plot, box, isNew));
  }
  noteRanges(plot);
  known.forEach((range, name) => ranges.get(plot).set(name, range));
  page.parts.forEach((part) => part.drawn && part.drawn(plot));
}

const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) if (isIntersecting && !page.drawn.has(target)) draw(target);
}, { rootMargin: "600px" });

const switches = () => [...document.querySelectorAll("input[data-shows]")]; // show or hide the trace with this meta
function show(plot, box, moves = true) {
  const index = plot.data.findIndex((trace) => trace.meta === box.dataset.shows);
  if (index < 0) return;
  Plotly.restyle(plot, { visible: box.checked }, [index]);
  if (box.dataset.shows !== "stopped" || !moves) return;
  const { xaxis, yaxis } = page.figures[plot.dataset.figure].layout; // its ranges show the complete trials
  Plotly.relayout(plot, box.checked ? { "xaxis.autorange": true, "yaxis.autorange": true }
    : { "xaxis.range": [...xaxis.range], "yaxis.range": [...yaxis.range] });
  noteRanges(plot);
}
on("change", "input[data-shows]", (box) => {
  page.state.shows[box.dataset.shows] = box.checked;
  selecting().forEach((plot) => show(plot, box));
});

// ---- the beginning -----------------------------------------------------------------------------------------------

const packedIn = async (id) => JSON.parse(await unpacked(byId(id).textContent));

page.start = async ({ data, figures } = {}) => { // the default is the data and figures that are packed in the page
  [page.data, page.figures] = await Promise.all([data ?? packedIn("data"), figures ?? packedIn("figures"), plotlyIsThere]);
  root.dataset.scripted = "";
  for (const box of switches()) box.checked = page.state.shows[box.dataset.shows] ?? box.checked;
  for (const plot of page.drawn) { // removes the plots of contents that are gone
    if (plot.isConnected && page.figures[plot.dataset.figure]) continue;
    Plotly.purge(plot);
    page.drawn.delete(plot);
  }
  if (page.data.trials) page.parts.forEach((part) => part.start && part.start());
  plots().forEach((plot) => (page.drawn.has(plot) ? draw(plot) : seen.observe(plot)));
};
window.addEventListener("results", ({ detail }) => page.start(detail)); // sent by live.js in a page that is served

function keepingFocus(container, fill) { // after `fill`, the button in the same place has the focus
  const buttons = () => [...container.querySelectorAll("button")];
  const place = buttons().indexOf(document.activeElement);
  fill();
  if (place >= 0) buttons()[place]?.focus({ preventScroll: true });
}
