"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const body = document.body;

  // Colours: as the system, light, dark. Remembered where the browser lets a file remember.
  const themes = ["", "light", "dark"];
  const names = { "": "as the system", light: "light", dark: "dark" };
  const store = { get: () => { try { return localStorage.getItem("auditor-theme"); } catch { return null; } },
                  set: (value) => { try { localStorage.setItem("auditor-theme", value); } catch { /* not allowed here */ } } };
  const button = document.getElementById("theme");
  const paint = (theme) => {
    if (theme) body.dataset.theme = theme; else delete body.dataset.theme;
    button.title = `Colours: ${names[theme]}`;
    button.setAttribute("aria-label", button.title);
  };
  let theme = themes.includes(store.get()) ? store.get() : "";
  paint(theme);
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    paint(theme);
    store.set(theme);
  });

  // Findings: filtered by severity and text.
  const form = document.querySelector(".filter");
  const cards = all("#findings .card");
  if (form) {
    form.hidden = false;
    const search = form.querySelector("input");
    const apply = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const levels = new Set(all("button[aria-pressed=true]", form).map((b) => b.dataset.level));
      let shown = 0;
      for (const card of cards) {
        const text = card.textContent.toLowerCase();
        card.hidden = !(levels.has(card.dataset.severity) && words.every((word) => text.includes(word)));
        shown += card.hidden ? 0 : 1;
      }
      form.querySelector("output").textContent = shown === cards.length ? "" : `${shown} of ${cards.length}`;
    };
    form.addEventListener("submit", (event) => event.preventDefault());
    search.addEventListener("input", apply);
    for (const toggle of all("button", form)) {
      toggle.addEventListener("click", () => {
        toggle.setAttribute("aria-pressed", String(toggle.getAttribute("aria-pressed") !== "true"));
        apply();
      });
    }
  }

  // Keys.
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
    const visible = cards.filter((card) => !card.hidden);
    const at = visible.indexOf(document.activeElement.closest?.("#findings .card") ?? null);
    if (event.key === "/" && form) { event.preventDefault(); form.querySelector("input").focus(); }
    const next = event.key === "j" ? visible[Math.min(at + 1, visible.length - 1)] : event.key === "k" ? visible[Math.max(at - 1, 0)] : null;
    if (next) { next.focus({ preventScroll: true }); next.scrollIntoView({ block: "start" }); }
  });

  // Trees: a row is shown if all rows above it in the tree are unfolded.
  const refresh = (table) => {
    let hidden = Infinity;
    for (const row of all("tbody tr", table)) {
      const depth = Number(row.dataset.depth);
      if (depth <= hidden) hidden = Infinity;
      row.hidden = depth > hidden;
      const twist = row.querySelector("button.twist");
      if (!row.hidden && twist && twist.getAttribute("aria-expanded") === "false") hidden = depth;
    }
  };
  const reveal = (row) => {
    let depth = Number(row.dataset.depth);
    for (let above = row.previousElementSibling; above && depth > 0; above = above.previousElementSibling) {
      if (Number(above.dataset.depth) < depth) {
        depth = Number(above.dataset.depth);
        above.querySelector("button.twist")?.setAttribute("aria-expanded", "true");
      }
    }
  };
  for (const table of all("table.layers")) {
    const twists = all("button.twist", table);
    const set = (open) => { for (const twist of twists) twist.setAttribute("aria-expanded", String(open)); };
    if (table.classList.contains("folded")) {
      for (const twist of twists) if (Number(twist.closest("tr").dataset.depth) > 1) twist.setAttribute("aria-expanded", "false");
      for (const row of all("tr.found", table)) reveal(row);
    }
    for (const twist of twists) twist.addEventListener("click", () => {
      twist.setAttribute("aria-expanded", String(twist.getAttribute("aria-expanded") !== "true"));
      refresh(table);
    });
    const tools = table.closest("details").querySelector(".tools");
    tools.hidden = twists.length < 2;
    tools.querySelector(".unfold").addEventListener("click", () => { set(true); refresh(table); });
    tools.querySelector(".fold").addEventListener("click", () => { set(false); refresh(table); });
    refresh(table);
  }

  // A link into something folded unfolds it.
  const open = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
    if (target.tagName === "TR") { reveal(target); refresh(target.closest("table")); }
    target.hidden = false;
    target.scrollIntoView({ block: "start" });
  };
  addEventListener("hashchange", open);
  open();

  // Plots: a cursor that follows the pointer and the arrow keys.
  for (const figure of all("figure.plot")) {
    const area = figure.querySelector(".area"), cursor = figure.querySelector(".cursor"), readout = figure.querySelector(".readout");
    const columns = all(".columns li", figure).map((item) => ({ x: Number(item.dataset.x), html: item.innerHTML }));
    let at = -1;
    const show = (index) => {
      at = Math.max(0, Math.min(columns.length - 1, index));
      cursor.setAttribute("x1", `${columns[at].x}%`);
      cursor.setAttribute("x2", `${columns[at].x}%`);
      cursor.removeAttribute("hidden");
      readout.innerHTML = columns[at].html;
    };
    area.addEventListener("pointermove", (event) => {
      const box = area.getBoundingClientRect(), x = (100 * (event.clientX - box.left)) / box.width;
      const gaps = columns.map((column) => Math.abs(column.x - x));
      show(gaps.indexOf(Math.min(...gaps)));
    });
    area.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step || event.key === "Home" || event.key === "End") {
        event.preventDefault();
        show(event.key === "Home" ? 0 : event.key === "End" ? columns.length - 1 : at + step);
      }
    });
  }

  // What does not scroll is no stop for the tab key.
  const stops = () => {
    for (const part of all(".code, .scroll")) {
      if (part.scrollWidth > part.clientWidth || part.scrollHeight > part.clientHeight) part.tabIndex = 0; else part.removeAttribute("tabindex");
    }
  };
  addEventListener("resize", stops);
  addEventListener("toggle", stops, true);
  stops();

  // The section being read is marked in the navigation.
  const links = new Map(all("nav a").map((link) => [link.getAttribute("href").slice(1), link]));
  const seen = new Set();
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) entry.isIntersecting ? seen.add(entry.target.id) : seen.delete(entry.target.id);
    const current = [...links.keys()].filter((id) => seen.has(id)).pop();
    for (const [id, link] of links) id === current ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
  }, { rootMargin: "-20% 0px -70% 0px" });
  for (const id of links.keys()) { const part = document.getElementById(id); if (part) watch.observe(part); }

  // On paper everything is unfolded.
  addEventListener("beforeprint", () => {
    for (const details of all("details")) details.open = true;
    for (const table of all("table.layers")) { for (const twist of all("button.twist", table)) twist.setAttribute("aria-expanded", "true"); refresh(table); }
  });
})();
