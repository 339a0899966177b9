"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const COLOURS = 8, HEIGHT = 190, LEFT = 48, RIGHT = 10, TOP = 8, BOTTOM = 34;
const STYLES = ["", "dashed", "dotted"];
const LABELS = { step: "step", samples: "samples seen", tokens: "tokens seen", seconds: "seconds of training" };
const view = { smoothing: 0, axis: "step", hidden: new Set() };
const several = data.runs.length > 1;

function svg(name, attributes, parent, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function html(name, kind, text) {
  const made = document.createElement(name);
  made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}

// An exponential moving average that begins at the first value (its start is corrected as Adam's averages are).
function smoothed(values, amount) {
  if (!amount) return values;
  let sum = 0, weight = 0;
  return values.map(value => {
    sum = amount * sum + (1 - amount) * value;
    weight = amount * weight + (1 - amount);
    return sum / weight;
  });
}

function between(xs, ys, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) { const middle = (low + high) >> 1; if (xs[middle] <= x) low = middle; else high = middle; }
  if (low === high || xs[high] === xs[low]) return ys[low];
  return ys[low] + (ys[high] - ys[low]) * (x - xs[low]) / (xs[high] - xs[low]);
}

function places(series) {
  if (view.axis === "step") return series.steps;
  const [steps, values] = data.axes[view.axis][series.run];
  return series.steps.map(step => between(steps, values, step));
}

function short(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e15 || size < 1e-3) return value.toExponential(size < 1e-3 && size >= 1e-99 ? 1 : 0).replace(".0e", "e").replace("e+", "e");
  for (const [unit, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (size >= 10 * unit || (size >= unit && unit > 1e3)) return +(value / unit).toPrecision(3) + letter;
  return String(+value.toPrecision(4));
}

function steps(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(factor => factor * power >= rough * 0.999);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9 && found.length < 40; n++) found.push(n * step);
  return found;
}

// The smallest and largest of the series' numbers, by a loop: there may be more than a call can have arguments.
function extent(series, ...names) {
  let low = Infinity, high = -Infinity;
  for (const each of series)
    for (const name of names)
      for (const value of each[name]) { if (value < low) low = value; if (value > high) high = value; }
  return [low, high];
}

function powers(low, high) {
  const found = [], span = Math.log10(high / low);
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const factor of span > 3 ? [1] : span > 1.2 ? [1, 3] : [1, 2, 3, 5, 7]) {
      const tick = factor * 10 ** power;
      if (tick >= low * 0.999 && tick <= high * 1.001) found.push(tick);
    }
  const every = Math.ceil(found.length / 6);
  return found.length < 2 ? steps(low, high, 4) : found.filter((_, index) => index % every === 0);
}

function scale(low, high, from, to, log) {
  const at = log ? Math.log : value => value;
  const a = at(low), b = at(high);
  return value => from + (to - from) * (b === a ? 0.5 : (at(value) - a) / (b - a));
}

function path(xs, ys) {
  return xs.map((x, index) => `${index ? "L" : "M"}${x.toFixed(1)} ${ys[index].toFixed(1)}`).join("");
}

class Chart {
  constructor(card) {
    this.card = card;
    this.chart = data.charts[card.dataset.chart];
    this.metrics = [...new Set(this.chart.series.map(series => series.metric))];
    this.button = card.querySelector(".log");
    this.log = this.chart.log;
    this.button.addEventListener("click", () => { this.log = !this.log; this.draw(); });
    this.body = html("div", "body");
    card.append(this.body);
  }

  look(series) {
    const metric = this.metrics.indexOf(series.metric);
    return several ? { colour: series.run % COLOURS, style: STYLES[metric % 3] } : { colour: metric % COLOURS, style: "" };
  }

  visible() {
    const shown = this.chart.series.filter(series => !view.hidden.has(series.run));
    return shown.map(series => {
      const keep = series.values.map((value, index) => index).filter(index => !this.log || series.values[index] > 0);
      const xs = places(series), values = keep.map(index => series.values[index]);
      return { ...series, ...this.look(series), xs: keep.map(index => xs[index]), values, ys: smoothed(values, view.smoothing) };
    }).filter(series => series.xs.length);
  }

  draw() {
    const width = this.card.clientWidth - 26;
    if (width < 60) return;
    this.button.setAttribute("aria-pressed", this.log);
    const shown = this.visible();
    this.body.replaceChildren();
    if (!shown.length) return this.body.append(html("p", "nothing", this.log ? "nothing above zero to show" : "hidden"));
    const [left, right] = extent(shown, "xs");
    let [low, high] = extent(shown, "ys", "values");
    if (high - low <= 1e-12 * Math.max(-low, high)) { const room = Math.abs(low) * 0.1; low -= room; high += room || 1; }
    else if (!this.log) { const room = (high - low) * 0.04; if (low < 0 || low - room > 0) low -= room; high += room; }
    const x = scale(left, right, LEFT, width - RIGHT, false), y = scale(low, high, HEIGHT - BOTTOM, TOP, this.log);
    const picture = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", "aria-label": this.card.dataset.chart }, this.body);
    for (const tick of this.log ? powers(low, high) : steps(low, high, 5)) {
      svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }, picture);
      svg("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, picture, short(tick));
    }
    const ticks = left === right ? [left] : steps(left, right, Math.max(2, Math.floor(width / 90)));
    for (const tick of ticks) svg("text", { x: x(tick), y: HEIGHT - BOTTOM + 15, "text-anchor": "middle" }, picture, short(tick));
    svg("text", { x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, picture, LABELS[view.axis]);
    for (const series of shown) {
      const px = series.xs.map(x), kind = `curve c${series.colour} ${series.style}`;
      if (view.smoothing) svg("path", { class: `${kind} raw`, d: path(px, series.values.map(y)) }, picture);
      svg("path", { class: kind, d: path(px, series.ys.map(y)) }, picture);
      if (px.length <= 12) px.forEach((at, index) => svg("circle", { class: `c${series.colour}`, cx: at, cy: y(series.ys[index]), r: 2.5 }, picture));
    }
    this.key();
    this.hover(picture, shown, x, y, [left, right], width);
  }

  key() {
    const line = html("div", "key");
    for (const metric of this.metrics) {
      const look = several ? { colour: "soft", style: STYLES[this.metrics.indexOf(metric) % 3] } : this.look({ metric });
      const entry = html("span", "");
      if (this.metrics.length > 1 || !several) {
        const mark = svg("svg", { viewBox: "0 0 22 8" }, entry);
        svg("line", { class: `curve ${several ? "" : "c" + look.colour} ${look.style}`, x1: 0, x2: 22, y1: 4, y2: 4, ...(several ? { style: "--c: var(--soft)" } : {}) }, mark);
      }
      entry.append(metric);
      line.append(entry);
    }
    this.body.append(line);
  }

  hover(picture, shown, x, y, [left, right], width) {
    const cursor = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" }, picture);
    const tip = html("div", "tip");
    tip.hidden = true;
    this.body.append(tip);
    picture.addEventListener("pointerleave", () => { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); });
    picture.addEventListener("pointermove", event => {
      const at = (event.clientX - picture.getBoundingClientRect().left - LEFT) / (width - RIGHT - LEFT);
      const wanted = left + Math.min(1, Math.max(0, at)) * (right - left);
      const near = series => series.xs.reduce((best, place, index) => Math.abs(place - wanted) < Math.abs(series.xs[best] - wanted) ? index : best, 0);
      const first = shown.map(series => series.xs[near(series)]).reduce((a, b) => Math.abs(a - wanted) <= Math.abs(b - wanted) ? a : b);
      cursor.setAttribute("x1", x(first));
      cursor.setAttribute("x2", x(first));
      cursor.setAttribute("visibility", "visible");
      tip.replaceChildren(html("div", "", `${LABELS[view.axis]} ${short(first)}`));
      for (const series of shown) {
        const line = html("div", ""), index = near(series);
        line.append(html("i", `c${series.colour}`), several ? `${data.runs[series.run]}${this.metrics.length > 1 ? " " + series.metric : ""}` : series.metric);
        line.append(html("b", "", String(+series.ys[index].toPrecision(5))));
        tip.append(line);
      }
      tip.hidden = false;
      const room = this.card.clientWidth - tip.offsetWidth - 8;
      tip.style.left = `${Math.max(4, Math.min(room, x(first) + 22))}px`;
      tip.style.top = "34px";
    });
  }
}

const all = [...document.querySelectorAll(".chart")].map(card => new Chart(card));
const draw = () => all.forEach(chart => chart.draw());
const axis = document.getElementById("axis");
for (const name of Object.keys(data.axes)) {
  const option = html("option", "", LABELS[name]);
  option.value = name;
  axis.append(option);
}
axis.addEventListener("change", () => { view.axis = axis.value; draw(); });
document.getElementById("smoothing").addEventListener("input", event => {
  view.smoothing = +event.target.value;
  document.getElementById("amount").textContent = event.target.value;
  draw();
});
for (const chip of document.querySelectorAll(".chip")) chip.addEventListener("click", () => {
  const run = +chip.dataset.run;
  if (!view.hidden.delete(run)) view.hidden.add(run);
  chip.setAttribute("aria-pressed", !view.hidden.has(run));
  draw();
});
for (const slider of document.querySelectorAll(".steps")) slider.addEventListener("input", () => {
  slider.parentElement.querySelectorAll(".frame").forEach((frame, index) => { frame.hidden = index !== +slider.value; });
});
for (const folded of document.querySelectorAll("details")) folded.addEventListener("toggle", draw);
let waiting = 0;
addEventListener("resize", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(draw); });
draw();
})();
