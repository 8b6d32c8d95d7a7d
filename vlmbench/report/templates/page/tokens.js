// What one more token costs: a panel for each kind of token, stacked medians, break-even, a calculator.

const KINDS = ["vision", "prompt", "output", "batch"];
const MOST_SERIES = 6;

// Panels of the stories that pass the filter, by kind: [{ story, panel }].
function series() {
  const found = {};
  for (const [s, i] of visible()) for (const p of s.detail?.parts || []) for (const panel of p.panels || []) {
    if (S.filter.sweep && p.sweep !== S.filter.sweep) continue;
    (found[panel.kind] ||= []).push({ story: i, label: s.label, panel });
  }
  return found;
}

function tokenControls() {
  const box = $("tokencontrols");
  if (!box) return;
  const all = Object.values(series()).flat(), stages = new Set(all.flatMap((s) => Object.keys(s.panel.fits)));
  const names = { T_total: "generate()", T_vision_encoder: "vision encoder", T_projector: "projector", T_LLM_prefill: "prefill", T_LLM_decode: "decode", TTFT_model: "first token", T_preprocess: "preprocessing", T_request: "request", TTFT: "first token", TPOT: "a token" };
  if (stages.size && !stages.has(S.stage)) S.stage = Object.keys(names).find((name) => stages.has(name));
  box.replaceChildren(make("span", { class: "lab" }, "Time of"));
  for (const [stage, name] of Object.entries(names)) if (stages.has(stage))
    box.append(toggle(name, S.stage === stage, () => { S.stage = stage; tokenControls(); buildPanels(); }));
  if (all.some((s) => s.panel.flagged.some(Boolean))) box.append(toggle("runs that did something first", S.firsts, () => { S.firsts = !S.firsts; tokenControls(); buildPanels(); }));
  box.hidden = !all.length;
}

function buildPanels() {
  const box = $("panels");
  if (!box) return;
  const found = series();
  for (const id of [...charts.keys()]) if (id.startsWith("panel-")) charts.delete(id);
  box.replaceChildren();
  const kinds = KINDS.filter((kind) => (found[kind] || []).some((s) => s.panel.fits[S.stage]));
  for (const kind of kinds) {
    const shown = found[kind].filter((s) => s.panel.fits[S.stage]);
    const first = shown[0].panel, id = `panel-${kind}`, held = [...new Set(shown.map((s) => s.panel.held))];
    const notes = [held[0] ? `Held fixed: ${held.slice(0, 2).join("; ")}.` : "", ...new Set(shown.map((s) => s.panel.said)),
      ...shown.slice(0, 2).map((s) => s.panel.fits[S.stage].also && (shown.length > 1 ? `${alone(s.label)}: ${s.panel.fits[S.stage].also}` : s.panel.fits[S.stage].also))];
    if (shown.length > MOST_SERIES) notes.push(`${MOST_SERIES} of ${shown.length} runs are drawn; filter to see others.`);
    box.append(make("figure", { class: "block" }, make("h3", {}, first.x[0].toUpperCase() + first.x.slice(1)),
      make("div", { class: "chart", id, "data-label": `Time against ${first.x}` }), make("figcaption", {}, notes.filter(Boolean).join(" "))));
    chart(id, (svg, width) => paintPanel(svg, width, shown.slice(0, MOST_SERIES), first.x), { printWidth: kinds.length > 1 ? 332 : 690 });
    repaint(id);
  }
  if (!box.children.length) box.append(make("p", { class: "none" }, "None of the runs shown swept this."));
}

function paintPanel(svg, width, shown, xName) {
  const fits = shown.map((s) => s.panel.fits[S.stage]), marks = [];
  const drawn = shown.map((s, k) => s.panel.at.map((v, i) => [v, fits[k].ms[i], s.panel.flagged[i]]).filter(([, ms, f]) => ms != null && (S.firsts || !f)));
  const flat = drawn.flat(), ordered = flat.map(([, ms]) => ms).sort((a, b) => a - b);
  const mids = fits.flatMap((f) => f.mid.map(([, ms]) => ms)), top = 26, base = top + 196, left = 44, right = width - 14;
  const usual = Math.max(quantile(ordered, 0.97) || 0, ...mids), most = ordered[ordered.length - 1] ?? usual;
  const limit = most > 1.7 * usual ? usual * 1.15 : most * 1.06;
  const xs = fits.flatMap((f) => f.mid.map(([x]) => x)), low = Math.min(...xs), high = Math.max(...xs), pad = (high - low) * 0.06;
  const x = linear(low - pad, high + pad, left, right), y = linear(Math.min(0, ordered[0] ?? 0), limit || 1, base, top);
  for (const v of y.ticks(4)) svg.append(draw("line", { class: "grid", x1: left, x2: right, y1: y(v), y2: y(v) }), draw("text", { class: "s m", x: left - 6, y: y(v) + 4, "text-anchor": "end" }, tickText(v)));
  svg.append(draw("text", { class: "s m", x: 0, y: 12 }, "ms a run"));
  const ticks = [...new Set(xs)].sort((a, b) => a - b);
  axisX(svg, x, left, right, base, { ticks: ticks.length > 10 ? null : ticks });
  svg.append(draw("text", { class: "s m", x: (left + right) / 2, y: base + 34, "text-anchor": "middle" }, xName));
  let over = 0;
  shown.forEach((s, k) => {
    const fit = fits[k], color = `var(--s${k % 6})`;
    if (fit.measurable && fit.line.every((v) => v[2] != null)) {
      const upper = fit.line.map(([v, , , h]) => `${x(v)},${y(Math.min(h, limit))}`), lower = fit.line.map(([v, , l]) => `${x(v)},${y(Math.min(l, limit))}`).reverse();
      svg.append(draw("polygon", { points: [...upper, ...lower].join(" "), fill: color, opacity: 0.13 }));
    }
    for (const [v, ms, flagged] of drawn[k]) {
      const out = ms > limit, cy = out ? top - 4 : y(ms);
      if (out) over += 1;
      svg.append(draw("circle", { cx: x(v), cy, r: out ? 3.6 : 2, class: flagged || out ? "flagged" : null, fill: flagged || out ? null : color, opacity: flagged || out ? 1 : 0.42 }));
      if (flagged || out) marks.push({ x: x(v), y: cy, say: [`${number(ms)} ms`, `${tickText(v)} ${xName}${flagged ? ", did something for the first time" : ""}${out ? ", above this axis" : ""}`] });
    }
    svg.append(draw("path", { d: `M${fit.line.map(([v, ms]) => `${x(v)} ${y(ms)}`).join("L")}`, fill: "none", stroke: color, "stroke-width": 2, "stroke-dasharray": fit.measurable ? (k ? "6 4" : null) : "2 4" }));
    for (const [v, ms] of fit.mid) {
      svg.append(draw("circle", { cx: x(v), cy: y(Math.min(ms, limit)), r: 4.6, fill: k ? "var(--paper)" : color, stroke: color, "stroke-width": 2 }));
      marks.push({ x: x(v), y: y(Math.min(ms, limit)), say: [`${number(ms)} ms at the median`, `${tickText(v)} ${xName}`, alone(s.label)], pick: D.stories.length > 1 ? () => chooseStory(s.story) : null });
    }
  });
  if (over) svg.append(draw("text", { class: "s", x: right, y: 12, "text-anchor": "end" }, `${over} above the axis, up to ${number(most)}`));
  let row = base + 52;
  shown.forEach((s, k) => {
    const text = `${shown.length > 1 || D.stories.length > 1 ? `${s.label}: ` : ""}${fits[k].words}`;
    svg.append(draw("path", { d: `M0 ${row - 4}h22`, stroke: `var(--s${k % 6})`, "stroke-width": 2, "stroke-dasharray": k ? "6 4" : null }), draw("text", { class: "s b", x: 28, y: row }, fitText(text, width - 28)));
    row += 17;
  });
  marks.sort((a, b) => a.x - b.x);
  return { height: row - 6, marks, label: `Time against ${xName}: ${shown.map((s, k) => `${s.label}, ${fits[k].words}`).join("; ")}` };
}

const fitText = (text, width) => (text.length * 6.1 > width ? `${text.slice(0, Math.max(Math.floor(width / 6.1) - 1, 4))}…` : text);

// ---------------------------------------------------------------- stacked medians of each point

function swept() { return (detail()?.parts || []).filter((p) => p.medians); }

function madeControls() {
  const box = $("madecontrols");
  if (!box) return;
  const parts = swept();
  $("madeblock").hidden = !parts.length;
  box.replaceChildren();
  if (parts.length < 2) return;
  box.append(make("span", { class: "lab" }, "Sweep of"));
  parts.forEach((p, i) => box.append(toggle(p.sweep, i === S.made, () => { S.made = i; madeControls(); repaint("made"); })));
}

// `vision_tokens=1024` as `1,024 vision tokens`; of several axes each keeps its name before its value.
const pointWords = (name) => (/^[a-z_]+=\d+$/.test(name) ? name.replace(/(.*)=(\d+)/, (_, axis, n) => `${whole(n)} ${axis}`) : name).replace(/_/g, " ");

function paintMade(svg, width) {
  const found = swept()[S.made] || swept()[0];
  if (!found) return {};
  const { names, stages } = found.medians, codes = Object.keys(STAGES).filter((c) => stages[c]), marks = [];
  const sums = names.map((_, i) => codes.reduce((s, c) => s + (stages[c][i] || 0), 0)), short = names.map(pointWords);
  const left = Math.min(190, Math.max(...short.map((n) => n.length)) * 6.4 + 10), x = linear(0, Math.max(...sums), left, width - 56);
  names.forEach((name, i) => {
    const y = 6 + i * 24;
    let at = 0;
    svg.append(draw("text", { class: "s", x: left - 8, y: y + 13, "text-anchor": "end" }, fitText(short[i], left)));
    for (const c of codes) {
      const ms = stages[c][i];
      if (!ms) continue;
      svg.append(draw("rect", { class: `seg c-${c}`, x: x(at), y, width: Math.max(x(at + ms) - x(at), 0.5), height: 17 }));
      marks.push({ x1: x(at), x2: x(at + ms), y1: y, y2: y + 17, say: [`${STAGES[c]}, ${short[i]}`, `${number(ms)} ms, ${percent(ms / sums[i])}`] });
      at += ms;
    }
    svg.append(draw("text", { class: "s b", x: x(at) + 6, y: y + 13 }, number(sums[i])));
  });
  axisX(svg, x, left, width - 56, 10 + names.length * 24, { unit: "ms" });
  return { height: names.length * 24 + 34, marks };
}

// ---------------------------------------------------------------- break-even and calculator

function paintEven(svg, width) {
  const rows = D.breakeven.filter((row) => matches(D.stories[row.story]));
  $("evenblock").hidden = !rows.length;
  if (!rows.length) return {};
  const ends = rows.flatMap((r) => r.at).filter((v) => v > 0), marks = [];
  const x = logarithmic(Math.min(...ends) / 1.5, Math.max(...ends) * 1.5, 4, width - 8);
  const bottom = rows.length * 44 + 4;
  for (const v of x.ticks(4)) svg.append(draw("line", { class: "grid", x1: x(v), x2: x(v), y1: 0, y2: bottom }));
  rows.forEach((row, i) => {
    const y = 28 + i * 44, [value, low, high] = row.at, name = D.stories.length > 1 ? `${D.stories[row.story].label}: ` : "";
    const text = `${name}${number(value)} ${row.of}${low != null ? ` (${number(low)}–${number(high)})` : ""}`;
    svg.append(draw("text", { class: "s b", x: 0, y: y - 12 }, fitText(text, width)));
    if (low > 0) svg.append(draw("path", { class: "whisker", d: `M${x(low)} ${y}H${x(high)}M${x(low)} ${y - 4}v8M${x(high)} ${y - 4}v8` }));
    svg.append(draw("circle", { cx: x(value), cy: y, r: 5.5, fill: i % 2 ? "var(--paper)" : "var(--dot)", stroke: "var(--dot)", "stroke-width": 2 }));
    marks.push({ x1: x(low || value), x2: x(high || value), y1: y - 6, y2: y + 6, say: [alone(D.stories[row.story].label), text] });
  });
  axisX(svg, x, 0, width, bottom, { unit: rows[0].of.split(" ")[0] === "vision" ? "tokens" : "" });
  return { height: bottom + 24, marks };
}

// The fit of the whole: generate(), or the request where a server shows nothing else.
const wholeFit = (panel) => panel?.fits.T_total || panel?.fits.T_request;
const calc = { vision: 576, output: 8 };

function buildCalculator() {
  const box = $("calc");
  if (!box) return;
  const found = series(), kinds = ["vision", "output"].filter((k) => (found[k] || []).some((s) => wholeFit(s.panel)));
  box.hidden = !kinds.length;
  box.replaceChildren(make("h3", {}, "What would it cost to ask for more?"));
  if (!kinds.length) return;
  const said = make("div", { "aria-live": "polite" });
  for (const kind of kinds) {
    const largest = Math.max(...found[kind].flatMap((s) => wholeFit(s.panel).mid.map(([v]) => v))), shown = make("b", {});
    calc[kind] = Math.min(calc[kind], largest);
    const input = make("input", { type: "range", min: 0, max: largest, step: 1, value: calc[kind], oninput: () => { calc[kind] = Number(input.value); show(); } });
    const show = () => { shown.textContent = `+${whole(calc[kind])}`; result(); };
    box.append(make("label", {}, `${kind === "vision" ? "Vision" : "Output"} tokens: `, shown, input));
    shown.textContent = `+${whole(calc[kind])}`;
  }
  const result = () => {
    said.replaceChildren();
    for (const [s, i] of visible().slice(0, 6)) {
      const costs = kinds.map((k) => [calc[k], wholeFit((found[k] || []).find((one) => one.story === i)?.panel)]).filter(([n]) => n);
      if (!costs.length || costs.some(([, fit]) => !fit)) continue;
      const sum = costs.reduce((t, [n, f]) => t + n * f.slope[0], 0), half = Math.hypot(...costs.map(([n, f]) => (n * (f.slope[2] - f.slope[1])) / 2));
      const sign = (v) => `${v < 0 ? "" : "+"}${number(v)}`;
      said.append(make("p", {}, D.stories.length > 1 ? `${alone(s.label)}: ` : "", make("b", {}, `${sign(sum)} ms`), ` (${sign(sum - half)} to ${sign(sum + half)}) of ${found[kinds[0]].find((one) => one.story === i)?.panel.fits.T_total ? "generate()" : "the request"}`));
    }
  };
  box.append(said, make("p", { class: "cap" }, "Straight lines of the sweeps; holds inside the counts that were measured. Intervals of two kinds are added as independent."));
  result();
}
