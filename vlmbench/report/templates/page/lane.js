// Every row of a run in the order of time, with its marks, and what the device's sensors said.

const LOOKS = ["Filled dot: workload.", "Ring: one request repeated, with its running median as a line.", "Dash: bare, without probes.", "Triangle: traced.",
  "Cross: cold and warm-up, shorter outputs.", "Red cross: failed.", "Square: methods and controls beside the baseline."];

function laneControls() {
  const box = $("lanecontrols");
  if (!box) return;
  const found = part()?.lane;
  box.replaceChildren();
  if (!found) return;
  if (detail().parts.length > 1) box.append(partSelect());
  box.append(make("span", { class: "lab" }, "Show"));
  found.names.forEach((name, k) => {
    if (!found.counts[k]) return;
    const key = `lane ${name}`;
    box.append(toggle(`${name} ${whole(found.counts[k])}`, !S.hidden[key], () => { S.hidden[key] = !S.hidden[key]; laneControls(); repaint("lane"); }));
  });
  box.append(...zoomButtons("lane"));
}

function paintLane(svg, width) {
  const found = part()?.lane;
  if (!found) return {};
  const keep = (k) => !S.hidden[`lane ${found.names[k]}`], left = 46, right = width - 6, top = 14, base = printing ? 160 : 214, marks = [];
  const at = [...found.at, ...found.bins.map((b) => b[1])], ms = [];
  found.ms.forEach((v, i) => { if (v > 0 && keep(found.kind[i])) ms.push(v); });
  for (const b of found.bins) if (keep(b[0])) ms.push(b[2], b[4]);
  if (!ms.length) { svg.append(draw("text", { class: "m", x: 0, y: 20 }, "Nothing is chosen to show.")); return { height: 30 }; }
  const zoom = S.zoom.lane, end = Math.max(...at, 1e-3), minutes = end > 600, unit = minutes ? 60 : 1;
  const x = linear(zoom ? zoom[0] : 0, zoom ? zoom[1] : end, left + 4, right - 4);
  x.range = [left + 4, right - 4];
  const inside = (v) => x(v) >= left && x(v) <= right;
  const y = logarithmic(Math.min(...ms) * 0.95, Math.max(...ms) * 1.08, base, top);
  for (const v of y.ticks(5)) svg.append(draw("line", { class: "grid", x1: left, x2: right, y1: y(v), y2: y(v) }), draw("text", { class: "s m", x: left - 6, y: y(v) + 4, "text-anchor": "end" }, tickText(v)));
  svg.append(draw("text", { class: "s m", x: 0, y: 9 }, `ms of ${found.what}`));
  for (const [kind, middle, low, mid, high, n] of found.bins) if (keep(kind) && inside(middle)) {
    svg.append(draw("path", { d: `M${x(middle)} ${y(low)}V${y(high)}`, stroke: kind === 1 ? "var(--muted)" : "var(--dot)", "stroke-width": 1.4, opacity: 0.45 }), draw("path", { d: `M${x(middle) - 2} ${y(mid)}h4`, stroke: kind === 1 ? "var(--muted)" : "var(--dot)", "stroke-width": 2 }));
    marks.push({ x: x(middle), y: y(mid), y1: y(high), y2: y(low), say: [`${found.names[kind]}: ${number(mid)} ms at the median`, `${number(low)} to ${number(high)} ms, ${count(n, "row")}`] });
  }
  const looks = [
    (px, py) => draw("circle", { class: "dot", cx: px, cy: py, r: 2.6 }), (px, py) => draw("circle", { class: "ring", cx: px, cy: py, r: 2.8 }),
    (px, py) => draw("path", { d: `M${px - 3} ${py}h6`, stroke: "var(--muted)", "stroke-width": 1.5 }), (px, py) => draw("path", { d: `M${px} ${py - 3.5}l3.5 6h-7z`, fill: "none", stroke: "var(--muted)", "stroke-width": 1.3 }),
    (px, py) => draw("path", { d: `M${px - 3} ${py - 3}l6 6m0-6l-6 6`, stroke: "var(--muted)", "stroke-width": 1.2 }), (px, py) => draw("path", { d: `M${px - 4} ${py - 4}l8 8m0-8l-8 8`, stroke: "var(--bad)", "stroke-width": 2 }),
    (px, py) => draw("rect", { x: px - 2.5, y: py - 2.5, width: 5, height: 5, fill: "none", stroke: "var(--dot)", "stroke-width": 1.4 }),
  ];
  const r = requests(), pickable = r ? new Map(r.at.map((t, i) => [`${number(t, 6)} ${r.id[i]}`, i])) : new Map();
  found.at.forEach((t, i) => {
    const kind = found.kind[i];
    if (!keep(kind) || !inside(t)) return;
    const py = found.ms[i] > 0 ? y(found.ms[i]) : base - 6, px = x(t), flags = found.flag_names.filter((_, k) => found.flags[i] & (1 << k)).map((n) => n.replaceAll("_", " "));
    svg.append(looks[kind](px, py));
    if (flags.length) svg.append(draw("path", { d: `M${px} ${py - 6}l6 6 -6 6 -6 -6z`, fill: "none", stroke: "var(--mark)", "stroke-width": 1.5 }));
    const index = pickable.get(`${number(t, 6)} ${found.row[i]}`);
    marks.push({ x: px, y: py, say: [`${found.row[i] ? `${alone(found.row[i])}, ` : ""}${found.names[kind]}`, found.ms[i] > 0 ? `${number(found.ms[i])} ms` : "no time", ...(flags.length ? [`marked: ${flags.join(", ")}`] : [])], pick: index != null && kind < 2 ? () => choose(index) : null });
  });
  if (r && S.request != null && inside(r.at[S.request])) svg.append(draw("path", { class: "chosen", d: `M${x(r.at[S.request])} ${base - 1}l5 9h-10z` }));
  running(svg, found, x, y, inside, keep);
  axisX(svg, x, left, right, base, { text: (v) => tickText(v / unit), unit: minutes ? "min" : "s", ticks: minutes ? linear(x.back(left) / 60, x.back(right) / 60, 0, 1).ticks(7).map((v) => v * 60) : null });
  let bottom = base + 28;
  for (const reading of found.readings) bottom = sensor(svg, reading, x, inside, left, right, bottom, marks);
  marks.sort((a, b) => (a.x ?? a.x1) - (b.x ?? b.x1));
  $("lanecap").textContent = [...LOOKS.filter((_, k) => found.counts[k]), "Red diamond: marked. Blue triangle below the axis: the chosen request.", found.said].filter(Boolean).join(" ");
  laneSaid(found);
  return { height: bottom + 4, marks, scale: x };
}

// Median of 25 neighbours of the repeated request: where it moves, the machine moved.
function running(svg, found, x, y, inside, keep) {
  const rows = found.at.map((t, i) => [t, found.ms[i], found.kind[i]]).filter(([, ms, kind]) => kind === 1 && ms > 0);
  if (found.bins.length || rows.length < 30 || !keep(1)) return [];
  const line = rows.map(([t], i) => [t, quantile(rows.slice(Math.max(0, i - 12), i + 13).map((r) => r[1]).sort((a, b) => a - b), 0.5)]);
  svg.append(draw("path", { d: `M${line.filter(([t]) => inside(t)).map(([t, v]) => `${x(t).toFixed(1)} ${y(v).toFixed(1)}`).join("L")}`, class: "inkline" }));
  return line;
}

function laneSaid(found) {
  const rows = found.ms.filter((ms, i) => found.kind[i] === 1 && ms > 0), parts = found.names.map((name, k) => (found.counts[k] ? `${whole(found.counts[k])} ${name}` : "")).filter(Boolean);
  const check = detail().quality.find((q) => q.s.startsWith("A/A"));
  let text = `${parts.join(", ")}.`;
  if (!found.bins.length && rows.length >= 30) {
    const medians = rows.map((_, i) => quantile(rows.slice(Math.max(0, i - 12), i + 13).slice().sort((a, b) => a - b), 0.5));
    text += ` The running median of the repeated request moves between ${number(Math.min(...medians))} and ${number(Math.max(...medians))} ms.`;
  }
  $("lanesaid").textContent = check ? `${check.s} ${check.t[0].toUpperCase()}${check.t.slice(1)}. ${text}` : text;
}

function sensor(svg, reading, x, inside, left, right, top, marks) {
  const same = reading.low === reading.high, y = linear(reading.low, same ? reading.low + 1 : reading.high, top + 34, top + 16);
  svg.append(draw("text", { class: "s m", x: left, y: top + 9 }, `${reading.name}: ${same ? `${whole(reading.low)} ${reading.unit} throughout` : `${whole(reading.low)} to ${whole(reading.high)} ${reading.unit}`}`));
  if (same) return top + 18;
  const points = reading.at.map((t, i) => [t, reading.y[i]]).filter(([t]) => inside(t));
  if (points.length) svg.append(draw("path", { d: `M${points.map(([t, v]) => `${x(t).toFixed(1)} ${y(v).toFixed(1)}`).join("L")}`, fill: "none", stroke: "var(--muted)", "stroke-width": 1.4 }));
  for (const [t, v] of points.filter((_, i) => i % Math.ceil(points.length / 40) === 0)) marks.push({ x: x(t), y: y(v), say: [reading.name, `${number(v)} ${reading.unit}`] });
  return top + 40;
}
