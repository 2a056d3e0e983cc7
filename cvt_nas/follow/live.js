"use strict";
(() => { // updates an open page without loading it again
  const byId = (id) => document.getElementById(id);
  const live = byId("live");

  // ---- changes in place ----------------------------------------------------------------------------------------

  // these stay unchanged: contents that page.js or plotly fills, and input of the reader
  const OWNED = "[data-figure], [data-owned], #arch, #rows, #heads, #found";
  const KEPT = new Set(["open", "style", "aria-invalid", "disabled", "checked", "value"]);

  function keyOf(node) {
    if (node.nodeType !== Node.ELEMENT_NODE) return `#${node.nodeType}`;
    const summary = node.tagName === "DETAILS" ? node.querySelector("summary").textContent : "";
    return `${node.tagName} ${node.id || node.dataset.figure || node.dataset.shows || summary}`;
  }

  function mergeAttributes(old, fresh) {
    for (const { name, value } of [...fresh.attributes]) {
      if (!KEPT.has(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    for (const { name } of [...old.attributes]) {
      if (!KEPT.has(name) && !fresh.hasAttribute(name)) old.removeAttribute(name);
    }
  }

  function merge(old, fresh) { // makes the children of `old` like those of `fresh`
    if (old.isEqualNode(fresh)) return;
    const left = [...old.childNodes];
    let place = old.firstChild;
    for (const child of [...fresh.childNodes]) {
      const key = keyOf(child);
      const index = left.findIndex((node) => keyOf(node) === key);
      if (index < 0) {
        old.insertBefore(child, place);
        continue;
      }
      const [known] = left.splice(index, 1);
      if (known === place) place = known.nextSibling;
      else old.insertBefore(known, place);
      if (known.nodeType !== Node.ELEMENT_NODE) {
        if (known.data !== child.data) known.data = child.data;
      } else if (!known.matches(OWNED)) {
        mergeAttributes(known, child);
        merge(known, child);
      }
    }
    left.forEach((node) => node.remove());
  }

  function parsed(html) {
    const template = document.createElement("template"); // scripts and images in it are not run or loaded
    template.innerHTML = html;
    const whole = document.createElement("div");
    whole.append(template.content);
    return whole;
  }

  function inPlace(change) { // keeps the contents that the reader looks at in their place on the screen
    const shown = [...document.querySelectorAll("h2, h3, figure, summary, table")].find((node) =>
      node.getBoundingClientRect().bottom > 0);
    const before = window.scrollY > 0 && shown ? shown.getBoundingClientRect().top : null;
    const settle = () => {
      if (before === null || !shown.isConnected) return;
      window.scrollBy({ top: shown.getBoundingClientRect().top - before, behavior: "instant" });
    };
    change();
    settle();
    requestAnimationFrame(settle); // again after contents that are filled a moment later
  }

  // ---- what the server sends -----------------------------------------------------------------------------------

  function showFragments(fragments) {
    inPlace(() => {
      for (const [id, html] of Object.entries(fragments)) merge(byId(id), parsed(html));
    });
  }

  function showPage({ head, body, data, figures, told }) {
    inPlace(() => {
      const header = document.querySelector("header");
      const bar = header.querySelector(".bar").cloneNode(true);
      const fresh = parsed(head);
      fresh.prepend(bar, "\n");
      merge(header, fresh);
      merge(byId("main"), parsed(`\n${body}\n`));
      window.dispatchEvent(new CustomEvent("results", { detail: { data, figures } }));
    });
    byId("live-told").textContent = told;
  }

  let unshown = null; // a message that waits until page.js can draw, since page.js unpacks plotly first
  function take(message) {
    unshown = document.documentElement.dataset.scripted === undefined ? message : null;
    if (unshown === null) showPage(message);
  }
  new MutationObserver(() => { if (unshown) take(unshown); }).observe(document.documentElement, { attributes: true });

  const events = new EventSource(`events?seen=${live.dataset.version}`);
  events.addEventListener("live", (event) => showFragments(JSON.parse(event.data)));
  events.addEventListener("page", (event) => {
    take(JSON.parse(event.data));
    live.dataset.version = event.lastEventId;
  });
  events.addEventListener("end", () => {
    events.close();
    byId("live-connection").textContent = "The server has ended. The page shows what it sent last.";
  });
  events.addEventListener("open", () => { byId("live-connection").textContent = ""; });
  events.addEventListener("error", () => {
    byId("live-connection").textContent = events.readyState === EventSource.CLOSED
      ? "The server has ended. The page shows what it sent last."
      : "The connection is lost. The page tries again.";
  });

  // ---- what the reader asks ------------------------------------------------------------------------------------

  for (const form of live.querySelectorAll("form")) {
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const said = form.querySelector("output");
      said.textContent = "";
      try {
        const answer = await fetch("ask", {
          method: "POST", body: new URLSearchParams(new FormData(form)), headers: { Accept: "application/json" },
        });
        said.className = answer.ok ? "" : "refused";
        said.textContent = (await answer.json()).said;
      } catch {
        said.className = "refused";
        said.textContent = "The server cannot be reached.";
      }
    });
  }

  const fill = byId("live-fill");
  if (fill) {
    fill.hidden = false;
    fill.addEventListener("click", async () => {
      const shown = document.querySelector("#arch .id");
      const said = fill.closest("form").querySelector("output");
      said.textContent = "";
      if (!shown) {
        said.textContent = "No trial is selected.";
        return;
      }
      const answer = await fetch(`choices/${encodeURIComponent(shown.textContent)}`);
      if (answer.ok) byId("live-arch").value = await answer.text();
      else said.textContent = (await answer.json()).said;
    });
  }
})();
