"use strict";
// The table of all trials with filters, sorting and pages, and the same rows as CSV.

const PAGE = 50;
const FILTERS = ["filter-text", "filter-status", "filter-accuracy", "filter-params", "filter-flops"];
const table = { sort: "accuracy", falls: true, page: 0, values: {}, boxes: {} };
page.table = table;

function columnsOf() {
  return [
    { name: "number", title: "trial" },
    { name: "arch_id", title: "architecture", text: true },
    { name: "status", title: "status", text: true },
    { name: "epochs", title: "epochs" },
    { name: "accuracy", title: inFp32(page.data.score), show: (value) => percent(value) },
    ...(page.data.front_score === page.data.score ? [] : [{ name: "int8_mean", title: page.data.front_score, show: (value) => percent(value) }]),
    ...page.data.int8.map((runtime) => ({ name: `int8_${runtime}`, title: `these weights in int8, ${runtime}`, show: (value) => percent(value) })),
    { name: "test", title: "test", show: (value) => percent(value) },
    { name: "params", title: "params", show: short },
    { name: "flops", title: "FLOPs", show: short },
    ...(page.data.costs.includes("latency_ms") ? [
      { name: "latency_ms", title: "ms, predicted", show: (value) => value.toPrecision(3) },
      { name: "measured_ms", title: "ms, measured", show: (value) => value.toPrecision(3) },
    ] : []),
    ...[["throughput", "images a second"], ["peak_memory_mb", "MB of memory"], ["model_mb", "MB of parameters"]]
      .filter(([name]) => page.data.costs.includes(name))
      .map(([name, title]) => ({ name, title, show: (value) => value.toPrecision(3) })),
    { name: "seconds", title: "seconds", show: (value) => value.toFixed(0) },
  ];
}
const choiceColumns = () => page.data.choices.names.map((name, index) => ({ name, title: page.data.choices.labels[index], choice: index }));
const allColumns = () => [...columnsOf(), ...choiceColumns()];
function valueOf(trial, column) {
  if (column.choice !== undefined) return trial.choices[column.choice];
  if (column.name === "int8_mean") return trial.further?.mean;
  return column.name.startsWith("int8_") ? trial.int8?.[column.name.slice("int8_".length)]?.int8 : trial[column.name];
}
const shownColumns = () => (table.boxes["show-choices"] ? allColumns() : columnsOf());

function limitOf(id) { // reads 4.5G, 20M, 16k or a plain number; any other text means no limit
  const text = (table.values[id] ?? "").trim();
  const match = /^(\d+(?:\.\d*)?|\.\d+)\s*([kMG]?)$/.exec(text);
  byId(id).setAttribute("aria-invalid", String(match === null && text !== ""));
  return match === null ? null : Number(match[1]) * { "": 1, k: 1e3, M: 1e6, G: 1e9 }[match[2]];
}

function filtered() {
  const words = (table.values["filter-text"] ?? "").trim().toLowerCase(), status = table.values["filter-status"];
  const least = limitOf("filter-accuracy"), mostParams = limitOf("filter-params"), mostFlops = limitOf("filter-flops");
  const column = allColumns().find((each) => each.name === table.sort);
  return page.data.trials
    .filter((trial) => (!words || `${trial.number} ${trial.arch_id} ${trial.tags.join(" ")} ${trial.reason || ""}`.toLowerCase().includes(words))
      && (!status || trial.status === status) && (!table.boxes["filter-front"] || trial.front)
      && (least === null || (trial.accuracy !== null && 100 * trial.accuracy >= least))
      && (mostParams === null || trial.params <= mostParams) && (mostFlops === null || trial.flops <= mostFlops))
    .sort((one, other) => {
      const a = valueOf(one, column), b = valueOf(other, column);
      if (!isKnown(a) || !isKnown(b)) return !isKnown(a) - !isKnown(b); // trials without a value come last
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      return (table.falls ? -order : order) || one.number - other.number;
    });
}

function heading(column) {
  const isSorted = column.name === table.sort;
  return element("th", { scope: "col", class: column.text ? "text" : null, "aria-sort": isSorted ? (table.falls ? "descending" : "ascending") : "none" },
    element("button", { type: "button", "data-sorts": column.name }, column.title + (isSorted ? (table.falls ? " ↓" : " ↑") : "")));
}

function cell(trial, column) {
  const value = valueOf(trial, column);
  if (column.name !== "arch_id") {
    return element("td", { class: column.text ? "text" : null }, !isKnown(value) ? "–" : column.show ? column.show(value) : String(value));
  }
  return element("td", { class: "text" },
    element("button", { type: "button", class: "id", "data-select": trial.number, "aria-label": `show trial ${trial.number}` }, trial.arch_id),
    trial.tags.length ? ` ${trial.tags.join(", ")}` : "");
}

page.fillTable = () => {
  const found = filtered(), shown = shownColumns();
  const numPages = Math.max(Math.ceil(found.length / PAGE), 1);
  table.page = Math.min(table.page, numPages - 1);
  const focused = document.activeElement?.dataset?.sorts;
  const row = document.activeElement?.closest("#rows tr")?.dataset.number;
  byId("heads").replaceChildren(...shown.map(heading));
  if (focused) document.querySelector(`[data-sorts="${CSS.escape(focused)}"]`)?.focus();
  byId("rows").replaceChildren(...found.slice(table.page * PAGE, (table.page + 1) * PAGE).map((trial) =>
    element("tr", { "data-number": trial.number, "data-picked": trial.number === page.picked ? "" : null,
      "aria-selected": String(trial.number === page.state.selected) }, shown.map((column) => cell(trial, column)))));
  if (row) byId("rows").querySelector(`[data-number="${row}"] button`)?.focus({ preventScroll: true });
  byId("found").textContent = `${found.length} of ${page.data.trials.length} trials, page ${table.page + 1} of ${numPages}`;
  byId("back").disabled = table.page === 0;
  byId("on").disabled = table.page === numPages - 1;
};

page.showRow = (number) => { // shows the row of a trial, and clears the filters if they hide it
  if (!filtered().some((trial) => trial.number === number)) {
    table.values = {};
    table.boxes["filter-front"] = false;
    fillFilters();
  }
  table.page = Math.floor(filtered().findIndex((trial) => trial.number === number) / PAGE);
  page.fillTable();
  const row = byId("rows").querySelector(`[data-number="${number}"]`);
  row.scrollIntoView({ block: "center" });
  row.querySelector("button").focus({ preventScroll: true });
};

function csvCell(value) {
  if (!isKnown(value)) return "";
  let text = String(value);
  if (typeof value !== "number" && /^[=+\-@\t\r]/.test(text)) text = "'" + text; // no formula in a spreadsheet
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

on("click", "#download", () => {
  const all = allColumns();
  const lines = [all.map((column) => csvCell(column.name)), ...filtered().map((trial) => all.map((column) => csvCell(valueOf(trial, column))))];
  const link = element("a", { href: URL.createObjectURL(new Blob([lines.map((line) => line.join(",")).join("\n") + "\n"], { type: "text/csv" })),
    download: `${page.data.name}.csv` });
  link.click();
  URL.revokeObjectURL(link.href);
});
on("click", "[data-sorts]", (button) => {
  const { sorts } = button.dataset;
  table.falls = table.sort === sorts ? !table.falls : !allColumns().find((column) => column.name === sorts).text;
  table.sort = sorts;
  page.fillTable();
});
on("input", FILTERS.map((id) => `#${id}`).join(), (input) => {
  table.values[input.id] = input.value;
  table.page = 0;
  page.fillTable();
});
on("change", "#show-choices, #filter-front", (box) => {
  table.boxes[box.id] = box.checked;
  if (box.id === "filter-front") table.page = 0;
  page.fillTable();
});
on("click", "#back", () => { table.page -= 1; page.fillTable(); });
on("click", "#on", () => { table.page += 1; page.fillTable(); });

function fillFilters() { // restores the filters after contents were replaced
  for (const id of FILTERS) if (byId(id).value !== (table.values[id] ?? "")) byId(id).value = table.values[id] ?? "";
  for (const id of ["show-choices", "filter-front"]) if (byId(id)) byId(id).checked = Boolean(table.boxes[id]);
}

page.parts.push({
  start() {
    if (!allColumns().some((column) => column.name === table.sort)) table.sort = "accuracy";
    fillFilters();
    page.fillTable();
  },
});
