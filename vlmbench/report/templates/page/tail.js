// The tail: a dot for each request (or counts, where they are many), and the share that takes longer.

function groupsShown() {
  const r = requests();
  return r ? r.groups.map((g, i) => [g, i]).filter(([g]) => g.n && !S.hidden[`group ${g.name}`]) : [];
}

function tailControls() {
  const box = $("tailcontrols"), r = requests();
  if (!box) return;
  box.replaceChildren();
  const none = !r || !part().phase1;
  $("tailbody").hidden = none;
  $("notail").hidden = !none;
  if (none) return;
  box.append(make("span", { class: "lab" }, "Show"));
  for (const g of r.groups) {
    const key = `group ${g.name}`;
    box.append(toggle(g.name, !S.hidden[key], () => { S.hidden[key] = !S.hidden[key]; tailControls(); for (const id of ["strip", "dots", "curve"]) repaint(id); }));
  }
  if (r.flag_names.length) box.append(toggle("marked runs", !S.hidden.flags, () => { S.hidden.flags = !S.hidden.flags; tailControls(); repaint("dots"); }));
  box.append(...zoomButtons("dots"));
}

function tailScale(width, left = 0) {
  const r = requests(), zoom = S.zoom.tail;
  let low = Infinity, high = -Infinity;
  for (const [g, k] of groupsShown()) {
    if (g.hist) { low = Math.min(low, g.hist.edges[0]); high = Math.max(high, g.hist.edges[g.hist.edges.length - 1]); }
    r.ms.forEach((ms, i) => { if (r.group[i] === k && ms != null) { low = Math.min(low, ms); high = Math.max(high, ms); } });
  }
  if (!isFinite(low)) return null;
  const x = zoom ? logarithmic(zoom[0], zoom[1], left + 4, width - 4) : logarithmic(low * 0.97, high * 1.03, left + 4, width - 4);
  x.range = [left + 4, width - 4];
  x.has = (v) => v >= x.back(left) && v <= x.back(width);
  return x;
}

function paintDots(svg, width) {
  const r = requests();
  if (!r || !part().phase1) return {};
  const x = tailScale(width);
  if (!x) return {};
  const marks = [];
  let y = 0;
  for (const [g, k] of groupsShown()) y = onePanel(svg, width, x, r, g, k, y, marks);
  return { height: y, marks, scale: x, label: `Distribution: ${groupsShown().map(([g]) => `${g.name}, ${count(g.n, "request")}${quantileWords(g.name)}`).join("; ")}` };
}

const quantileWords = (name) => (part().quantiles[name] || []).map(([q, v]) => `, ${q} ${number(v)} ms`).join("");

const groupTitle = (g) => (g.name === "workload" ? `${count(g.n, "request")} of the workload`
  : g.name === "one request repeated" ? `One request, repeated ${count(g.n, "time")}` : `${g.name}: ${count(g.n, "request")}`);

function onePanel(svg, width, x, r, g, k, top, marks) {
  svg.append(draw("text", { class: "b", x: 0, y: top + 13 }, groupTitle(g)));
  const own = r.ms.map((ms, i) => i).filter((i) => r.group[i] === k && r.ms[i] != null && x.has(r.ms[i]));
  const bins = Math.max(20, Math.floor(width / 7)), columns = new Map();
  for (const i of own) {
    const slot = Math.floor((x(r.ms[i]) / width) * bins);
    columns.set(slot, [...(columns.get(slot) || []), i]);
  }
  const tallest = Math.max(...[...columns.values()].map((c) => c.length), 1);
  const most = printing ? 84 : 150, counts = g.hist || tallest * 2.2 > most ? (g.hist || histogram(own.map((i) => r.ms[i]))) : null;
  const size = Math.min(3.2, width / bins / 2.1, most / tallest / 2);
  const height = counts ? most : Math.max(tallest * 2 * size, 14), base = top + (part().quantiles[g.name]?.length ? 76 : 26) + height;
  whiskers(svg, x, g.name, top + 46, base, width);
  if (counts) bars(svg, x, counts, base, height, k, marks);
  const drawn = counts ? own.filter((i) => r.flags[i] || i === S.request) : own;
  const place = new Map();
  for (const [slot, list] of columns) list.forEach((i, n) => place.set(i, [((slot + 0.5) / bins) * width, base - size - n * 2 * size]));
  for (const i of drawn) {
    const [cx, cy] = counts ? [x(r.ms[i]), base - 5] : place.get(i);
    const flagged = r.flags[i] && !S.hidden.flags;
    const looks = i === S.request ? "chosen" : flagged ? "flagged" : k ? "ring" : "dot";
    svg.append(draw("circle", { class: looks, cx, cy, r: i === S.request ? 5 : flagged ? 3.4 : k ? size - 0.5 : size - 0.2 }));
    marks.push({ x: cx, y: cy, say: [alone(r.id[i]), `${number(r.ms[i])} ms${flagWords(r, i)}`, "choose it"], pick: () => choose(i) });
  }
  axisX(svg, x, 0, width, base, { unit: "ms" });
  return base + 34;
}

function histogram(values) {
  const low = Math.min(...values), high = Math.max(...values), n = 80;
  const edges = Array.from({ length: n + 1 }, (_, i) => low * (high / low || 1) ** (i / n));
  const counts = new Array(n).fill(0);
  for (const v of values) counts[Math.min(n - 1, Math.floor((Math.log(v / low) / Math.log(high / low || 2)) * n))] += 1;
  return { edges, counts };
}

function bars(svg, x, hist, base, height, k, marks) {
  const most = Math.max(...hist.counts), [left, right] = x.range;
  hist.counts.forEach((n, i) => {
    const x1 = Math.max(x(hist.edges[i]), left), x2 = Math.min(x(hist.edges[i + 1]), right);
    if (!n || x2 <= x1) return;
    const h = Math.max((n / most) * height, 1.5);
    svg.append(draw("rect", { x: x1, y: base - h, width: Math.max(x2 - x1 - 0.6, 0.6), height: h, fill: k ? "none" : "var(--dot)", stroke: k ? "var(--dot)" : "none", "fill-opacity": 0.75 }));
    marks.push({ x1, x2, y1: base - h, y2: base, say: [count(n, "request"), `${number(hist.edges[i])} to ${number(hist.edges[i + 1])} ms`] });
  });
}

function whiskers(svg, x, name, y, base, width) {
  const ends = [-Infinity, -Infinity];
  (part().quantiles[name] || []).forEach(([q, value, low, high], i) => {
    if (!x.has(value)) return;
    const at = x(value), row = y + 6 + i * 7, text = `${q} ${number(value)}`;
    svg.append(draw("line", { class: "axis", x1: at, x2: at, y1: y, y2: base, "stroke-dasharray": "3 3" }));
    if (low != null) svg.append(draw("path", { class: "whisker", d: `M${Math.max(x(low), 0)} ${row}H${Math.min(x(high), width)}` }));
    svg.append(draw("circle", { cx: at, cy: row, r: 3, fill: "var(--ink)" }));
    const line = at - text.length * 3 > ends[0] + 5 ? 0 : at - text.length * 3 > ends[1] + 5 ? 1 : -1;
    if (line < 0) return;
    svg.append(draw("text", { class: "s", x: at, y: y - 3 - 13 * line, "text-anchor": at > width - 40 ? "end" : at < 40 ? "start" : "middle" }, text));
    ends[line] = at + text.length * 3;
  });
}

// ---------------------------------------------------------------- share that takes longer

function exceedance(r, g, k) {
  if (g.curve) return g.curve;
  const sorted = r.ms.filter((ms, i) => r.group[i] === k && ms != null).sort((a, b) => a - b);
  return sorted.map((ms, i) => [ms, (sorted.length - 1 - i) / sorted.length]);
}

// Lines are ink: the dash tells the groups apart, and the width beyond six.
const DASHES = [null, "5 4", "1.5 3", "11 4", "11 3 2 3", "11 3 2 3 2 3"];
const curveLine = (k) => ({ stroke: "var(--dot)", "stroke-width": [2.2, 1.4, 1.8, 1.4, 1.4, 1.4][k % 6] + Math.floor(k / 6), "stroke-dasharray": DASHES[k % 6] });

function curveKey(svg, width, shown) {
  let at = 0, row = 12;
  for (const [g, k] of shown) {
    const room = 38 + g.name.length * 6.2 + 16;
    if (at && at + room > width) { at = 0; row += 17; }
    svg.append(draw("path", { d: `M${at} ${row - 4}h32`, ...curveLine(k) }), draw("text", { class: "s", x: at + 38, y: row }, g.name));
    at += room;
  }
  return row;
}

function paintCurve(svg, width) {
  const r = requests();
  if (!r || !part().phase1) return {};
  const left = 46, x = tailScale(width, left), shown = groupsShown();
  if (!x) return {};
  const under = curveKey(svg, width, shown);  // the key stands above: a curve may pass anywhere below
  const least = Math.min(...shown.map(([g]) => 0.5 / g.n)), top = under + 16, base = top + (printing ? 158 : 220), marks = [];
  const y = logarithmic(least, 1, base, top);
  for (const v of [1, 0.5, 0.1, 0.05, 0.01, 0.001, 0.0001].filter((v) => v >= least)) {
    svg.append(draw("line", { class: "grid", x1: left, x2: width, y1: y(v), y2: y(v) }));
    svg.append(draw("text", { class: "s m", x: left - 6, y: y(v) + 4, "text-anchor": "end" }, `${tickText(100 * v)} %`));
  }
  for (const [g, k] of shown) {
    let path = "", last = base, started = false;
    for (const [ms, share] of exceedance(r, g, k)) {
      const at = y(Math.max(share, least)), px = Math.min(Math.max(x(ms), left), width);
      path += started ? `H${px.toFixed(1)}V${at.toFixed(1)}` : `M${px.toFixed(1)} ${y(1).toFixed(1)}V${at.toFixed(1)}`;
      started = true;
      last = at;
      if (x.has(ms)) marks.push({ x: x(ms), y: at, say: [`${percent(share)} take longer`, `than ${number(ms)} ms, ${g.name}`], pick: () => chooseAt(k, ms) });
    }
    svg.append(draw("path", { d: path, fill: "none", ...curveLine(k) }));
    (part().quantiles[g.name] || []).forEach(([q, value, low, high]) => {
      const at = y(1 - Number(q.slice(1)) / 100) + (k ? 4 : 0);
      if (!x.has(value)) return;
      if (low != null) svg.append(draw("path", { class: "inkline", d: `M${Math.max(x(low), left)} ${at}H${Math.min(x(high), width)}`, "stroke-dasharray": k ? "4 3" : null }));
      svg.append(draw("circle", { class: k ? "ring" : "dot", cx: x(value), cy: at, r: 3.8 }));
    });
  }
  const i = S.request;
  if (i != null && x.has(r.ms[i])) svg.append(draw("path", { class: "pickline", d: `M${x(r.ms[i])} ${base}v-8` }));
  axisX(svg, x, left, width, base, { unit: "ms" });
  $("tailcap").textContent = ["Milliseconds, logarithmic axis, nothing cut off. Dots with whiskers: P50, P90, P95 … with 95 % intervals, as far as the number of requests allows. Red: a marked run. Blue: the chosen request. Choose a dot to see its timeline.", r.said].filter(Boolean).join(" ");
  return { height: base + 24, marks, scale: x };
}

function chooseAt(k, ms) {
  const r = requests();
  let best = null;
  r.ms.forEach((v, i) => { if (r.group[i] === k && v != null && (best == null || Math.abs(v - ms) < Math.abs(r.ms[best] - ms))) best = i; });
  if (best != null) choose(best);
}
