// How a run is told apart wherever it is drawn: its colour is its learning rate, its dashes are its optimizer.

import { h } from "./dom.js";
import { t } from "./text.js";

// Okabe and Ito's colours, which people with any kind of colour blindness tell apart; on dark ground some are lighter.
const COLOURS = {
  light: ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#b87900", "#2b9bd6", "#7a5cc9", "#5c6670"],
  dark: ["#ff8a3d", "#56a8e8", "#2fc79b", "#e3a1c6", "#e6b43c", "#8cd0f5", "#b39df0", "#a9b4be"],
};
const LESSON_RATES = [0.1, 0.01, 0.001];
const DASHES = {
  sgd: "solid",
  momentum: "12px,3px",
  adagrad: "2px,3px",
  rmsprop: "8px,3px,2px,3px",
  adam: "5px,4px",
  adamw: "14px,3px,2px,3px,2px,3px",
  adamax: "1px,2px",
  adadelta: "16px,5px",
  nadam: "3px,6px",
  radam: "9px,2px,4px,2px",
  lamb: "20px,3px,3px,3px",
};

const STATUSES = {
  succeeded: "good",
  failed: "bad",
  pausing: "warn",
  paused: "warn",
  cancelling: "warn",
  cancelled: "warn",
};
const VERDICTS = { good: "good", too_slow: "warn", oscillating: "warn", diverged: "bad" };

const chip = (kind, words) => h(`span.chip.${kind ?? "plain"}`, {}, words);

/** How a run stands, and how it was judged, coloured by whether that is good. */
export const statusChip = (status) => chip(STATUSES[status], t(`status.${status}`));
export const verdictChip = ({ outcome }) => chip(VERDICTS[outcome], t(`verdict.${outcome}`));

/** Sorts names of optimizers: the lesson's in its order, then the others. */
export const byOptimizer = (a, b) => Object.keys(DASHES).indexOf(a) - Object.keys(DASHES).indexOf(b);

export const isDark = () =>
  (document.documentElement.dataset.theme ?? "") === "dark" ||
  (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);

/** The rate that a run starts from, of whatever schedule; NaN for a range test's. */
export function rateOf(spec) {
  const rate = spec.learning_rate;
  if (typeof rate === "number") return rate;
  return rate.initial ?? rate.max_learning_rate ?? NaN;
}

/** The rate in words: `0.01`, or `0.1 step_decay`. */
export function rateText(spec) {
  const rate = spec.learning_rate;
  if (typeof rate === "number") return String(rate);
  const from = rateOf(spec);
  return Number.isNaN(from) ? rate.schedule : `${from} ${rate.schedule}`;
}

export const labelOf = (job) => `${job.spec.optimizer.name} ${rateText(job.spec)}`;

export const dashOf = (spec) => DASHES[spec.optimizer.name] ?? "solid";

/** The same as lengths in pixels; none for a solid line. */
export const dashLengths = (dash) => (dash === "solid" ? [] : dash.split(",").map(Number.parseFloat));

/** Whether it is a learning-rate range test, which has a page and a form of its own. */
export const isRangeTest = (spec) => spec.learning_rate.schedule === "range_test";

/** A run's tags as people write them. */
export const tagsOf = (spec) =>
  Object.entries(spec.tags ?? {}).map(([key, value]) => (value ? `${key}: ${value}` : key));

/**
 * A colour for each rate of these runs: the lesson's three always have the same, others take the next that are free, in the order
 * of their size. Returns a function from a spec to its colour.
 */
export function colouring(specs) {
  const colours = COLOURS[isDark() ? "dark" : "light"];
  const rates = new Set(specs.map(rateOf));
  const others = [...rates].filter((rate) => !LESSON_RATES.includes(rate)).sort((a, b) => b - a);
  return (spec) => {
    const rate = rateOf(spec);
    const place = LESSON_RATES.indexOf(rate);
    if (place >= 0) return colours[place];
    const free = colours.slice(LESSON_RATES.length);
    return free[
      Math.max(
        others.findIndex((each) => Object.is(each, rate)),
        0,
      ) % free.length
    ];
  };
}
