"use strict";
(async () => {
  const read = async (id) => JSON.parse(await unpacked(document.getElementById(id).textContent));
  const [data, figures] = await Promise.all([read("data"), read("figures"), plotlyIsThere]);
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined) made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  // ---- light and dark ------------------------------------------------------------------------------------------

  const wantsDark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : wantsDark.matches);
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  function themed(layout) {
    const small = window.innerWidth < 640;
    const found = { ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" };
    found.uirevision = "kept"; // new results bring back nothing that the legend hides
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
    return found;
  }

  const drawn = new Set();
  function draw(plot) {
    const { data: traces, layout } = figures[plot.dataset.figure];
    Plotly.newPlot(plot, traces.map((trace) => ({ ...trace })), themed(layout), {
      responsive: true, displaylogo: false, // the last would upload the plot
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "sendChartToCloud"],
      displayModeBar: layout.xaxis !== undefined && window.innerWidth >= 640 ? "hover" : false,
    });
    drawn.add(plot);
    if (plot.dataset.selects !== undefined) {
      plot.on("plotly_click", (event) => {
        const number = event.points.map((point) => point.customdata).find((value) => value !== undefined && value !== null);
        if (number !== undefined) select(number);
      });
      mark(plot);
      switches.forEach((box) => show(plot, box));
    }
    noteRanges(plot);
  }

  const axesOf = (layout) => Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));
  const rangeOf = ({ autorange, range }) => (autorange === true ? "all" : JSON.stringify(range));
  const ranges = new Map(); // of each plot's axes, as the page has set them; others are a reader's zoom
  const noteRanges = (plot) => ranges.set(plot, new Map(axesOf(plot.layout).map((name) => [name, rangeOf(plot.layout[name])])));

  const switches = [...document.querySelectorAll("input[data-shows]")]; // of traces, named by their meta
  function show(plot, box) {
    const index = plot.data.findIndex((trace) => trace.meta === box.dataset.shows);
    if (index < 0) return;
    Plotly.restyle(plot, { visible: box.checked }, [index]);
    if (box.dataset.shows !== "stopped") return;
    const { xaxis, yaxis } = figures[plot.dataset.figure].layout; // opened on the complete trials
    Plotly.relayout(plot, box.checked ? { "xaxis.autorange": true, "yaxis.autorange": true }
      : { "xaxis.range": [...xaxis.range], "yaxis.range": [...yaxis.range] });
    noteRanges(plot);
  }
  switches.forEach((box) => box.addEventListener("change", () => {
    plots.filter((plot) => drawn.has(plot) && plot.dataset.selects !== undefined).forEach((plot) => show(plot, box));
  }));

  const plots = [...document.querySelectorAll("[data-figure]")];
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting && !drawn.has(entry.target)) draw(entry.target);
    }
  }, { rootMargin: "600px" });

  function restyle() {
    for (const plot of drawn) {
      Plotly.relayout(plot, themed(figures[plot.dataset.figure].layout));
      noteRanges(plot);
      if (plot.dataset.selects !== undefined) mark(plot);
    }
  }

  byId("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    restyle();
  });
  wantsDark.addEventListener("change", restyle);
  let atScreen = null; // the theme to go back to, while it is printed
  window.addEventListener("beforeprint", () => {
    atScreen = atScreen ?? { theme: root.dataset.theme };
    root.dataset.theme = "light";
    plots.forEach((plot) => drawn.has(plot) || draw(plot));
    restyle();
  });
  window.addEventListener("afterprint", () => {
    if (atScreen === null) return;
    if (atScreen.theme) root.dataset.theme = atScreen.theme;
    else delete root.dataset.theme;
    atScreen = null;
    restyle();
  });

  plots.forEach((plot) => seen.observe(plot));
  if (!data.trials) return; // a page of several runs
  window.addEventListener("results", ({ detail }) => showResults(detail)); // of a page that is served

  // ---- one architecture ----------------------------------------------------------------------------------------

  const stagesOf = (trial) => trial.stages.map(([rows, columns, width, kernel, stride, token, params, flops, blocks]) =>
    ({ rows, columns, side: Math.sqrt(rows * columns), width, kernel, stride, token, params, flops, blocks }));
  const byNumber = new Map(data.trials.map((trial) => [trial.number, trial]));
  let selected = null;

  const short = (value) => {
    for (const [factor, suffix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      if (value >= factor) return Number((value / factor).toPrecision(3)) + suffix;
    }
    return String(value);
  };
  const percent = (value, digits = 2) => (value === null || value === undefined ? "–" : (100 * value).toFixed(digits) + " %");

  function mark(plot) { // by an empty note, which is drawn without drawing the points again
    const trial = byNumber.get(selected);
    const frame = !trial || trial.accuracy === null ? [] : [{
      x: Math.log10(trial[plot.dataset.selects]), y: trial.accuracy, text: "", showarrow: false, width: 16, height: 16,
      borderwidth: 3, borderpad: 0, bordercolor: colour("--text"),
    }];
    Plotly.relayout(plot, { annotations: frame });
  }

  const SVG = "http://www.w3.org/2000/svg";
  function picture(stage, widest, largest) {
    const svg = document.createElementNS(SVG, "svg");
    const blocks = stage.blocks.flatMap((block) => Array(block[0]).fill(block));
    const room = 220;
    const gap = room / Math.max(blocks.length, 4);
    svg.setAttribute("viewBox", `0 0 ${room} 84`);
    svg.setAttribute("preserveAspectRatio", "xMinYMax meet");
    svg.setAttribute("aria-hidden", "true");
    blocks.forEach((block, index) => {
      const rect = document.createElementNS(SVG, "rect");
      const height = 12 + (68 * Math.log2(stage.side + 1)) / Math.log2(largest + 1);
      const width = Math.max(Math.min(gap - 2, (gap - 2) * (0.3 + (0.7 * stage.width) / widest)), 1.5);
      rect.setAttribute("x", index * gap);
      rect.setAttribute("y", 84 - height);
      rect.setAttribute("width", width);
      rect.setAttribute("height", height);
      rect.setAttribute("rx", 2);
      rect.setAttribute("opacity", 1 / block[4] ** 0.6); // the paler, the greater the stride of its keys and values
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
    const blocks = stage.blocks.flatMap((block) => Array(block[0]).fill(block));
    const choices = ["heads", "MLP ratio", "kernel", "kv stride", "projection"].map((name, place) => {
      const values = blocks.map((block) => block[place + 1]);
      const isLinear = blocks.every((block) => block[5] === "linear"); // which has neither kernel nor stride
      if (isLinear && (name === "kernel" || name === "kv stride")) return null;
      return element("li", {}, `${name} ${new Set(values).size === 1 ? values[0] : values.join(" ")}`);
    });
    return element("li", {},
      element("strong", {}, `Stage ${index}`),
      element("div", { class: "muted" }, `${stage.rows} × ${stage.columns} tokens${stage.token ? " + class token" : ""}, width ` +
        `${stage.width}, depth ${blocks.length}; embedding ${stage.kernel} × ${stage.kernel}, stride ${stage.stride}`),
      picture(stage, Math.max(...stagesOf(trial).map((other) => other.width)), Math.max(...stagesOf(trial).map((other) => other.side))),
      element("ul", {}, ...choices.filter((choice) => choice !== null)),
      share("params", stage.params, trial.params),
      share("FLOPs", stage.flops, trial.flops));
  }

  function curve(trial) {
    const [epochs, accuracies] = trial.curve;
    if (!epochs || epochs.length < 2) return null;
    const told = epochs.map((epoch, index) => `${epoch}: ${percent(accuracies[index])}`).join(", ");
    const plot = element("div", { class: "plot small", role: "img", "aria-label": `${data.score} after each epoch: ${told}` });
    const rungs = data.rungs.map((epoch) => ({ type: "line", x0: epoch, x1: epoch, yref: "paper", y0: 0, y1: 1,
      line: { color: colour("--mark"), width: 1, dash: "dash" } }));
    const layout = { margin: { t: 10, b: 40 }, shapes: rungs, xaxis: { title: { text: "Epochs" }, rangemode: "tozero" },
      yaxis: { title: { text: data.score }, tickformat: ".1%" } };
    requestAnimationFrame(() => Plotly.newPlot(plot,
      [{ x: epochs, y: accuracies, mode: "lines+markers", line: { color: colour("--accent") } }],
      themed(layout), { responsive: true, displayModeBar: false }));
    return plot;
  }

  function mistakesOf(trial) {
    if (!trial.mistakes || !trial.mistakes.length) return [];
    return [
      element("h4", {}, "What it gets wrong on the test split, the surest answers first"),
      element("ul", { class: "shown" }, ...trial.mistakes.map((shown) => element("li", {},
        element("img", { src: shown.image, alt: "" }),
        element("span", {}, `${shown.label}, taken for ${shown.answer} (${shown.probability})`)))),
    ];
  }

  function quoted(word) { // as Python's shlex.quote
    return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`;
  }

  function command(text) {
    const button = element("button", { type: "button", onclick: () => {
      const done = () => { button.textContent = "copied"; };
      if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, () => {});
    } }, "copy");
    return element("div", { class: "command" }, element("code", {}, text), button);
  }

  function select(number, scrolls = false) {
    const trial = byNumber.get(number);
    if (!trial) return;
    selected = number;
    const tags = trial.tags.length ? ` (${trial.tags.join(", ")})` : "";
    const figuresOf = [
      `${data.score} ${percent(trial.accuracy)}` + (trial.sd === null ? "" : ` ± ${percent(trial.sd)}`),
      trial.test === null ? null : `test ${percent(trial.test)}`,
      `${trial.params.toLocaleString("en")} params`, `${trial.flops.toLocaleString("en")} FLOPs`,
      trial.latency_ms === null ? null : `${trial.latency_ms.toPrecision(3)} ms predicted`
        + (trial.measured_ms === null ? "" : `, ${trial.measured_ms.toPrecision(3)} measured`),
      `${trial.status} after ${trial.epochs} epochs`, `seed ${trial.seed}`, trial.reason,
    ].filter((text) => text !== null);
    byId("arch").replaceChildren(
      element("h3", {}, "Trial ", String(trial.number), ": ", element("span", { class: "id" }, trial.arch_id), tags),
      element("p", {}, figuresOf.join("; ")),
      element("ol", { class: "stages" }, ...stagesOf(trial).map((stage, index) => stageCard(trial, stage, index))),
      ...[curve(trial)].filter((plot) => plot !== null),
      ...mistakesOf(trial),
      element("p", {}, trial.status === "complete" ? "As a model of its own:" : "It has no weights; to train it in full:"),
      command(trial.status === "complete" ? `cvt-nas export ${quoted(data.place)} --pick ${trial.arch_id} --to my_model`
        : `cvt-nas train ${quoted(`${data.place}:${trial.arch_id}`)} --out my_training`),
    );
    plots.filter((plot) => plot.dataset.selects !== undefined && drawn.has(plot)).forEach(mark);
    for (const row of byId("rows").children) row.setAttribute("aria-selected", String(Number(row.dataset.number) === number));
    history.replaceState(null, "", `#trial=${number}`);
    if (scrolls) byId("arch").scrollIntoView({ block: "nearest" });
  }

  // ---- the table -----------------------------------------------------------------------------------------------

  const PAGE = 50;
  const columns = [
    { name: "number", title: "trial" },
    { name: "arch_id", title: "architecture", text: true },
    { name: "status", title: "status", text: true },
    { name: "epochs", title: "epochs" },
    { name: "accuracy", title: data.score, show: (value) => percent(value) },
    { name: "test", title: "test", show: (value) => percent(value) },
    { name: "params", title: "params", show: short },
    { name: "flops", title: "FLOPs", show: short },
    ...(data.costs.includes("latency_ms") ? [
      { name: "latency_ms", title: "ms, predicted", show: (value) => value.toPrecision(3) },
      { name: "measured_ms", title: "ms, measured", show: (value) => value.toPrecision(3) },
    ] : []),
    { name: "seconds", title: "seconds", show: (value) => value.toFixed(0) },
  ];
  const choiceColumns = data.choices.names.map((name, index) => ({ name, title: data.choices.labels[index], choice: index }));
  const valueOf = (trial, column) => (column.choice === undefined ? trial[column.name] : trial.choices[column.choice]);
  const state = { sort: "accuracy", falls: true, page: 0 };
  const filters = ["filter-text", "filter-status", "filter-front", "filter-accuracy", "filter-params", "filter-flops"].map(byId);
  let showsChoices = byId("show-choices");
  const shownColumns = () => (showsChoices && showsChoices.checked ? [...columns, ...choiceColumns] : columns);

  function filtered() {
    const [text, status, front, accuracy, params, flops] = filters;
    const words = text.value.trim().toLowerCase();
    const limit = (input) => { // 4.5G, 20M, 16k or a plain number; anything else is no limit
      const match = /^(\d+(?:\.\d*)?|\.\d+)\s*([kMG]?)$/.exec(input.value.trim());
      input.setAttribute("aria-invalid", String(match === null && input.value.trim() !== ""));
      return match === null ? null : Number(match[1]) * { "": 1, k: 1e3, M: 1e6, G: 1e9 }[match[2]];
    };
    const least = limit(accuracy), mostParams = limit(params), mostFlops = limit(flops);
    const column = [...columns, ...choiceColumns].find((each) => each.name === state.sort);
    return data.trials
      .filter((trial) => (!words || `${trial.number} ${trial.arch_id} ${trial.tags.join(" ")} ${trial.reason || ""}`.toLowerCase().includes(words))
        && (!status.value || trial.status === status.value) && (!front.checked || trial.front)
        && (least === null || (trial.accuracy !== null && 100 * trial.accuracy >= least))
        && (mostParams === null || trial.params <= mostParams) && (mostFlops === null || trial.flops <= mostFlops))
      .sort((one, other) => {
        const a = valueOf(one, column), b = valueOf(other, column);
        if (a === null || b === null) return (a === null) - (b === null); // whatever lacks it comes last
        const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
        return (state.falls ? -order : order) || one.number - other.number;
      });
  }

  function fillTable() {
    const found = filtered(), shown = shownColumns();
    const numPages = Math.max(Math.ceil(found.length / PAGE), 1);
    state.page = Math.min(state.page, numPages - 1);
    byId("heads").replaceChildren(...shown.map((column) => {
      const isSorted = column.name === state.sort;
      return element("th", { scope: "col", class: column.text ? "text" : null, "aria-sort": isSorted ? (state.falls ? "descending" : "ascending") : "none" },
        element("button", { type: "button", onclick: () => {
          state.falls = isSorted ? !state.falls : !column.text;
          state.sort = column.name;
          fillTable();
        } }, column.title + (isSorted ? (state.falls ? " ↓" : " ↑") : "")));
    }));
    byId("rows").replaceChildren(...found.slice(state.page * PAGE, (state.page + 1) * PAGE).map((trial) => {
      const cells = shown.map((column) => {
        const value = valueOf(trial, column);
        if (column.name === "arch_id") {
          return element("td", { class: "text" }, element("button", { type: "button", class: "id",
            "aria-label": `show trial ${trial.number}`, onclick: () => select(trial.number, true) }, trial.arch_id),
            trial.tags.length ? ` ${trial.tags.join(", ")}` : "");
        }
        return element("td", { class: column.text ? "text" : null },
          value === null || value === undefined ? "–" : column.show ? column.show(value) : String(value));
      });
      return element("tr", { "data-number": trial.number, "aria-selected": String(trial.number === selected) }, ...cells);
    }));
    byId("found").textContent = `${found.length} of ${data.trials.length} trials, page ${state.page + 1} of ${numPages}`;
    byId("back").disabled = state.page === 0;
    byId("on").disabled = state.page === numPages - 1;
  }

  function csvCell(value) {
    if (value === null || value === undefined) return "";
    let text = String(value);
    if (typeof value !== "number" && /^[=+\-@\t\r]/.test(text)) text = "'" + text; // no formula for a spreadsheet
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  byId("download").addEventListener("click", () => {
    const all = [...columns, ...choiceColumns];
    const lines = [all.map((column) => csvCell(column.name)), ...filtered().map((trial) => all.map((column) => csvCell(valueOf(trial, column))))];
    const link = element("a", { href: URL.createObjectURL(new Blob([lines.map((line) => line.join(",")).join("\n") + "\n"], { type: "text/csv" })),
      download: `${data.name}.csv` });
    link.click();
    URL.revokeObjectURL(link.href);
  });
  filters.forEach((input) => input.addEventListener("input", () => { state.page = 0; fillTable(); }));
  if (showsChoices) showsChoices.addEventListener("change", fillTable);
  byId("back").addEventListener("click", () => { state.page -= 1; fillTable(); });
  byId("on").addEventListener("click", () => { state.page += 1; fillTable(); });
  fillTable();

  // ---- new results -----------------------------------------------------------------------------------------------

  function redraw(plot) { // keeps zoom and legend
    const { data: traces, layout } = figures[plot.dataset.figure];
    const shown = themed(layout);
    const boxOf = (trace) => (plot.dataset.selects === undefined ? undefined : switches.find((box) => box.dataset.shows === trace.meta));
    if (plot.dataset.selects !== undefined && switches.some((box) => box.dataset.shows === "stopped" && box.checked)) {
      for (const name of ["xaxis", "yaxis"]) shown[name] = { ...shown[name], autorange: true, range: undefined };
    }
    const zoomed = axesOf(shown).filter((name) => plot.layout[name] && rangeOf(plot.layout[name]) !== ranges.get(plot).get(name));
    const known = new Map(zoomed.map((name) => [name, ranges.get(plot).get(name)]));
    for (const name of zoomed) {
      const { autorange, range } = plot.layout[name];
      shown[name] = { ...shown[name], autorange, range: autorange === true ? undefined : [...range] };
    }
    Plotly.react(plot, traces.map((trace) => (boxOf(trace) ? { ...trace, visible: boxOf(trace).checked } : { ...trace })), shown);
    noteRanges(plot);
    known.forEach((range, name) => ranges.get(plot).set(name, range));
    if (plot.dataset.selects !== undefined) mark(plot);
  }

  function addNew(known, selector, begin) { // elements that were not there before
    const found = [...document.querySelectorAll(selector)];
    found.filter((node) => !known.includes(node)).forEach(begin);
    known.splice(0, known.length, ...found);
  }

  function showResults(fresh) {
    const before = JSON.stringify(byNumber.get(selected));
    for (const name of Object.keys(figures)) delete figures[name];
    Object.assign(figures, fresh.figures);
    Object.assign(data, fresh.data);
    byNumber.clear();
    data.trials.forEach((trial) => byNumber.set(trial.number, trial));
    choiceColumns.splice(0, choiceColumns.length, ...data.choices.names.map((name, index) =>
      ({ name, title: data.choices.labels[index], choice: index })));
    addNew(switches, "input[data-shows]", (box) => box.addEventListener("change", () =>
      plots.filter((plot) => drawn.has(plot) && plot.dataset.selects !== undefined).forEach((plot) => show(plot, box))));
    addNew(plots, "[data-figure]", (plot) => seen.observe(plot));
    for (const plot of [...drawn]) {
      if (plots.includes(plot) && figures[plot.dataset.figure]) redraw(plot);
      else drawn.delete(plot);
    }
    if (showsChoices !== byId("show-choices")) {
      showsChoices = byId("show-choices");
      if (showsChoices) showsChoices.addEventListener("change", fillTable);
    }
    const focused = document.activeElement;
    const row = focused.closest("#rows tr"), heads = [...byId("heads").querySelectorAll("button")].indexOf(focused);
    fillTable();
    if (row) document.querySelector(`#rows tr[data-number="${row.dataset.number}"] button`)?.focus({ preventScroll: true });
    if (heads >= 0) byId("heads").querySelectorAll("button")[heads].focus({ preventScroll: true });
    if (!byNumber.has(selected)) select(data.first);
    else if (JSON.stringify(byNumber.get(selected)) !== before) {
      const place = [...byId("arch").querySelectorAll("button")].indexOf(focused);
      select(selected);
      if (place >= 0) byId("arch").querySelectorAll("button")[place]?.focus({ preventScroll: true });
    }
  }

  const asked = /^#trial=(\d+)$/.exec(location.hash);
  select(asked && byNumber.has(Number(asked[1])) ? Number(asked[1]) : data.first);
  root.dataset.scripted = "";
})();
