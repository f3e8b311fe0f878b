// What the table says of a run, column by column.

import { h } from "./dom.js";
import { isRangeTest, rateOf, rateText, statusChip, tagsOf, verdictChip } from "./encoding.js";
import { shown } from "./history.js";
import { live } from "./live.js";
import { failureOf, ruleOf } from "./refusal.js";
import { sparkline } from "./sparkline.js";
import { ago, duration, loss, moment, percent, said, t } from "./text.js";
import { tipped } from "./tip.js";

const SPARK_POINTS = 64;

/** All that is known of a run. */
export function runOf(id) {
  return { id, job: live.jobs.get(id), history: live.history(id), overview: live.overview(id) };
}

/**
 * `value(run)` is what the column sorts by (null: nothing to say, last), `said(run)` its text, and `cell(run)` what stands in it
 * when that is more than text; a cell is only made anew when its text is another.
 */
export const COLUMNS = [
  {
    name: "optimizer",
    value: ({ job }) => job.spec.optimizer.name,
    said: ({ job }) => job.spec.optimizer.name,
    cell: ({ job }) => h("a", { href: addressOf(job) }, job.spec.optimizer.name),
  },
  {
    name: "rate",
    isNumber: true,
    value: ({ job }) => rateOf(job.spec),
    said: ({ job }) => (isRangeTest(job.spec) ? t("runs.range_test") : rateText(job.spec).replaceAll("_", " ")),
  },
  {
    name: "name",
    value: ({ job }) => job.spec.name?.toLowerCase() ?? null,
    said: ({ job }) => [job.spec.name, ...tagsOf(job.spec)].join("\n"),
    cell: ({ job }) => [
      job.spec.name && `${job.spec.name} `,
      tagsOf(job.spec).map((tag) => h("span.chip.tag", { title: tag }, tag)),
    ],
  },
  { name: "status", value: ({ job }) => job.status, said: statusText, cell: statusCell },
  {
    name: "verdict",
    value: ({ overview }) => overview?.verdict?.outcome ?? null,
    said: ({ overview }) => (overview?.verdict ? t(`verdict.${overview.verdict.outcome}`) : "–"),
    cell: verdictCell,
  },
  { name: "accuracy", isNumber: true, value: bestAccuracy, said: (run) => percent(bestAccuracy(run)) },
  { name: "test", isNumber: true, value: testAccuracy, said: (run) => percent(testAccuracy(run)) },
  {
    name: "loss",
    isNumber: true,
    value: ({ job }) => job.latest?.loss ?? null,
    said: ({ job }) => (job.latest && job.latest.loss === null ? t("runs.not_finite") : loss(job.latest?.loss)),
  },
  { name: "curve", said: sparkText, cell: sparkCell },
  { name: "seconds", isNumber: true, value: secondsOf, said: (run) => duration(secondsOf(run)) },
  {
    name: "created",
    isNumber: true,
    value: ({ id }) => id, // an id's order is that of time
    said: ({ job }) => ago(job.created_at),
    cell: ({ job }) => h("time", { dateTime: job.created_at, title: moment(job.created_at) }, ago(job.created_at)),
  },
];

/** The runs in the order of a column's name, largest first with a `-` before it; what has no value comes last. */
export function sorted(runs, sort) {
  const isFalling = sort.startsWith("-");
  const column = COLUMNS.find(({ name, value }) => value && name === sort.replace("-", "")) ?? COLUMNS.at(-1);
  const valued = runs.map((run) => [column.value(run), run]);
  const isNothing = (value) => value === null || Number.isNaN(value);
  const sign = isFalling ? -1 : 1;
  valued.sort(([a, one], [b, other]) => {
    if (isNothing(a) || isNothing(b)) return isNothing(a) - isNothing(b) || (one.id < other.id ? 1 : -1);
    return a < b ? -sign : a > b ? sign : one.id < other.id ? 1 : -1;
  });
  return valued.map(([, run]) => run);
}

/** The page of a run; a range test has one of its own. */
const addressOf = ({ id, spec }) => `#/${isRangeTest(spec) ? "rate" : "run"}/${id}`;

function bestAccuracy({ history, overview }) {
  const epochs = history?.epochs.map((each) => each.valid_accuracy) ?? [];
  return epochs.length ? Math.max(...epochs) : (overview?.bestAccuracy ?? null);
}

/** A run that was extended has the result of its shorter training until it has succeeded again. */
function testAccuracy({ job }) {
  return job.status === "succeeded" ? job.result.test_accuracy : null;
}

/** Of training; of a run that did not succeed and whose curve is not here, from its start to its end. */
function secondsOf({ job, history }) {
  if (job.status === "succeeded" && job.result.seconds !== null) return job.result.seconds;
  if (history?.time.length) return history.time.at(-1);
  return job.started_at && job.finished_at ? (Date.parse(job.finished_at) - Date.parse(job.started_at)) / 1000 : null;
}

const isMoving = ({ job }) => !job.terminal && job.progress.step > 0;

function statusText(run) {
  const { job } = run;
  const done = isMoving(run) ? ` ${percent(job.progress.fraction, 0)}` : "";
  return `${t(`status.${job.status}`)}${done}${job.error ? `\n${failureOf(job.error)}` : ""}`;
}

function statusCell(run) {
  const { job } = run;
  const chip = statusChip(job.status);
  if (job.error) tipped(chip, t(`status.${job.status}`), failureOf(job.error));
  if (!isMoving(run)) return chip;
  const done = percent(job.progress.fraction, 0);
  return [chip, h("progress", { value: job.progress.fraction, max: 1, title: done, "aria-label": done })];
}

function verdictCell({ overview }) {
  const verdict = overview?.verdict;
  if (!verdict) return overview ? tipped(h("span", {}, "–"), t("runs.column.verdict"), t("runs.too_short")) : "–";
  const words = t(`verdict.${verdict.outcome}`);
  return tipped(verdictChip(verdict), words, said(verdict), t("runs.rule", { rule: ruleOf(verdict) }));
}

/** A sparkline is drawn anew only when a point of it would be another. */
function sparkText({ job, history, overview }) {
  if (overview) return `ended ${job.updated_at}`;
  return String(Math.floor(((history?.step.at(-1) ?? 0) / job.progress.total_steps) * SPARK_POINTS));
}

function sparkCell({ history, overview }) {
  const losses = overview?.spark ?? history?.loss ?? [];
  return losses.length > 1 ? sparkline(shown(losses, SPARK_POINTS).map((index) => losses[index])) : "";
}
