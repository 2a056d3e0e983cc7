"use strict";
// What the scripts of the page share, and its plots. `page.start()` fills the page from its data. It can be called again
// after contents were replaced, as can an event `results` with `data` and `figures` as its detail: clicks and input are
// heard by the document, wherever they come from, and what a reader has chosen is in `page.state`. What scripts fill has
// `data-owned`, and plots have `data-figure`; whoever replaces contents leaves both as they are.

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
const percent = (value, digits = 2) => (isKnown(value) ? (100 * value).toFixed(digits) + " %" : "–");

function quoted(word) { // as Python's shlex.quote
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
  delete found.title; // the page's headings say it
  for (const name of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
    found[name] = {
      ...layout[name], gridcolor: colour("--grid"), linecolor: colour("--line"), zerolinecolor: colour("--grid"),
      automargin: true,
    };
  }
  const hasButtons = layout.xaxis !== undefined && !small;
  found.margin = { t: 44, b: 48, r: hasButtons ? 40 : 14, l: small ? 44 : 64, ...layout.margin };
  // in the right margin, where they cover neither legend nor points
  found.modebar = { orientation: "v", bgcolor: "rgba(0,0,0,0)", color: colour("--muted"), activecolor: colour("--accent") };
  if (layout.hoverlabel) found.hoverlabel = { ...layout.hoverlabel, bgcolor: colour("--raised") };
  found.uirevision = "kept"; // drawn again with new data, a plot keeps its zoom
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

let atScreen = null; // the theme to go back to, while it is printed
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
const ranges = new Map(); // of each plot's axes, as the page has set them; others are a reader's zoom
const noteRanges = (plot) => ranges.set(plot, new Map(axesOf(plot.layout).map((name) => [name, rangeOf(plot.layout[name])])));

function draw(plot) { // for the first time, or again with new data, which keeps a reader's zoom
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
    responsive: true, displaylogo: false, // the last would upload the plot
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

const switches = () => [...document.querySelectorAll("input[data-shows]")]; // of traces, named by their meta
function show(plot, box, moves = true) {
  const index = plot.data.findIndex((trace) => trace.meta === box.dataset.shows);
  if (index < 0) return;
  Plotly.restyle(plot, { visible: box.checked }, [index]);
  if (box.dataset.shows !== "stopped" || !moves) return;
  const { xaxis, yaxis } = page.figures[plot.dataset.figure].layout; // opened on the complete trials
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

page.start = async ({ data, figures } = {}) => { // without them, those that are packed in the page
  [page.data, page.figures] = await Promise.all([data ?? packedIn("data"), figures ?? packedIn("figures"), plotlyIsThere]);
  root.dataset.scripted = "";
  for (const box of switches()) box.checked = page.state.shows[box.dataset.shows] ?? box.checked;
  for (const plot of page.drawn) { // those of contents that are gone
    if (plot.isConnected && page.figures[plot.dataset.figure]) continue;
    Plotly.purge(plot);
    page.drawn.delete(plot);
  }
  if (page.data.trials) page.parts.forEach((part) => part.start && part.start());
  plots().forEach((plot) => (page.drawn.has(plot) ? draw(plot) : seen.observe(plot)));
};
window.addEventListener("results", ({ detail }) => page.start(detail)); // of a page that is served

function keepingFocus(container, fill) { // on the button in the same place, where contents are made again
  const buttons = () => [...container.querySelectorAll("button")];
  const place = buttons().indexOf(document.activeElement);
  fill();
  if (place >= 0) buttons()[place]?.focus({ preventScroll: true });
}
