// One request: the bar of the first screen, the strip to choose from, its timeline, its table, the roofline.

function ranked() {
  const r = requests();
  if (!r) return [];
  const shown = r.group.map((g, i) => i).filter((i) => r.ms[i] != null && (S.group == null || r.group[i] === S.group) && !S.hidden[`group ${r.groups[r.group[i]].name}`]);
  return shown.sort((a, b) => r.ms[a] - r.ms[b]);
}

function choose(index, announce = true) {
  S.request = index;
  for (const id of ["strip", "timeline", "dots", "curve", "lane"]) repaint(id);
  describe();
  if (announce) say(words(index));
}

function atShare(share) {
  const all = ranked(), first = part().phase1 && S.group == null ? all.filter((i) => requests().group[i] === 0) : all;
  const from = first.length ? first : all;
  return from.length ? from[Math.min(from.length - 1, Math.round(share * (from.length - 1)))] : null;
}

// Rank among all requests of the group: kept ones are spread over the ranks where not all are kept.
function words(i) {
  const r = requests();
  if (i == null || !r) return "";
  const group = r.groups[r.group[i]], faster = r.groups[r.group[i]].curve
    ? Math.round((1 - group.curve.reduce((s, [ms, share]) => (ms <= r.ms[i] ? share : s), 1)) * group.n)
    : r.ms.filter((ms, k) => r.group[k] === r.group[i] && ms < r.ms[i]).length + 1;
  const tokens = ["vision", "prompt", "output"].map((name, k) => (r.tokens[k][i] != null ? `${whole(r.tokens[k][i])} ${name}` : null)).filter(Boolean);
  return `${alone(r.id[i])}, ${number(r.ms[i])} ms, ${group.name}, rank ${whole(faster)} of ${whole(group.n)}${tokens.length ? `, ${tokens.join(", ")} tokens` : ""}${flagWords(r, i)}`;
}

function flagWords(r, i) {
  const names = r.flag_names.filter((_, k) => r.flags[i] & (1 << k)).map((n) => n.replaceAll("_", " "));
  return names.length ? `, marked: ${names.join(", ")}` : "";
}

function describe() {
  const r = requests(), i = S.request;
  $("picked").replaceChildren();
  $("requesttable").replaceChildren();
  if (!r || i == null) return;
  const text = words(i), cut = text.indexOf(`${number(r.ms[i])} ms`);
  $("picked").append("Shown: ", text.slice(0, cut), make("b", {}, `${number(r.ms[i])} ms`), text.slice(cut + number(r.ms[i]).length + 3));
  const rows = segments(r, i).map((s) => [{ t: s.name, sw: s.code }, { t: number(s.ms) }, { t: percent(s.ms / r.ms[i]) }]);
  $("requesttable").append(grid({ name: "request", caption: `Request ${alone(r.id[i])}`, look: "tight", note: "", rows,
    cols: [["Stage", false], ["ms", true], ["Share", true]] }));
}

// Stages of a request in order of time; where a runtime shows none, what its client saw.
function segments(r, i) {
  const found = [];
  for (const [code, name] of Object.entries(STAGES)) {
    const ms = r.stages[code]?.[i];
    if (ms != null && code !== "res" && ms > 0) found.push({ code, name, ms });
  }
  if (found.some((s) => BEFORE_FIRST.slice(2).includes(s.code) || s.code === "dec")) return found;
  const first = r.ttft?.[i];
  if (first == null) return found.length ? found : [{ code: "res", name: "Whole request, parts not seen", ms: r.ms[i] }];
  const later = r.itl[i] ? r.itl[i].slice(1).reduce((s, ms) => s + ms, 0) : r.ms[i] - first;
  return [{ code: "res", name: "Until the first token, parts not seen", short: "First token", ms: first }, ...(later > 0 ? [{ code: "dec", name: "Later tokens", ms: later }] : [])];
}

// ---------------------------------------------------------------- the bar of the first screen

function paintBar(svg, width) {
  const bar = detail()?.bar, key = $("barkey");
  key.replaceChildren();
  if (!bar) return {};
  for (const [code, ms] of bar.segments) key.append(make("li", {}, make("span", { class: `sw b-${code}` }), `${STAGES[code]} `, make("b", {}, number(ms))));
  key.append(make("li", {}, "medians, ms"));
  const sum = bar.segments.reduce((s, [, ms]) => s + ms, 0), x = linear(0, sum, 0, width), marks = [];
  const hasFirst = bar.first != null, top = hasFirst ? 20 : 20;
  let at = 0, first = 0;
  for (const [code, ms] of bar.segments) {
    const x1 = x(at), x2 = x(at + ms);
    svg.append(draw("rect", { class: `seg c-${code}`, x: x1, y: top, width: Math.max(x2 - x1, 0.8), height: 24 }));
    const label = `${STAGES[code]} ${number(ms)} ms`;
    if (x2 - x1 > label.length * 6.8 + 12) svg.append(draw("text", { class: `b on-${code}`, x: x1 + 9, y: top + 16 }, label));
    marks.push({ x1, x2, y1: top, y2: top + 24, say: [STAGES[code], `${number(ms)} ms at the median`, `${percent(ms / sum)} of the medians together`] });
    if (BEFORE_FIRST.includes(code)) first = at + ms;
    at += ms;
  }
  svg.append(draw("text", { class: "s b", x: width, y: 13, "text-anchor": "end" }, bar.total != null ? `${bar.what === "request" ? "a request" : "generate()"}: ${number(bar.total)} ms` : `medians, ${bar.pooled}: ${number(sum)} ms`));
  if (hasFirst && width > 480) {
    svg.append(draw("path", { class: "whisker", d: `M${x(first)} ${top}V6` }));
    const text = `first token after ${number(bar.first[0])} ms${bar.first[1] ? ` (${bar.first[1]})` : ""}`;
    const end = x(first) + text.length * 6 > width - 160;
    svg.append(draw("text", { class: "s m", x: x(first) + (end ? -5 : 5), y: 13, "text-anchor": end ? "end" : "start" }, text));
  }
  if (bar.waits == null) return { height: top + 30, marks };
  const inside = bar.segments.filter(([code]) => !["vid", "pre", "tra", "det"].includes(code)).reduce((s, [, ms]) => s + ms, 0);
  const outside = bar.segments.filter(([code]) => ["vid", "pre", "tra"].includes(code)).reduce((s, [, ms]) => s + ms, 0);
  const y = top + 28, x0 = x(outside), middle = x(outside + inside * (1 - bar.waits)), end = x(outside + inside);
  const within = bar.segments.filter(([code]) => !["vid", "pre", "tra", "det"].includes(code)), known = within.every(([code]) => bar.busy?.[code] != null);
  let from = outside;
  for (const [code, ms] of known ? within : []) {
    const x1 = x(from), w = Math.max(x(from + ms) - x1, 0.7), share = bar.busy[code];
    svg.append(draw("rect", { fill: "url(#wait)", x: x1, y, width: w, height: 11 }), draw("rect", { class: "c-dev", x: x1, y: y + 11 * (1 - share), width: w, height: 11 * share }));
    marks.push({ x1, x2: x1 + w, y1: y, y2: y + 11, say: [`${STAGES[code]}: device works ${percent(share)} of it`, `It waits ${percent(bar.waits)} of generate().`] });
    from += ms;
  }
  if (!known) {
    svg.append(draw("rect", { class: "c-dev", x: x0, y, width: middle - x0, height: 11 }), draw("rect", { fill: "url(#wait)", x: middle, y, width: end - middle, height: 11 }));
    marks.push({ x1: x0, x2: middle, y1: y, y2: y + 11, say: ["Device works", `${percent(1 - bar.waits)} of generate()`] }, { x1: middle, x2: end, y1: y, y2: y + 11, say: ["Device waits for the host", `${percent(bar.waits)} of generate()`] });
  }
  const works = `${bar.device} works ${number((bar.inner ?? inside) * (1 - bar.waits))} of ${number(bar.inner ?? inside)} ms`;
  svg.append(draw("text", { class: "s m", x: 0, y: y + 25 }, width > 480 ? `in generate(): ${works}${known && width > 860 ? "; filled height: its share of each stage" : ""}` : `${bar.device} works: ${number((bar.inner ?? inside) * (1 - bar.waits))} ms`));
  svg.append(draw("text", { class: "s m", x: width, y: y + 25, "text-anchor": "end" }, `${width > 480 ? `${bar.device} waits for the host: ` : "waits: "}${percent(bar.waits)}${bar.waits_ci ? ` (${bar.waits_ci})` : ""}`));
  return { height: y + 32, marks };
}

// ---------------------------------------------------------------- choosing

function pickControls() {
  const box = $("pick"), r = requests();
  box.replaceChildren();
  $("requestblock").hidden = !r;
  if (!r) return;
  if (detail().parts.length > 1) box.append(partSelect());
  if (r.groups.length > 2) box.append(groupSelect(r));
  box.append(make("span", { class: "lab" }, "Show the"));
  const go = (share) => () => choose(atShare(share));
  for (const [name, share] of [["median", 0.5], ["P95", 0.95], ["slowest", 1], ["fastest", 0]])
    box.append(make("button", { type: "button", "data-share": share, onclick: go(share) }, name));
  if (r.groups.length === 2) box.append(make("button", { type: "button", onclick: () => {
    const order = ranked().filter((i) => r.group[i] === 1);
    if (order.length) choose(order[order.length >> 1]);
  } }, "median of the repeated"));
  box.append(make("button", { type: "button", onclick: () => step(-1) }, "‹ faster"), make("button", { type: "button", onclick: () => step(1) }, "slower ›"));
}

// Points of a sweep, or arms of a comparison of methods.
function groupSelect(r) {
  const name = r.groups[0].name === "baseline" ? "arm" : "point";
  const select = make("select", { "aria-label": name === "arm" ? "Arm" : "Point of the sweep", "data-filter": name, onchange: (event) => {
    S.group = event.target.value === "" ? null : Number(event.target.value);
    choose(atShare(0.5));
  } }, make("option", { value: "" }, `all ${r.groups.length} ${name}s`));
  r.groups.forEach((g, i) => select.append(make("option", { value: i, selected: S.group === i }, g.name.replaceAll("_", " "))));
  return select;
}

function partSelect() {
  const select = make("select", { "aria-label": "Run", onchange: (event) => { S.part = Number(event.target.value); choosePart(); } });
  detail().parts.forEach((p, i) => select.append(make("option", { value: i, selected: i === S.part }, p.phase1 ? `data set` : `sweep: ${p.sweep}`)));
  return select;
}

function step(by) {
  const order = ranked(), at = order.indexOf(S.request);
  if (order.length) choose(order[Math.max(0, Math.min(order.length - 1, (at < 0 ? order.length >> 1 : at) + by))]);
}

function stripKeys(event) {
  const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10, Home: -1e9, End: 1e9 }[event.key];
  if (!by) return false;
  step(by);
  return true;
}

function paintStrip(svg, width) {
  const r = requests(), order = ranked();
  if (!r || !order.length) return {};
  const low = r.ms[order[0]] * 0.985, high = r.ms[order[order.length - 1]] * 1.015;
  const x = logarithmic(low, high, 1, width - 1), marks = [];
  const path = order.map((i) => `M${x(r.ms[i]).toFixed(1)} 2v22`).join("");
  svg.append(draw("path", { d: path, stroke: "var(--dot)", "stroke-width": 1, opacity: order.length > 300 ? 0.35 : 0.6, fill: "none" }));
  for (const i of order) marks.push({ x: x(r.ms[i]), y1: 0, y2: 26, say: [alone(r.id[i]), `${number(r.ms[i])} ms, ${r.groups[r.group[i]].name}`, "choose it"], pick: () => choose(i) });
  if (S.request != null && r.ms[S.request] != null) {
    const at = x(r.ms[S.request]);
    svg.append(draw("path", { class: "chosen", d: `M${at - 1.5} 0h3v25l4 7h-11l4 -7z` }));
  }
  axisX(svg, x, 0, width, 30, { unit: "ms" });
  const box = $("strip");
  box.setAttribute("aria-valuemin", 1);
  box.setAttribute("aria-valuemax", order.length);
  box.setAttribute("aria-valuenow", order.indexOf(S.request) + 1);
  box.setAttribute("aria-valuetext", words(S.request));
  return { height: 52, marks };
}

// ---------------------------------------------------------------- the timeline

function paintTimeline(svg, width) {
  const r = requests(), i = S.request;
  if (!r || i == null) return {};
  const all = segments(r, i), marks = [], busy = part().busy, traced = Object.keys(busy).length > 0;
  const total = Math.max(r.ms[i], all.reduce((s, one) => s + one.ms, 0));
  let y = lane(svg, width, all, 0, total, 18, marks, busy, r.itl[i], "Whole request", `${number(r.ms[i])} ms`);
  const before = all.filter((s) => BEFORE_FIRST.includes(s.code)), first = before.reduce((s, one) => s + one.ms, 0);
  if (before.length > 1 && first < 0.75 * total) {
    svg.append(draw("path", { d: `M0 ${y + 4}H${(first / total) * width}L${width} ${y + 34}H0z`, fill: "var(--soft)" }));
    y = lane(svg, width, before, 0, first, y + 34, marks, busy, null, "Up to the first token, enlarged", `${number(first)} ms`);
  }
  const step = r.itl[i]?.[0];
  $("timelinecap").textContent = [
    traced ? "Solid: the device works (height is the share of the time, from traced requests). Hatched: it waits for the host." : "Whether the device works or waits was not traced in this run.",
    r.itl[i] ? (step > 1 ? `Decode is cut at every ${step} tokens.` : "Decode is cut at every token.") : r.stages.dec ? "The times between this request’s tokens are not in the page." : "",
    r.said,
  ].filter(Boolean).join(" ");
  return { height: y + 4, marks, label: `Timeline of ${words(i)}: ${all.map((s) => `${s.name} ${number(s.ms)} ms`).join(", ")}` };
}

function lane(svg, width, all, from, to, top, marks, busy, itl, title, sum) {
  const x = linear(from, to, 0, width), traced = Object.keys(busy).length > 0;
  svg.append(draw("text", { class: "b", x: 0, y: top - 5 }, title), draw("text", { class: "b", x: width, y: top - 5, "text-anchor": "end" }, sum));
  let at = 0;
  for (const s of all) {
    const x1 = x(at), x2 = x(at + s.ms), w = Math.max(x2 - x1, 0.7);
    svg.append(draw("rect", { class: `seg c-${s.code}`, x: x1, y: top, width: w, height: 32 }));
    if (s.code === "dec" && itl) steps(svg, x, at, itl, top);
    if (traced) {
      const share = busy[s.code] ?? 0;
      svg.append(draw("rect", { fill: "url(#wait)", x: x1, y: top + 36, width: w, height: 18 }));
      svg.append(draw("rect", { class: "c-dev", x: x1, y: top + 54 - 18 * share, width: w, height: 18 * share }));
    }
    const brief = s.short || s.name, text = [`${s.name} ${number(s.ms)}`, `${brief} ${number(s.ms)}`, brief].find((t) => w > t.length * 6.6 + 8);
    if (text) {
      if (s.code === "dec" && itl) svg.append(draw("rect", { class: "c-dec", x: (x1 + x2) / 2 - text.length * 3.5 - 4, y: top + 8, width: text.length * 7 + 8, height: 16 }));
      svg.append(draw("text", { class: `on-${s.code} b`, x: (x1 + x2) / 2, y: top + 20, "text-anchor": "middle" }, text));
    }
    const works = traced && busy[s.code] != null ? [`device works ${percent(busy[s.code])} of it`] : [];
    marks.push({ x1, x2: x1 + w, y1: top, y2: top + (traced ? 54 : 32), say: [s.name, `${number(s.ms)} ms, ${percent(s.ms / requests().ms[S.request])} of the request`, ...works] });
    at += s.ms;
  }
  const bottom = top + (traced ? 56 : 36);
  axisX(svg, x, 0, width, bottom, { unit: "ms" });
  return bottom + 22;
}

function steps(svg, x, from, itl, top) {
  if (itl.length > 130) return;
  let at = from, path = "";
  for (const ms of itl.slice(1, -1)) { at += ms; path += `M${x(at).toFixed(1)} ${top}v32`; }
  svg.append(draw("path", { d: path, stroke: "var(--on-dec)", "stroke-width": 0.7, opacity: 0.55, fill: "none" }));
}

// ---------------------------------------------------------------- the roofline

function si(value) {
  for (const [scale, prefix] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) if (value >= scale) return `${tickText(value / scale)} ${prefix}`;
  return tickText(value);
}

// Names (text, x, y, kind) beside points (x, y, kind), those on the right first: they have least room. A name stands where
// it covers nothing and the nearest point is of its kind; where there is no such place, a thin line leads to it.
function nameAll(svg, names, points, taken, left, right) {
  const pen = make("canvas").getContext("2d");
  pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  for (const [text, cx, cy, kind] of [...names].sort((a, b) => b[1] - a[1])) {
    const w = pen.measureText(text).width, over = Math.max(left, Math.min(cx - w / 2, right - w));
    const sides = [[cx + 10, cy + 4], [cx - 10 - w, cy + 4]];
    for (const dy of [0, -4, 14, 28]) for (const base of [cy - 12 - dy, cy + 20 + dy]) sides.push([over, base], [cx + 10, base], [cx - 10 - w, base]);
    const far = ([x1, base], [px, py]) => Math.hypot(Math.max(x1 - px, 0, px - x1 - w), Math.max(base - 9 - py, 0, py - base - 2));
    const free = ([x1, base]) => base > 10 && x1 >= left && x1 + w <= right && taken.every(([a, b, c, d]) => x1 + w < a || x1 > b || base + 2 < c || base - 9 > d);
    const nearest = (at, mine) => Math.min(...points.filter((p) => (p[2] === kind) === mine).map((p) => far(at, p)));
    const own = (at) => nearest(at, true) + 1 < nearest(at, false);
    const at = sides.find((side) => free(side) && own(side)) || sides.find(free) || (cx > right - w - 10 ? sides[1] : sides[0]);
    if (!own(at)) svg.append(draw("path", { d: `M${cx} ${cy}L${Math.max(at[0], Math.min(cx, at[0] + w))} ${at[1] < cy ? at[1] + 2 : at[1] - 9}`, stroke: "var(--muted)", "stroke-width": 0.8, fill: "none" }));
    svg.append(draw("text", { class: "s name", x: at[0], y: at[1] }, text));
    taken.push([at[0], at[0] + w, at[1] - 9, at[1] + 2]);
  }
}

function paintRoof(svg, width) {
  const found = part()?.roofline;
  $("roofblock").hidden = !found;
  if (!found) return {};
  const xs = found.points.map((p) => p[1]), ys = found.points.map((p) => p[2]), peaks = found.peaks, marks = [];
  const ridge = peaks ? peaks[0] / peaks[1] : null, left = 52, bottom = printing ? 150 : 232;
  const x = logarithmic(Math.min(...xs, ridge ?? Infinity) / 2.5, Math.max(...xs, ridge ?? 0) * 4, left, width - 6);
  const y = logarithmic(Math.min(...ys) / 3, Math.max(...ys, peaks?.[0] ?? 0) * 2.2, bottom, 30);
  for (const v of y.ticks(5)) svg.append(draw("line", { class: "grid", x1: left, x2: width - 6, y1: y(v), y2: y(v) }), draw("text", { class: "s m", x: left - 6, y: y(v) + 4, "text-anchor": "end" }, si(v)));
  axisX(svg, x, left, width - 6, bottom, {});
  svg.append(draw("text", { class: "s m", x: width - 6, y: bottom + 32, "text-anchor": "end" }, "FLOP per byte, at least"));
  if (peaks) {
    const start = x.back(left), at = Math.max(start, y.back(bottom) / peaks[1]);
    svg.append(draw("path", { class: "whisker", d: `M${x(at)} ${y(at * peaks[1])}L${x(ridge)} ${y(peaks[0])}H${width - 6}` }));
    svg.append(draw("text", { class: "s", x: width - 6, y: y(peaks[0]) - 5, "text-anchor": "end" }, `${si(peaks[0])}FLOP/s, ${si(peaks[1])}B/s`));
  }
  const named = new Map(), taken = found.points.slice(0, 40).map(([, intensity, rate]) => [x(intensity) - 5, x(intensity) + 5, y(rate) - 5, y(rate) + 5]);
  if (peaks) {
    taken.push([width - 160, width, y(peaks[0]) - 15, y(peaks[0]) - 2]);
    for (let px = left; px < width; px += 3) { const roof = y(Math.min(peaks[0], x.back(px) * peaks[1])); taken.push([px, px + 3, roof - 2, roof + 2]); }
  }
  svg.append(draw("text", { class: "s m", x: 0, y: 11 }, "FLOP a second"));
  for (const [code, intensity, rate, point] of found.points) {
    const cx = x(intensity), cy = y(rate), roof = peaks ? Math.min(peaks[0], intensity * peaks[1]) : null;
    svg.append(draw("circle", { class: `c-${code} seg`, cx, cy, r: 6 }));
    if (!named.has(code)) named.set(code, [STAGES[code], cx, cy, code]);
    marks.push({ x: cx, y: cy, say: [`${STAGES[code]}${point ? `, ${alone(point)}` : ""}`, `${si(rate)}FLOP/s at ${number(intensity)} FLOP per byte`, roof ? `${percent(rate / roof)} of the roof there` : "the roof is not known"] });
  }
  nameAll(svg, named.values(), found.points.map(([code, intensity, rate]) => [x(intensity), y(rate), code]), taken, left, width - 6);
  $("roofcap").textContent = `${peaks ? `Line: what the device can do at most (${found.source || "peaks of the device"}). A stage below the slope is held by memory at best, below the level by computing.` : "No roof: what this device can do at most is not known."}${found.left ? ` ${found.left} more points are not drawn.` : ""}`;
  return { height: bottom + 38, marks };
}
