// Puts it together: what is chosen, the theme, printing, redrawing.

function chooseStory(index) {
  if (!D.stories[index]?.detail) return;
  S.story = index;
  S.part = detail().main;
  S.made = 0;
  const d = detail();
  $("sentences").replaceChildren(...d.answer.map((line) => make("li", {}, ...rich(line))));
  $("facts").replaceChildren(...d.facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, make("bdi", {}, value))]));
  $("quality").replaceChildren(...d.quality.map((q) => make("li", {}, make("span", { class: "h" }, icon(q.v), q.h), make("span", { class: "t" }, q.t), q.s)));
  $("cmd").hidden = !d.command;
  $("cmd").querySelector("code").textContent = d.command;
  $("more").hidden = d.commands.length < 2;
  $("more").textContent = `and ${d.commands.length - 1} more`;
  for (const slot of document.querySelectorAll("[data-slot]")) slot.replaceChildren(...d.tables.filter((t) => t.name === slot.dataset.slot).map(grid));
  for (const box of document.querySelectorAll("[data-said]")) box.replaceChildren(...(d[box.dataset.said] || []).map((line) => make("p", {}, ...rich(line))));
  if ($("causes")) {
    $("causes").replaceChildren(...d.causes.map((c) => make("div", {}, make("h4", {}, c.h), make("p", {}, make("span", { class: "big" }, c.t), c.s))));
    $("causesblock").hidden = !d.causes.length;
  }
  listRuns();
  choosePart();
  say(`Run ${story().label}`);
}

function choosePart() {
  S.zoom = {};
  S.request = null;
  S.group = null;
  if (requests()) S.request = atShare(0.5);
  pickControls();
  tailControls();
  loadControls();
  laneControls();
  madeControls();
  describe();
  repaintAll();
  reachTables();
}

// A table that is wider than the page can be scrolled by key, too.
function reachTables() {
  for (const box of document.querySelectorAll(".tablebox")) {
    const wider = box.scrollWidth > box.clientWidth + 1;
    for (const [name, value] of [["tabindex", "0"], ["role", "region"], ["aria-label", `${box.querySelector("caption")?.textContent || "Table"}, goes on to the right`]])
      if (wider) box.setAttribute(name, value);
      else box.removeAttribute(name);
  }
}

function themes() {
  const button = $("theme"), dark = matchMedia("(prefers-color-scheme: dark)"), names = ["auto", "dark", "light"];
  let now = 0;
  const apply = () => {
    document.documentElement.dataset.theme = names[now] === "auto" ? (dark.matches ? "dark" : "light") : names[now];
    button.textContent = `Theme: ${names[now]}`;
  };
  button.hidden = false;
  button.addEventListener("click", () => { now = (now + 1) % 3; apply(); });
  dark.addEventListener("change", apply);
  apply();
}

function copying() {
  const button = $("copy");
  button.hidden = false;
  button.addEventListener("click", async () => {
    const code = $("cmd").querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
      say("Command copied");
    } catch {
      getSelection().selectAllChildren(code);
      say("Command selected");
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

// Paper: light colours, own widths, provenance open; afterwards all as it was.
function printed() {
  let before = null;
  addEventListener("beforeprint", () => {
    if (before) return;
    before = { theme: document.documentElement.dataset.theme, closed: [...document.querySelectorAll("details.prov:not([open]), details.glossary:not([open])")] };
    document.documentElement.dataset.theme = "light";
    before.closed.forEach((d) => { d.open = true; });
    printing = true;
    repaintAll();
  });
  addEventListener("afterprint", () => {
    if (!before) return;
    document.documentElement.dataset.theme = before.theme;
    before.closed.forEach((d) => { d.open = false; });
    before = null;
    printing = false;
    repaintAll();
  });
}

function start() {
  document.querySelectorAll("main > section h2 .num").forEach((n, i) => { n.textContent = i + 1; });
  themes();
  copying();
  printed();
  buildFilters();
  wireOverview();
  sideControls();
  armControls();
  chart("bar", paintBar);
  chart("strip", paintStrip, { role: "slider", keys: stripKeys });
  chart("timeline", paintTimeline);
  chart("roof", paintRoof);
  chart("dots", paintDots, { zoom: "tail" });
  chart("curve", paintCurve, { zoom: "tail" });
  chart("loads", paintLoads);
  chart("made", paintMade);
  chart("even", paintEven, { printWidth: 332 });
  chart("bars", paintBars);
  chart("arms", paintArms);
  chart("lane", paintLane, { zoom: "lane" });
  tokenControls();
  buildPanels();
  buildCalculator();
  const first = D.stories.findIndex((s) => s.detail);
  if (first >= 0) chooseStory(first);
  document.addEventListener("toggle", reachTables, true);
  document.addEventListener("click", (event) => {
    const wanted = event.target.closest("[data-pick]")?.dataset.pick, r = requests();
    if (!wanted || !r) return;
    const found = r.id.map((id, i) => i).filter((i) => r.id[i] === wanted && r.ms[i] != null).sort((a, b) => r.ms[b] - r.ms[a]);
    if (found.length) { choose(found[0]); $("requestblock").scrollIntoView({ block: "start" }); }
  });
  let waiting = 0, width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width || printing) return;
    width = innerWidth;
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => { repaintAll(); reachTables(); });
  });
  document.documentElement.dataset.ready = "yes";
}

start();
