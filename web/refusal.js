// What the server says of a wrong value, in the reader's language. It speaks English; what it says most is known here.

import { Problem, Unreachable } from "./api.js";
import { amount, has, t } from "./text.js";

const KNOWN = [
  [/^Input should be greater than or equal to (?<limit>\S+)$/, "refusal.at_least"],
  [/^Input should be less than or equal to (?<limit>\S+)$/, "refusal.at_most"],
  [/^Input should be greater than (?<limit>\S+)$/, "refusal.above"],
  [/^Input should be less than (?<limit>\S+)$/, "refusal.below"],
  [/^Input should be a valid integer/, "refusal.integer"],
  [/^Input should be a (valid|finite) number/, "refusal.number"],
  [/^Input should be (?<choices>'.+)$/, "refusal.one_of"],
  [/^a device is auto, cpu, gpu, or gpu:N/, "refusal.device"],
  [/^String should have at most (?<limit>\d+) characters$/, "refusal.too_long"],
  [/^(List|Dictionary) should have at least (?<limit>\d+) items?/, "refusal.too_few"],
  [/^(List|Dictionary) should have at most (?<limit>\d+) items?/, "refusal.too_many"],
  [/^this is required$/, "refusal.required"],
  [/^unknown optimizer( '(?<name>[^']*)')?$/, "refusal.optimizer"],
  [/^unknown data set$/, "refusal.dataset"],
  [/^batch_size is at most (?<limit>\d+), the images of (?<dataset>\S+)$/, "refusal.batch_size"],
  [/^(?<optimizer>\w+) has a weight decay of its own/, "refusal.own_decay"],
  [/^bf16 and to_static need a GPU/, "refusal.needs_gpu"],
  [/^this job has (?<intervals>\d+), and one_cycle ends before$/, "refusal.one_cycle"],
  [/^phase_pct times total_steps must be above 1/, "refusal.phase"],
  [/^with three_phase, phase_pct must be below 0\.5$/, "refusal.three_phase"],
  [/^milestones must rise$/, "refusal.milestones"],
  [/^this job would store more than (?<limit>\d+) loss points/, "refusal.points"],
  [
    /^a range test has (?<range>.+) loss points, and this one would have (?<count>\d+): raise (?<field>\w+)$/,
    "refusal.range",
  ],
  [/^end must be at least ten times start$/, "refusal.end"],
  [/^a sweep has at most (?<limit>\d+) jobs, and this one would have (?<count>\d+)$/, "refusal.sweep"],
  [/^the same value stands here twice$/, "refusal.twice"],
];

const CODES = ["queue-full", "rate-limited", "unavailable", "unauthorized", "too-large"];

/** The server's words for one wrong field, in the reader's language; as they are where nobody has put them into it. */
export function worded(detail) {
  for (const [pattern, key] of KNOWN) {
    const found = pattern.exec(detail);
    if (found) return t(key, readable({ name: "", ...found.groups }));
  }
  return detail;
}

/** Numbers as people write them: `0.000000000001` is `1e-12`, `1000000` is `1,000,000`. */
function readable(groups) {
  const one = (text = "") => (/^-?[\d.]+$/.test(text) ? amount(Number(text)) : text);
  return Object.fromEntries(Object.entries(groups).map(([name, text]) => [name, one(text)]));
}

/** Whether a field is only not filled in yet. */
export const isMissing = ({ detail }) => detail === "this is required";

/** What to say of a request that failed; `away` is the key for a server that cannot be reached. */
export function wordsOf(error, away = "refusal.away") {
  if (error instanceof Unreachable) return t(error.isLate ? "refusal.late" : away);
  if (!(error instanceof Problem)) return error.message; // the page's own words
  const told = worded(error.errors[0]?.detail ?? error.message);
  const words = CODES.includes(error.code) ? [t(`refusal.code.${error.code}`)] : [told];
  if (error.code === "unavailable") words.push(told); // what is missing there, and the command that helps
  if (error.retryAfterS) words.push(t("refusal.again", { s: error.retryAfterS }));
  return words.join(" ");
}

/** Why a run failed: `error` is the job's. */
export const failureOf = ({ code }) => (has(`run.error.${code}`) ? t(`run.error.${code}`) : code);

/** The rule by which runs were judged or compared. */
export const ruleOf = ({ rule }) => (has(`rule.${rule}`) ? t(`rule.${rule}`) : rule);
