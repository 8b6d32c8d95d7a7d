// What a server gave under each load: a latency against a rate, one mark a load.

const loads = () => part()?.loads || detail()?.parts.find((p) => p.loads)?.loads;

function loadControls() {
  const box = $("loadcontrols"), found = loads();
  if (!box) return;
  $("loadblock").hidden = !found;
  box.replaceChildren();
  if (!found) return;
  if (!found.latencies.some(([k]) => k === S.latency)) S.latency = found.latencies[0]?.[0];
  if (!found.rates.some(([k]) => k === S.rate)) S.rate = found.rates[0]?.[0];
  for (const [what, of, word] of [["latency", found.latencies, "Time of"], ["rate", found.rates, "against"]]) {
    box.append(make("span", { class: "lab" }, word));
    for (const [key, name] of of) box.append(toggle(name, S[what] === key, () => { S[what] = key; loadControls(); repaint("loads"); }));
  }
}

function paintLoads(svg, width) {
  const found = loads(), marks = [];
  const shown = (found?.points || []).filter((p) => p.at[S.rate] && p.at[S.latency]);
  if (!shown.length) return {};
  const end = (key) => Math.max(...shown.flatMap((p) => p.at[key].filter((v) => v != null)));
  const left = 56, right = width - 20, top = 24, bottom = 300;
  const x = linear(0, end(S.rate) * 1.12, left, right), y = linear(0, end(S.latency) * 1.12, bottom, top);
  for (const v of y.ticks(5)) {
    svg.append(draw("line", { class: "grid", x1: left, x2: right, y1: y(v), y2: y(v) }));
    svg.append(draw("text", { class: "s m", x: left - 8, y: y(v) + 4, "text-anchor": "end" }, tickText(v)));
  }
  const label = (list, key) => list.find(([k]) => k === key)[1];
  svg.append(draw("text", { class: "s m", x: 0, y: 12 }, `${label(found.latencies, S.latency)}, ms`));
  const path = [...shown].map((p, i) => `${i ? "L" : "M"}${x(p.at[S.rate][0])} ${y(p.at[S.latency][0])}`).join("");
  svg.append(draw("path", { d: path, fill: "none", stroke: "var(--line)", "stroke-width": 1.5 }));
  const taken = shown.flatMap((p) => {
    const [[vx, xl, xh], [vy, yl, yh]] = [p.at[S.rate], p.at[S.latency]], cx = x(vx), cy = y(vy);
    return [[cx - 7, cx + 7, cy - 7, cy + 7], ...(xl != null ? [[x(xl), x(xh), cy - 1, cy + 1]] : []), ...(yl != null ? [[cx - 1, cx + 1, y(yh), y(yl)]] : [])];
  });
  shown.slice(1).forEach((p, i) => {  // and off the line between the loads
    const [x1, x2] = [shown[i], p].map((q) => x(q.at[S.rate][0])), [y1, y2] = [shown[i], p].map((q) => y(q.at[S.latency][0]));
    const n = Math.max(1, Math.ceil(Math.hypot(x2 - x1, y2 - y1) / 3));
    for (let k = 0; k <= n; k++) { const px = x1 + ((x2 - x1) * k) / n, py = y1 + ((y2 - y1) * k) / n; taken.push([px - 1, px + 1, py - 1, py + 1]); }
  });
  const names = [];
  for (const p of shown) {
    const [vx, xl, xh] = p.at[S.rate], [vy, yl, yh] = p.at[S.latency], cx = x(vx), cy = y(vy);
    if (xl != null) svg.append(draw("path", { class: "whisker", d: `M${x(xl)} ${cy}H${x(xh)}` }));
    if (yl != null) svg.append(draw("path", { class: "whisker", d: `M${cx} ${y(yl)}V${y(yh)}` }));
    svg.append(draw("circle", { cx, cy, r: 5.5, fill: p.doubt ? "var(--paper)" : "var(--dot)", stroke: "var(--dot)", "stroke-width": 2 }));
    names.push([alone(p.short || p.name), cx, cy, names.length]);
    const range = ([v, low, high]) => number(v) + (low != null ? ` (${number(low)}–${number(high)})` : "");
    marks.push({ x: cx, y: cy, say: [alone(p.name), `${label(found.latencies, S.latency)}: ${range(p.at[S.latency])} ms`,
      `${range(p.at[S.rate])} ${label(found.rates, S.rate)}`, ...(p.doubt ? [`doubtful: ${p.doubt}`] : [])] });
  }
  nameAll(svg, names, names.map((one) => one.slice(1)), taken, left, right);
  axisX(svg, x, left, right, bottom, {});
  svg.append(draw("text", { class: "s m", x: right, y: bottom + 34, "text-anchor": "end" }, label(found.rates, S.rate)));
  return { height: bottom + 40, marks };
}
