// Runs side by side, interventions, and the filters that decide which runs are shown.

function buildFilters() {
  const box = $("choose");
  if (!box) return;
  box.hidden = false;
  const run = make("select", { id: "run", onchange: (event) => chooseStory(Number(event.target.value)) });
  box.append(make("label", {}, "Run", run));
  for (const key of ["model", "runtime", "device", "sweep"]) {
    const values = [...new Set(D.stories.flatMap((s) => (key === "sweep" ? s.sweeps : [s[key]])))].filter(Boolean).sort();
    if (values.length < 2) continue;
    const select = make("select", { "data-filter": key, onchange: (event) => { S.filter[key] = event.target.value; filtered(); } },
      make("option", { value: "" }, `all ${whole(values.length)}`), ...values.map((v) => make("option", { value: v }, v)));
    box.append(make("label", {}, key[0].toUpperCase() + key.slice(1), select));
  }
  if (D.stories.length > 8) box.append(make("label", {}, "Name contains", make("input", { type: "search", "data-filter": "text", oninput: (event) => { S.filter.text = event.target.value; filtered(); } })));
  box.append(make("span", { class: "count", id: "count" }));
}

function filtered() {
  const shown = visible();
  if (shown.length && !shown.some(([, i]) => i === S.story)) chooseStory(shown.find(([s]) => s.detail)?.[1] ?? shown[0][1]);
  S.shown = 24;
  listRuns();
  sideControls();
  for (const id of ["bars", "even"]) repaint(id);
  tokenControls();
  buildPanels();
  buildCalculator();
  say(`${count(shown.length, "run")} of ${D.stories.length} shown`);
}

function listRuns() {
  const shown = visible(), select = $("run");
  if (select) {
    select.replaceChildren(...shown.map(([s, i]) => make("option", { value: i, selected: i === S.story, disabled: !s.detail }, s.label)));
    $("count").textContent = shown.length === D.stories.length ? `${count(shown.length, "run")}` : `${whole(shown.length)} of ${count(D.stories.length, "run")}`;
  }
  const rows = document.querySelectorAll('[data-table="overview"] tbody tr'), kept = new Set(shown.map(([, i]) => i));
  rows.forEach((row) => { row.hidden = !kept.has(Number(row.dataset.story)); });
}

function sideControls() {
  const box = $("sidecontrols");
  if (!box) return;
  box.replaceChildren(make("span", { class: "lab" }, "As"),
    toggle("milliseconds", !S.share, () => { S.share = false; sideControls(); repaint("bars"); }),
    toggle("shares", S.share, () => { S.share = true; sideControls(); repaint("bars"); }));
  const shown = visible().filter(([s]) => s.stages);
  if (shown.length > S.shown) box.append(make("button", { type: "button", onclick: () => { S.shown += 48; sideControls(); repaint("bars"); } }, `show more of ${whole(shown.length)}`));
}

function paintBars(svg, width) {
  const all = visible().filter(([s]) => s.stages && Object.keys(s.stages).length), shown = all.slice(0, S.shown), marks = [];
  if (!shown.length) return {};
  const sum = (s) => Object.values(s.stages).reduce((t, ms) => t + ms, 0), right = width - (width > 560 ? 150 : 70);
  const longest = Math.max(...shown.map(([s]) => Math.max(sum(s), s.high?.[0] || 0)));
  const x = S.share ? linear(0, 1, 0, right) : linear(0, longest, 0, right);
  shown.forEach(([s, i], n) => {
    const y = 20 + n * 44, total = sum(s), waits = s.waits != null ? `, device waits ${percent(s.waits)}` : "";
    let at = 0;
    svg.append(draw("text", { class: i === S.story ? "b" : "", x: 0, y: y - 5 }, alone(fitText(s.label, width))));
    for (const [code, name] of Object.entries(STAGES)) {
      const ms = s.stages[code];
      if (!ms) continue;
      const x1 = x(S.share ? at / total : at), x2 = x(S.share ? (at + ms) / total : at + ms);
      svg.append(draw("rect", { class: `seg c-${code}`, x: x1, y, width: Math.max(x2 - x1, 0.5), height: 17 }));
      marks.push({ x1, x2, y1: y, y2: y + 17, say: [`${name}: ${number(ms)} ms, ${percent(ms / total)}`, alone(s.label) + waits], pick: s.detail ? () => chooseStory(i) : null });
      at += ms;
    }
    if (!S.share && s.high?.[0] > total) svg.append(draw("path", { class: "whisker", d: `M${x(total)} ${y + 8.5}H${x(s.high[0])}m0 -4v8` }));
    const end = S.share ? right : x(Math.max(total, S.share ? 0 : s.high?.[0] || 0));
    const text = S.share ? `${number(total)} ms` : `${number(s.mid?.[0] ?? total)}${s.high?.[0] && width > 560 ? `, P95 ${number(s.high[0])}` : ""} ms`;
    svg.append(draw("text", { class: "s", x: Math.min(end + 7, width), y: y + 13 }, text));
  });
  const bottom = shown.length * 44 + 8;
  axisX(svg, x, 0, right, bottom, S.share ? { text: (v) => `${tickText(100 * v)} %` } : { unit: "ms" });
  $("barscap").textContent = all.length > shown.length ? `${shown.length} of ${whole(all.length)} runs are drawn; the table holds all, and filters or the button show others.` : "";
  return { height: bottom + 24, marks };
}

// ---------------------------------------------------------------- the table of all runs: choose, sort

function wireOverview() {
  const table = document.querySelector('[data-table="overview"]');
  if (!table) return;
  const body = table.tBodies[0];
  [...body.rows].forEach((row, i) => {
    row.dataset.story = i;
    if (!D.stories[i].detail) return;
    const head = row.cells[0], name = head.textContent;
    head.replaceChildren(make("button", { type: "button", class: "as-link", onclick: () => { chooseStory(i); $("answer").scrollIntoView(); } }, make("bdi", {}, name)));
  });
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const name = head.textContent;
    head.replaceChildren(make("button", { type: "button", class: "sort", onclick: () => sortBy(table, head, column) }, name));
  });
}

function sortBy(table, head, column) {
  const down = head.getAttribute("aria-sort") === "ascending", body = table.tBodies[0];
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => {
    const cell = row.cells[column], text = (cell.querySelector("bdi, .verdict") || cell).textContent, digits = parseFloat(text.replace(/[,−]/g, (c) => (c === "," ? "" : "-")));
    return column && isFinite(digits) ? digits : column ? Infinity : text.toLowerCase();
  };
  const rows = [...body.rows].map((row) => [value(row), row]).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
  if (down) rows.reverse();
  body.append(...rows.map(([, row]) => row));
}

// ---------------------------------------------------------------- interventions

function armControls() {
  const box = $("armcontrols");
  if (!box) return;
  box.replaceChildren(make("span", { class: "lab" }, "Show"));
  for (const [key, name] of [["methods", "methods"], ["controls", "controls"]])
    box.append(toggle(name, !S.hidden[key], () => { S.hidden[key] = !S.hidden[key]; armControls(); repaint("arms"); }));
}

// A method and, on a line of their own, its arguments.
function cutName(label) {
  const at = label.indexOf(" (");
  return at < 0 ? [label, ""] : [label.slice(0, at), label.slice(at + 1)];
}

function paintArms(svg, width) {
  const rows = (D.arms || []).filter((r) => !S.hidden[r.control ? "controls" : "methods"]), marks = [];
  if (!rows.length) return {};
  const ends = rows.flatMap((r) => [...r.at, r.promised]).filter((v) => v != null), left = width > 640 ? 250 : 0, gap = left ? 38 : 46;
  const x = linear(Math.min(0, ...ends), Math.max(0, ...ends) * 1.02, left + 4, width - 110), bottom = rows.length * gap + 6;
  for (const v of x.ticks(5)) svg.append(draw("line", { class: "grid", x1: x(v), x2: x(v), y1: 0, y2: bottom }));
  svg.append(draw("line", { class: "axis", x1: x(0), x2: x(0), y1: 0, y2: bottom }));
  rows.forEach((row, i) => {
    const y = i * gap + (left ? 18 : 32), [value, low, high] = row.at;
    const [name, rest] = left && row.label.length * 6.1 > left ? cutName(row.label) : [row.label, ""];
    svg.append(draw("text", { class: row.control ? "m" : "b", x: 0, y: left ? y + (rest ? -3 : 4) : y - 14 }, alone(fitText(name, left || width))));
    if (rest) svg.append(draw("text", { class: "m s", x: 0, y: y + 11 }, alone(fitText(rest, left))));
    if (low != null) svg.append(draw("path", { class: "whisker", d: `M${x(low)} ${y}H${x(high)}` }));
    if (row.promised != null) svg.append(draw("path", { class: "inkline", d: `M${x(row.promised)} ${y - 8}v16` }));
    svg.append(draw("circle", { cx: x(value), cy: y, r: 5.5, fill: row.control ? "var(--paper)" : "var(--dot)", stroke: "var(--dot)", "stroke-width": 2 }));
    svg.append(draw("text", { class: "s", x: x(Math.max(value, high ?? value, row.promised ?? value)) + 9, y: y + 4 }, row.words));
    marks.push({ x1: x(low ?? value), x2: x(high ?? value), y1: y - 8, y2: y + 8, say: [alone(row.label), `saves ${row.words} ms`, row.promised != null ? `FLOPs promised ${number(row.promised)} ms` : "no promise by FLOPs"] });
  });
  axisX(svg, x, left, width - 110, bottom, { unit: "ms" });
  return { height: bottom + 24, marks };
}
