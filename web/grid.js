// Optimizers by learning rates: what came of each pair, as a table whose cells are coloured. A table, and not a drawing, because
// then it can be read aloud, and plotly's heat map breaks the page's policy.

import { h } from "./dom.js";
import { byOptimizer, rateOf, rateText } from "./encoding.js";
import { live } from "./live.js";
import { duration, loss, percent, t } from "./text.js";

/** What a cell may show of a run: its value (null when there is none yet), how it is written, and whether more is better. */
const MEASURES = {
  accuracy: { of: (job) => job.result?.test_accuracy ?? null, text: percent, moreIsBetter: true },
  loss: { of: (job) => (job.terminal ? (job.latest?.loss ?? null) : null), text: loss, moreIsBetter: false },
  time: { of: (job) => job.result?.seconds ?? null, text: duration, moreIsBetter: false },
};
let measure; // of the table that is there

/** The table of these runs, of what `showing` says. `onPick(ids)` is told whose cell was chosen. */
export function grid(ids, { onPick, showing }) {
  measure = showing.measure;
  const jobs = ids.map((id) => live.jobs.get(id)).filter(Boolean);
  const place = h("div.grid");
  const fill = () => place.replaceChildren(choice(choose), h("div.scroll", {}, table(jobs, onPick)), hint(jobs));
  const choose = (name) => {
    measure = name;
    showing.set({ measure });
    fill();
    place.querySelector("select").focus();
  };
  fill();
  return place;
}

function choice(choose) {
  const options = Object.keys(MEASURES).map((name) =>
    h("option", { value: name, selected: name === measure }, t(`grid.${name}`)),
  );
  return h(
    "label.row.small",
    {},
    t("grid.show"),
    h("select", { onchange: ({ target }) => choose(target.value) }, options),
  );
}

function table(jobs, onPick) {
  const optimizers = [...new Set(jobs.map((job) => job.spec.optimizer.name))].sort(byOptimizer);
  const rates = new Map(jobs.map((job) => [rateText(job.spec), rateOf(job.spec)]));
  const columns = [...rates].sort(([, a], [, b]) => b - a).map(([text]) => text);
  const cells = new Map(); // "optimizer rate" -> its jobs
  for (const job of jobs) {
    const key = `${job.spec.optimizer.name} ${rateText(job.spec)}`;
    cells.set(key, [...(cells.get(key) ?? []), job]);
  }
  const shade = shading([...cells.values()].map((jobs) => settingsOf(jobs)[0].mean?.value ?? null));
  return h(
    "table",
    {},
    h("caption.hidden-text", {}, t("grid.caption", { what: t(`grid.${measure}`) })),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        h("td"),
        columns.map((rate) => h("th", { scope: "col" }, rate)),
      ),
    ),
    h(
      "tbody",
      {},
      optimizers.map((name) =>
        h(
          "tr",
          {},
          h("th", { scope: "row" }, name),
          columns.map((rate) => cell(cells.get(`${name} ${rate}`), shade, onPick)),
        ),
      ),
    ),
  );
}

/** What is measured, over the runs that have it: its mean and how many they are. Null when none has it. */
function mean(jobs) {
  const values = jobs.map(MEASURES[measure].of).filter((value) => value !== null);
  return values.length
    ? { value: values.reduce((sum, value) => sum + value, 0) / values.length, n: values.length }
    : null;
}

/** The runs of a cell by what they share beside the seed: only such may be averaged. The best first, those without a value last. */
function settingsOf(jobs) {
  const groups = new Map();
  for (const job of jobs) {
    const { seed, name, tags, device, max_runtime_s, log_every, ...rest } = job.spec;
    const key = JSON.stringify(rest);
    groups.set(key, [...(groups.get(key) ?? []), job]);
  }
  const found = [...groups.values()].map((members) => ({ jobs: members, mean: mean(members) }));
  const sign = MEASURES[measure].moreIsBetter ? -1 : 1;
  return found.sort((a, b) =>
    a.mean && b.mean ? sign * (a.mean.value - b.mean.value) : (a.mean ? 0 : 1) - (b.mean ? 0 : 1),
  );
}

function cell(jobs, shade, onPick) {
  if (!jobs) return h("td");
  const settings = settingsOf(jobs);
  const [best] = settings;
  const outcomes = [...new Set(best.jobs.map((job) => live.overview(job.id)?.verdict?.outcome).filter(Boolean))];
  const share = shade(best.mean?.value ?? null);
  return h(
    "td",
    {},
    h(
      "button.cell",
      {
        type: "button",
        dataset: { share },
        style: { "--share": share },
        onclick: () => onPick(jobs.map((job) => job.id)),
      },
      h("span", {}, best.mean ? MEASURES[measure].text(best.mean.value) : waiting(best.jobs)),
      h("small", {}, outcomes.map((outcome) => t(`verdict.${outcome}`)).join(", ")),
      h(
        "small",
        {},
        [seeds(best), settings.length > 1 && t("grid.settings", { n: settings.length })].filter(Boolean).join(" · "),
      ),
    ),
  );
}

/** How many runs a mean is of, where that is not plain. */
function seeds({ jobs, mean: found }) {
  if (jobs.length < 2 || !found) return "";
  return found.n < jobs.length ? t("grid.some", { n: found.n, all: jobs.length }) : t("grid.mean", { n: found.n });
}

function waiting(jobs) {
  const running = jobs.find((job) => job.status === "running");
  return running ? percent(running.progress.fraction, 0) : t(`status.${jobs[0].status}`);
}

/**
 * How strongly a value is coloured, 0 (worst) to 1 (best). An accuracy counts by the logarithm of its error, the others by their
 * own: from 98 to 99 % is as far as from 80 to 90 %.
 */
function shading(values) {
  const { moreIsBetter } = MEASURES[measure];
  const cost = (value) => Math.log(Math.max(moreIsBetter ? 1 - value : value, 1e-4));
  const costs = values.filter((value) => value !== null).map(cost);
  const [least, most] = [Math.min(...costs), Math.max(...costs)];
  return (value) => {
    if (value === null) return "0.00";
    return (most > least ? (most - cost(value)) / (most - least) : 1).toFixed(2);
  };
}

function hint(jobs) {
  const ended = jobs.filter((job) => MEASURES[measure].of(job) !== null).length;
  return h("p.muted.small", {}, t("grid.hint", { ended, all: jobs.length }));
}
