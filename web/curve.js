// A run's curve as it grows: the loss above, the validation accuracy of its epochs below, over one axis.

import { Chart, palette } from "./chart.js";
import { fill, h, renew } from "./dom.js";
import { colouring, dashOf } from "./encoding.js";
import { MOST_SHOWN, shown, smoothed } from "./history.js";
import { loss, number, percent, t } from "./text.js";
import { guessing } from "./traces.js";

const AXES = ["step", "epoch", "time"];

/** What is seen of the curve stands in the address: `x`, `y=log`, `smooth`. */
export function curve(route) {
  const view = {
    x: AXES.includes(route.query.get("x")) ? route.query.get("x") : "step",
    isLog: route.query.get("y") === "log",
    weight: Math.min(Math.max(Number(route.query.get("smooth")) || 0, 0), 0.99),
  };
  const plot = h("div.run-plot", { role: "figure" });
  const note = h("p.muted.small");
  const chart = new Chart(plot);
  let [job, history, drawn] = [null, null, ""];
  const changed = () => {
    route.setQuery({ x: view.x === "step" ? null : view.x, y: view.isLog ? "log" : null, smooth: view.weight || null });
    draw();
  };
  const element = h(
    "section.card.run-curve",
    {},
    h("h2", {}, t("run.curve")),
    controls(view, changed),
    chart.problem,
    plot,
    note,
  );
  return { element, update, gone: () => chart.gone() };

  function update(nowJob, nowHistory) {
    const now = `${nowJob.terminal} ${nowHistory?.step.length} ${nowHistory?.step.at(-1)} ${nowHistory?.epochs.length}`;
    const isSame = history === nowHistory && now === drawn;
    [job, history, drawn] = [nowJob, nowHistory, now];
    if (!isSame) draw();
  }

  function draw() {
    plot.hidden = !history?.step.length;
    if (plot.hidden) return renew(note, job?.terminal, () => t(job?.terminal ? "run.log.none" : "run.log.soon"));
    const { traces, isWhole } = tracesOf(job, history, view);
    plot.setAttribute("aria-label", described(history));
    renew(note, [isWhole, history.count], () =>
      isWhole ? "" : t("run.curve.sampled", { shown: number(MOST_SHOWN), count: number(history.count) }),
    );
    chart.draw(traces, layoutOf(view, job, history)).then((isDrawn) => {
      if (!isDrawn) drawn = ""; // the next change tries again
    });
  }
}

/** For who cannot see it; the tables below have all the numbers. */
const described = (history) =>
  t("run.curve.described", {
    count: number(history.count),
    first: loss(history.loss[0]),
    last: loss(history.lastLoss),
    accuracy: percent(history.epochs.at(-1)?.valid_accuracy),
  });

function controls(view, changed) {
  const buttons = AXES.map((axis) => {
    const choose = (event) => {
      view.x = axis;
      for (const each of buttons) each.setAttribute("aria-pressed", String(each === event.currentTarget));
      changed();
    };
    return h(
      "button",
      { type: "button", "aria-pressed": String(view.x === axis), onclick: choose },
      t(`run.axis.${axis}`),
    );
  });
  const log = h("input", { type: "checkbox", checked: view.isLog });
  log.onchange = () => {
    view.isLog = log.checked;
    changed();
  };
  const weight = h("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: view.weight });
  const told = h("output.small", {}, weightText(view));
  weight.oninput = () => {
    view.weight = weight.valueAsNumber;
    fill(told, weightText(view));
    changed();
  };
  return h(
    "div.row.run-controls.small",
    {},
    h("div.run-axes", { role: "group", "aria-label": t("run.curve.over") }, buttons),
    h("label.row", {}, log, t("run.curve.log")),
    h("label.row", {}, t("run.curve.smooth"), weight, told),
  );
}

const weightText = ({ weight }) => (weight ? number(weight, 2) : t("run.curve.off"));

function tracesOf(job, history, { x, weight }) {
  const kept = shown(history.loss);
  const along = history.along(x);
  const at = kept.map((index) => along[index]);
  const of = (losses) => kept.map((index) => losses[index]);
  const style = { color: colouring([job.spec])(job.spec), dash: dashOf(job.spec), width: 1.8 };
  const raw = weight ? { ...style, dash: "solid", width: 1 } : style;
  const losses = [{ ...line(t("axis.loss"), at, of(history.loss), raw), opacity: weight ? 0.4 : 1 }];
  if (weight)
    losses.push(line(t("run.curve.smoothed"), at, of(smoothed(history.loss, weight)), { ...style, width: 2.4 }));
  const accuracies = history.epochs.map((each) => each.valid_accuracy * 100);
  const below = {
    ...line(t("run.curve.accuracy"), history.epochEnds(x), accuracies, { ...style, dash: "solid" }),
    mode: "lines+markers",
    yaxis: "y2",
    hovertemplate: "%{y:.2f}%",
  };
  return { traces: [...losses, below], isWhole: kept.length === history.count };
}

const line = (name, x, y, style) => ({
  type: "scatter",
  mode: "lines",
  name,
  x,
  y,
  line: style,
  hovertemplate: "%{y:.4g}",
});

/** While a run goes on its axis is as long as it will be, so that the curve grows and the picture does not jump. */
function alongRange({ terminal, progress }, x) {
  if (terminal || x === "time") return { rangemode: "tozero" };
  return { range: [0, x === "epoch" ? progress.epochs : progress.total_steps] };
}

function layoutOf({ x, isLog }, job, history) {
  const { muted } = palette();
  return {
    height: 430,
    uirevision: `${x} ${isLog}`,
    showlegend: false,
    hovermode: "x unified",
    xaxis: { title: { text: t(`axis.${x}`) }, anchor: "y2", ...alongRange(job, x) },
    yaxis: { title: { text: t("axis.loss") }, domain: [0.34, 1], type: isLog ? "log" : "linear", rangemode: "tozero" },
    yaxis2: {
      title: { text: `${t("axis.accuracy")} %` },
      domain: [0, 0.24],
      anchor: "x",
      ...(history.epochs.length ? {} : { range: [0, 100] }),
    },
    ...guessing(isLog, muted),
  };
}
