// What plotly draws of runs: a line for each, over the axes that were chosen.

import { dashOf, labelOf } from "./encoding.js";
import { MOST_SHOWN, shown, smoothed } from "./history.js";
import { t } from "./text.js";

const GUESSING = Math.log(10); // the loss of ten classes that are equally likely

/**
 * The lines of `runs` (see columns.js; each has its history). A smoothed line has its raw one below it, faint. A line is known by
 * its run's id (`uid`).
 */
export function tracesOf(runs, showing, colourOf) {
  const lines = runs.map((run) => ({ ...run, colour: colourOf(run.job.spec), ...columnsOf(run.history, showing) }));
  const isSmooth = showing.weight > 0 && showing.y === "loss";
  const raw = lines.map((line) => lineOf(line, line.y, isSmooth));
  if (!isSmooth) return raw;
  return [...raw, ...lines.map((line) => lineOf(line, smoothed(line.y, showing.weight), false))];
}

function columnsOf(history, { x, y }) {
  if (y === "loss") return { x: history.along(x), y: history.loss };
  return { x: history.epochEnds(x), y: history.epochs.map((each) => each.valid_accuracy) };
}

function lineOf({ id, job, colour, x }, y, isFaint) {
  const kept = shown(y);
  const isFew = y.length < 2 || (y.length <= 20 && job.progress.epochs === y.length); // single points have no line
  return {
    type: "scatter",
    mode: isFew ? "lines+markers" : "lines",
    uid: isFaint ? `raw-${id}` : id,
    name: labelOf(job), // for a picture; words of ours alone, since plotly reads markup in names
    x: kept.map((index) => x[index]),
    y: kept.map((index) => y[index]),
    line: { color: colour, width: isFaint ? 1 : 2, dash: isFaint ? "solid" : dashOf(job.spec) },
    marker: { color: colour, size: 6 },
    opacity: isFaint ? 0.3 : 1,
    hoverinfo: isFaint ? "skip" : "none", // told beside the chart: see readout.js
    showlegend: !isFaint,
    connectgaps: false,
  };
}

/** Runs of which not all points are drawn: `[{id, of}]`. */
export const sampledOf = (runs, { y }) =>
  runs
    .filter(({ history }) => y === "loss" && history.count > Math.min(history.loss.length, MOST_SHOWN))
    .map(({ id, history }) => ({ id, of: history.count, shown: Math.min(history.loss.length, MOST_SHOWN) }));

/** 1, 2 and 5 of each decade: on a log axis that shows some decades plotly names either all digits, small, or none. */
const DECADES = Array.from({ length: 10 }, (_, place) => place - 6).flatMap((power) =>
  [1, 2, 5].map((digit) => digit * 10 ** power),
);
const decades = { tickvals: DECADES, ticktext: DECADES.map((value) => String(Number(value.toPrecision(1)))) };

/** The chart's layout. What somebody zoomed stays until the axis is another. */
export function layoutOf(showing, { muted }) {
  const axis = (name, title) => ({
    title: { text: title, standoff: 8 },
    type: showing.isLog(name) ? "log" : "linear",
    uirevision: `${showing[name]} ${showing.isLog(name)}`,
    ...(showing.zoom(name) ? { range: showing.zoom(name), autorange: false } : { autorange: true }),
  });
  const spike = {
    showspikes: true,
    spikemode: "across",
    spikesnap: "cursor",
    spikethickness: 1,
    spikedash: "solid",
    spikecolor: muted,
  };
  return {
    xaxis: { ...axis("x", t(`axis.${showing.x}`)), ...spike },
    yaxis: {
      ...axis("y", t(`axis.${showing.y}`)),
      ...(showing.y === "accuracy" ? { tickformat: ".1%" } : {}),
      ...(showing.isLog("y") && !showing.zoom("y") ? decades : {}),
    },
    ...(showing.y === "loss" ? guessing(showing.isLog("y"), muted) : {}),
    hovermode: "x",
    hoverdistance: 24,
    showlegend: false,
    uirevision: "the reader's",
  };
}

/** The line of who knows nothing, with its words. */
export function guessing(isLog, colour) {
  const across = { xref: "paper", x0: 0, x1: 1, y0: GUESSING, y1: GUESSING };
  const label = {
    xref: "paper",
    x: 1,
    xanchor: "right",
    y: isLog ? Math.log10(GUESSING) : GUESSING,
    yanchor: "bottom",
  };
  return {
    shapes: [{ type: "line", ...across, line: { color: colour, width: 1, dash: "dash" } }],
    annotations: [{ ...label, text: t("runs.guessing"), showarrow: false, font: { color: colour, size: 11 } }],
  };
}
