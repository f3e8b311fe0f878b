// Parallel coordinates: each run a line over what was chosen and what came of it. As SVG of our own, because plotly's is drawn by
// WebGL code that the page's policy forbids. Dragging along an axis keeps only the runs that pass there.

import { add, h, s } from "./dom.js";
import { byOptimizer, colouring, dashOf, isRangeTest, labelOf, rateOf } from "./encoding.js";
import { live } from "./live.js";
import { duration, loss, percent, t } from "./text.js";

const [WIDTH, HEIGHT, SIDE] = [1000, 340, 60];
const [HIGH, LOW] = [44, HEIGHT - 20];

function named(found) {
  const values = found.sort(byOptimizer);
  const step = (LOW - HIGH) / Math.max(values.length - 1, 1);
  return { y: (value) => HIGH + values.indexOf(value) * step, ticks: values };
}

function scaled(values, measure) {
  const costs = values.map(measure);
  const [least, most] = [Math.min(...costs), Math.max(...costs)];
  const y = (value) =>
    most > least ? LOW - ((measure(value) - least) / (most - least)) * (LOW - HIGH) : (LOW + HIGH) / 2;
  return { y, ticks: spread(values, y) };
}

const linear = (values) => scaled(values, (value) => value);
const logarithmic = (values) => scaled(values, (value) => Math.log(Math.max(value, 1e-12)));
const errors = (values) => scaled(values, (value) => -Math.log(Math.max(1 - value, 1e-4)));

/** Values to write at an axis: the ends, and others that leave room for their text. */
function spread(values, y) {
  const shown = [];
  for (const value of [...values].sort((a, b) => y(a) - y(b))) {
    if (!shown.length || y(value) - y(shown.at(-1)) > 18) shown.push(value);
  }
  return shown;
}

/** An axis: the value of a run, how it is written, and its scale. Those marked `varies` are left out where all runs agree. */
const AXES = {
  optimizer: { of: (job) => job.spec.optimizer.name, text: (value) => value, scale: named },
  rate: { of: (job) => rateOf(job.spec), text: (value) => String(value), scale: logarithmic },
  batch_size: { of: (job) => job.spec.batch_size, text: String, scale: logarithmic, varies: true },
  epochs: { of: (job) => job.spec.epochs, text: String, scale: linear, varies: true },
  seed: { of: (job) => job.spec.seed, text: String, scale: linear, varies: true },
  loss: { of: (job) => job.latest?.loss, text: loss, scale: logarithmic },
  time: { of: (job) => job.result?.seconds, text: duration, scale: linear },
  accuracy: { of: (job) => job.result?.test_accuracy, text: (value) => percent(value, 1), scale: errors },
};
let kept = new Map(); // axis -> [from, to], heights in the drawing that is there now
let showKept = null; // in that drawing: a new one may take its place while somebody drags
let isDragging = false;

/** The drawing of these runs, of what `showing` says. `onPick(ids)` is told which line was chosen. */
export function parallel(ids, { onPick, showing }) {
  if (!isDragging) kept = keptOf(showing.kept);
  const jobs = ids.map((id) => live.jobs.get(id)).filter((job) => job && !isRangeTest(job.spec));
  const axes = axesOf(jobs);
  const svg = s("svg.parallel", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    role: "group",
    "aria-label": t("parallel.label"),
  });
  const lines = linesOf(jobs, axes, onPick);
  const brushes = axes.map(({ name, x }) => ({ name, element: s("rect.brush", { x: x - 7, width: 14 }) }));
  showKept = () => {
    for (const { element, ys } of lines) element.classList.toggle("left-out", !passes(ys));
    for (const { name, element } of brushes) {
      const [from, to] = kept.get(name) ?? [0, 0];
      element.setAttribute("y", from);
      element.setAttribute("height", to - from);
    }
  };
  add(
    svg,
    lines.map(({ element }) => element),
    axes.map((axis) => drawn(axis, showing)),
    brushes.map(({ element }) => element),
  );
  showKept();
  return h("div.scroll", {}, svg, h("p.muted.small", {}, t("parallel.hint")));
}

/** The axes that have something to tell, each with its place `x` and its scale `y`. */
function axesOf(jobs) {
  const found = [];
  for (const [name, { of, text, scale, varies }] of Object.entries(AXES)) {
    const values = jobs.map(of).filter((value) => value !== null && value !== undefined && !Number.isNaN(value));
    if (!values.length || (varies && new Set(values).size < 2)) continue;
    found.push({ name, of, text, ...scale([...new Set(values)]) });
  }
  const step = (WIDTH - 2 * SIDE) / Math.max(found.length - 1, 1);
  return found.map((axis, index) => ({ ...axis, x: SIDE + index * step }));
}

function linesOf(jobs, axes, onPick) {
  const colour = colouring(jobs.map((job) => job.spec));
  return jobs.map((job) => {
    const points = axes
      .map(({ name, of, x, y }) => ({ name, x, value: of(job), y }))
      .filter(({ value }) => value !== null && value !== undefined && !Number.isNaN(value))
      .map(({ name, x, y, value }) => ({ name, x, y: y(value) }));
    const path = points.map(({ x, y }, index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
    const element = s(
      "path.run",
      { d: path, stroke: colour(job.spec), tabindex: 0, role: "button", "aria-label": labelOf(job), "data-id": job.id },
      s("title", {}, labelOf(job)),
    );
    const dash = dashOf(job.spec);
    if (dash !== "solid") element.setAttribute("stroke-dasharray", dash.replaceAll("px", ""));
    element.onclick = () => onPick([job.id]);
    element.onkeydown = (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault(); // of the page by Space
      onPick([job.id]);
    };
    return { element, ys: new Map(points.map(({ name, y }) => [name, y])) };
  });
}

/** Whether a line passes through what is kept of every axis. */
function passes(ys) {
  return [...kept].every(([name, [from, to]]) => !ys.has(name) || (ys.get(name) >= from && ys.get(name) <= to));
}

/** What the address says is kept: `accuracy:44-120,rate:60-90`. What is not of that form is left out. */
function keptOf(text) {
  const found = [...text.matchAll(/(\w+):(\d+)-(\d+)/g)].filter(([, name]) => name in AXES);
  return new Map(found.map(([, name, from, to]) => [name, [Number(from), Number(to)]]));
}

const keptText = () => [...kept].map(([name, [from, to]]) => `${name}:${from}-${to}`).join(",");

function drawn({ name, x, ticks, y, text }, showing) {
  const onpointerdown = (event) => brush(event, name, showing);
  return s(
    "g.axis",
    {},
    s("line", { x1: x, x2: x, y1: HIGH, y2: LOW }),
    s("text.name", { x, y: 16, "text-anchor": "middle" }, t(`parallel.${name}`)),
    ticks.map((value) => s("text", { x: x + 9, y: y(value) + 4 }, text(value))),
    s(
      "rect.handle",
      { x: x - 16, y: HIGH - 8, width: 32, height: LOW - HIGH + 16, onpointerdown },
      s("title", {}, t("parallel.hint")),
    ),
  );
}

/** Keep what is dragged over from here on; a mere click keeps all again. */
function brush(event, name, showing) {
  event.preventDefault(); // no text is selected meanwhile
  const box = event.target.ownerSVGElement.getBoundingClientRect();
  const height = ({ clientY }) => Math.round(Math.max(((clientY - box.top) / box.height) * HEIGHT, 0));
  const began = height(event);
  const stop = new AbortController();
  const move = (moved) => {
    const now = height(moved);
    if (Math.abs(now - began) < 4) kept.delete(name);
    else kept.set(name, [Math.min(began, now), Math.max(began, now)]);
    showKept();
  };
  const end = () => {
    stop.abort();
    isDragging = false;
    showing.set({ kept: keptText() });
  };
  isDragging = true;
  move(event);
  addEventListener("pointermove", move, { signal: stop.signal });
  for (const name of ["pointerup", "pointercancel"]) addEventListener(name, end, { signal: stop.signal });
}
