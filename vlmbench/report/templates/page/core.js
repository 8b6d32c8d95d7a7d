// What every chart needs: the data, the state of the page, drawing, scales, hints, keys. No library.

const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const STAGES = Object.fromEntries(D.stages);
const BEFORE_FIRST = ["vid", "pre", "tra", "set", "vis", "pro", "fil"];
const S = {
  story: 0, part: 0, request: null, group: null, hidden: {}, zoom: {}, stage: "T_total", share: false, firsts: true,
  latency: "TTFT_p50", rate: "requests_per_s", filter: { model: "", runtime: "", device: "", sweep: "", text: "" }, shown: 24, made: 0,
};
let printing = false;

// ---------------------------------------------------------------- elements

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value == null) continue;
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((c) => c != null));
  return node;
}

function draw(tag, attributes = {}, text = null) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) if (value != null) node.setAttribute(name, value);
  if (text != null) node.textContent = text;
  return node;
}

// A name of a user inside a sentence keeps its own direction (right-to-left names would turn the sentence round).
const alone = (text) => `\u2068${text}\u2069`;

// ---------------------------------------------------------------- numbers

function number(value, digits = 3) {
  if (value == null || !isFinite(value)) return "–";
  if (value === 0) return "0";
  const places = Math.min(Math.max(digits - 1 - Math.floor(Math.log10(Math.abs(value))), 0), 8);
  const rounded = Number(value.toPrecision(digits));
  return rounded.toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places }).replace("-", "−");
}
const percent = (share) => `${share >= 0.9995 ? "100" : number(100 * share, share < 0.001 ? 1 : 3)} %`;
const count = (n, one) => `${n.toLocaleString("en-US")} ${n === 1 ? one : one + "s"}`;
const whole = (n) => (n == null ? "–" : Number(n).toLocaleString("en-US"));

function quantile(sorted, share) {
  if (!sorted.length) return null;
  const place = (sorted.length - 1) * share, low = Math.floor(place), high = Math.ceil(place);
  return sorted[low] + (sorted[high] - sorted[low]) * (place - low);
}

// ---------------------------------------------------------------- scales

function linear(low, high, from, to) {
  const span = high - low || 1;
  const scale = (v) => from + ((v - low) / span) * (to - from);
  scale.back = (x) => low + ((x - from) / (to - from)) * span;
  scale.ticks = (n) => {
    const raw = span / Math.max(n, 1), power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((k) => k * power).find((s) => s >= raw * 0.999);
    const found = [];
    for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + 1e-9 * span; v += step) found.push(Math.abs(v) < step / 1e6 ? 0 : v);
    return found;
  };
  return scale;
}

function logarithmic(low, high, from, to) {
  const a = Math.log(low), span = Math.log(high) - a || 1;
  const scale = (v) => from + ((Math.log(v) - a) / span) * (to - from);
  scale.back = (x) => Math.exp(a + ((x - from) / (to - from)) * span);
  scale.ticks = (n) => {
    if (high / low < 4) return linear(low, high, from, to).ticks(n).filter((v) => v > 0);
    const found = [];
    const parts = high / low > 10 ** (n / 1.5) ? [1] : high / low > 10 ** (n / 3) ? [1, 3] : high / low > 20 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++)
      for (const part of parts) if (part * 10 ** e >= low * 0.999 && part * 10 ** e <= high * 1.001) found.push(part * 10 ** e);
    return found;
  };
  return scale;
}

const tickText = (v) => (Math.abs(v) >= 1 || v === 0 ? Number(v.toPrecision(4)).toLocaleString("en-US") : String(Number(v.toPrecision(3)))).replace("-", "−");

function axisX(svg, scale, left, right, y, { unit = "", ticks = null, text = tickText } = {}) {
  svg.append(draw("line", { class: "axis", x1: left, x2: right, y1: y, y2: y }));
  const wanted = (ticks || scale.ticks(Math.max(3, (right - left) / 110))).filter((v) => scale(v) >= left - 1 && scale(v) <= right + 1);
  let next = Infinity;  // from the right: the last tick carries the unit and is always named
  [...wanted].reverse().forEach((v, i) => {
    const x = scale(v), label = text(v) + (i === 0 && unit ? ` ${unit}` : ""), half = label.length * 3.4;
    svg.append(draw("line", { class: "axis", x1: x, x2: x, y1: y, y2: y + 4 }));
    const anchor = x + half > right + 6 ? "end" : x - half < left - 6 ? "start" : "middle";
    const at = anchor === "end" ? right : x, begin = anchor === "end" ? right - 2 * half : anchor === "start" ? x : x - half;
    if (begin + 2 * half > next - 8) return;
    svg.append(draw("text", { class: "s m", x: at, y: y + 17, "text-anchor": anchor }, label));
    next = begin;
  });
}

// ---------------------------------------------------------------- charts: one tab stop each, hints, keys, zoom

const charts = new Map();

// A chart is a function (svg, width, height is its own) that returns { height, marks, label, zoom }.
// Marks: { x, y | x1, x2, y1, y2, say: [title, line…], pick: function }.
function chart(id, paint, options = {}) {
  const box = $(id);
  if (!box) return;
  charts.set(id, { id, box, paint, options, at: -1 });
  box.tabIndex = 0;
  box.setAttribute("role", options.role || "group");
  box.setAttribute("aria-roledescription", "chart");
  box.setAttribute("aria-label", box.dataset.label || "");
  box.addEventListener("keydown", (event) => keyed(charts.get(id), event));
  box.addEventListener("blur", () => { unmark(charts.get(id)); });
  box.addEventListener("pointermove", (event) => pointed(charts.get(id), event, false));
  box.addEventListener("pointerleave", hideTip);
  box.addEventListener("click", (event) => pointed(charts.get(id), event, true));
  if (options.zoom) brush(charts.get(id));
}

function repaint(id) {
  const one = charts.get(id);
  if (!one) return;
  const width = printing ? one.options.printWidth || 690 : Math.floor(one.box.clientWidth);
  if (!width) return;
  const svg = draw("svg", { "aria-hidden": "true", focusable: "false" });
  const made = one.paint(svg, width) || {};
  one.box.hidden = !made.height;
  one.box.replaceChildren();
  if (!made.height) return;
  svg.setAttribute("viewBox", `0 0 ${width} ${made.height}`);
  svg.setAttribute("width", width);
  svg.setAttribute("height", made.height);
  one.box.append(svg);
  Object.assign(one, { svg, width, marks: made.marks || [], scale: made.scale, at: -1 });
  if (made.label) one.box.setAttribute("aria-label", made.label);
}

const repaintAll = () => { for (const id of charts.keys()) repaint(id); };

function place(one, event) {
  const box = one.svg.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * one.width, ((event.clientY - box.top) / box.width) * one.width];
}

function nearest(marks, x, y, reach) {
  let best = null, least = reach;
  for (const mark of marks) {
    const dx = mark.x1 != null ? Math.max(mark.x1 - x, 0, x - mark.x2) : Math.abs(mark.x - x);
    const dy = mark.y1 != null ? Math.max(mark.y1 - y, 0, y - mark.y2) : Math.abs(mark.y - y);
    const distance = Math.hypot(dx, dy);
    if (distance < least || (distance === 0 && least === 0)) [best, least] = [mark, distance];
  }
  return best;
}

function pointed(one, event, clicked) {
  if (!one.svg || one.dragging || (clicked && one.dragged)) return;
  const mark = nearest(one.marks, ...place(one, event), event.pointerType === "touch" ? 24 : 14);
  one.box.style.cursor = mark?.pick ? "pointer" : "";
  if (!mark) { hideTip(); return; }
  showTip(mark.say, event.clientX, event.clientY);
  if (clicked && mark.pick) mark.pick();
}

const tip = make("div", { class: "tip", hidden: true });
document.body.append(tip);
function showTip(lines, x, y) {
  tip.replaceChildren(make("b", {}, lines[0]), ...lines.slice(1).map((line) => make("span", { style: "display:block" }, line)));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(6, Math.min(x + 14, innerWidth - box.width - 8))}px`;
  tip.style.top = `${y + 18 + box.height > innerHeight ? Math.max(6, y - box.height - 12) : y + 18}px`;
}
function hideTip() { tip.hidden = true; }
addEventListener("scroll", hideTip, { passive: true });

let saying = 0;
function say(text) {
  clearTimeout(saying);
  saying = setTimeout(() => { $("live").textContent = text; }, 60);
}

function unmark(one) { one.svg?.querySelector(".focusring")?.remove(); hideTip(); }

function keyed(one, event) {
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageUp: 10, PageDown: -10 };
  if (event.key === "Escape") { unmark(one); one.at = -1; return; }
  if (one.options.zoom && ["+", "=", "-", "0"].includes(event.key)) {
    zoomBy(one, event.key === "-" ? 2 : event.key === "0" ? 0 : 0.5);
    event.preventDefault();
    return;
  }
  if (one.options.keys && one.options.keys(event)) { event.preventDefault(); return; }
  const marks = one.marks || [];
  if (!marks.length || !(event.key in steps || ["Home", "End", "Enter", " "].includes(event.key))) return;
  event.preventDefault();
  if ((event.key === "Enter" || event.key === " ") && one.at >= 0) { marks[one.at].pick?.(); return; }
  const next = event.key === "Home" ? 0 : event.key === "End" ? marks.length - 1 : one.at + (steps[event.key] || 1);
  one.at = Math.max(0, Math.min(marks.length - 1, next));
  const mark = marks[one.at];
  unmark(one);
  const x1 = mark.x1 ?? mark.x - 6, x2 = mark.x2 ?? mark.x + 6, y1 = mark.y1 ?? mark.y - 6, y2 = mark.y2 ?? mark.y + 6;
  one.svg.append(draw("rect", { class: "focusring", x: x1 - 1, y: y1 - 1, width: x2 - x1 + 2, height: y2 - y1 + 2, rx: 2 }));
  const box = one.svg.getBoundingClientRect(), ratio = box.width / one.width;
  showTip(mark.say, box.left + ((x1 + x2) / 2) * ratio, box.top + y2 * ratio - 8);
  say(mark.say.join(", "));
}

// ---------------------------------------------------------------- zoom along x: drag, + and −, or the buttons

function brush(one) {
  let from = null, rect = null;
  one.box.addEventListener("pointerdown", (event) => {
    one.dragged = false;
    if (event.pointerType === "touch" || event.button || !one.scale || !one.svg) return;
    from = place(one, event)[0];
  });
  addEventListener("pointermove", (event) => {
    if (from == null) return;
    const to = place(one, event)[0];
    if (!one.dragging && Math.abs(to - from) < 6) return;
    one.dragging = true;
    hideTip();
    if (!rect) one.svg.append((rect = draw("rect", { class: "brush", y: 0, height: one.svg.viewBox.baseVal.height })));
    rect.setAttribute("x", Math.min(from, to));
    rect.setAttribute("width", Math.abs(to - from));
  });
  addEventListener("pointerup", (event) => {
    if (from == null) return;
    const to = place(one, event)[0], was = one.dragging;
    rect?.remove();
    const start = from;
    from = rect = null;
    one.dragging = false;
    one.dragged = was;
    if (!was || !one.scale) return;
    setZoom(one, [one.scale.back(Math.min(start, to)), one.scale.back(Math.max(start, to))]);
  });
  one.box.addEventListener("dblclick", () => setZoom(one, null));
}

function setZoom(one, range) {
  const key = one.options.zoom;
  if (range && !(range[1] > range[0])) return;
  S.zoom[key] = range;
  for (const other of charts.values()) if (other.options.zoom === key) repaint(other.id);
  say(range ? `Zoomed to ${number(range[0])} to ${number(range[1])}` : "Whole range");
}

function zoomBy(one, factor) {
  if (!one?.scale) return;
  if (!factor) { setZoom(one, null); return; }
  const [left, right] = one.scale.range;
  const middle = (left + right) / 2, half = ((right - left) / 2) * factor;
  setZoom(one, [one.scale.back(middle - half), one.scale.back(middle + half)]);
}

function zoomButtons(id) {
  const one = () => charts.get(id);
  return [
    make("span", { class: "gap" }),
    make("span", { class: "zoom" }, make("span", { class: "lab" }, "Zoom"),
      make("button", { type: "button", "aria-label": "Zoom in", onclick: () => zoomBy(one(), 0.5) }, "+"),
      make("button", { type: "button", "aria-label": "Zoom out", onclick: () => zoomBy(one(), 2) }, "−"),
      make("button", { type: "button", onclick: () => zoomBy(one(), 0) }, "whole")),
  ];
}

function toggle(label, pressed, onclick) {
  return make("button", { type: "button", "aria-pressed": String(pressed), onclick }, label);
}

// ---------------------------------------------------------------- sentences and tables, as the template writes them

function rich(pieces) {
  return pieces.map((p) => {
    if (typeof p === "string") return document.createTextNode(p);
    return p.b != null ? make("b", {}, p.b) : make("span", { class: p.ci.length > 26 ? "ci long" : "ci" }, p.ci);
  });
}

const icon = (verdict) => {
  const svg = draw("svg", { class: `icon ${verdict}`, "aria-hidden": "true" });
  svg.append(draw("use", { href: `#i-${verdict}` }));
  return svg;
};

function cellParts(c) {
  const found = [];
  if (c.v) found.push(make("span", { class: `verdict ${c.v}` }, icon(c.v), " ", c.t));
  else if (c.pick) found.push(make("button", { type: "button", class: "as-link", "data-pick": c.pick }, make("bdi", {}, c.t)));
  else {
    if (c.sw) found.push(make("span", { class: `sw b-${c.sw}`, "aria-hidden": "true" }));
    found.push(make("bdi", {}, c.t));
  }
  if (c.sub) found.push(make("span", { class: "sub" }, c.sub));
  if (c.bar) found.push(make("span", { class: "meter", "aria-hidden": "true" }, make("i", { class: `b-${c.bar[0]}`, style: `width:${100 * c.bar[1]}%` })));
  if (c.busy != null) found.push(make("span", { class: "meter busy", "aria-hidden": "true" }, make("i", { style: `width:${100 * c.busy}%` })));
  return found;
}

function grid(t) {
  const head = make("tr", {}, ...t.cols.map(([name, right]) => make("th", { scope: "col", class: right ? "r" : null }, name)));
  const body = t.rows.map((row) => make("tr", {}, ...row.map((c, i) => i
    ? make("td", { class: `${t.cols[i][1] ? "r" : ""}${c.t === "–" && !c.sub ? " none" : ""}`, "data-l": t.cols[i][0] }, make("div", {}, ...cellParts(c)))
    : make("th", { scope: "row", class: c.nested ? "nested" : null }, ...cellParts(c)))));
  const table = make("table", { class: `${t.look}${t.rows.length > 16 ? " long" : ""}`, "data-table": t.name },
    make("caption", {}, t.caption), make("thead", {}, head), make("tbody", {}, ...body));
  return make("div", { class: "tablebox" }, table, t.note ? make("p", { class: "cap" }, t.note) : null);
}

// ---------------------------------------------------------------- what is chosen

const story = () => D.stories[S.story];
const detail = () => story().detail;
const part = () => detail()?.parts[S.part];
const requests = () => part()?.requests;

function matches(s) {
  const f = S.filter;
  return (!f.model || s.model === f.model) && (!f.runtime || s.runtime === f.runtime) && (!f.device || s.device === f.device)
    && (!f.sweep || s.sweeps.includes(f.sweep)) && (!f.text || s.label.toLowerCase().includes(f.text.toLowerCase()));
}
const visible = () => D.stories.map((s, i) => [s, i]).filter(([s]) => matches(s));
