// One run: how it stands, its curve and its log while it trains, and what came of it.

import { actions } from "./actions.js";
import { connection } from "./api.js";
import { curve } from "./curve.js";
import { fill, h, renew } from "./dom.js";
import { downloads } from "./downloads.js";
import { colouring, dashOf, isRangeTest, labelOf, statusChip, tagsOf, verdictChip } from "./encoding.js";
import { evaluation } from "./evaluation.js";
import { events, spec } from "./events.js";
import { live } from "./live.js";
import { epochs, log } from "./log.js";
import { failureOf, ruleOf, wordsOf } from "./refusal.js";
import { swatch } from "./sparkline.js";
import { duration, loss, number, percent, said, t } from "./text.js";

const QUEUE_MS = 3000;

export function mount(root, route) {
  const page = new Page(root, route);
  page.seek();
  return () => page.end();
}

class Page {
  #parts = null;
  #status = null;
  #hasBegun = false;
  #more = {};
  #timer = 0;
  #over = new AbortController();

  constructor(root, route) {
    [this.root, this.route, this.id] = [root, route, route.id];
    const { signal } = this.#over;
    live.addEventListener("change", ({ detail }) => detail.ids.has(this.id) && this.#changed(), { signal });
    connection.addEventListener("change", () => connection.isUp && !this.#parts && this.seek(), { signal });
  }

  end() {
    this.#over.abort();
    clearTimeout(this.#timer);
    for (const part of this.#parts ?? []) part.gone?.();
    this.#parts = null;
  }

  /** Find the run; what the server says of it is shown, and tried again when the server is back. */
  async seek() {
    fill(this.root, h("p.muted", { role: "status" }, t("run.loading")));
    try {
      if (!/^job_[0-9a-f]{32}$/.test(this.id ?? "")) return this.#missing();
      await live.look(this.id);
      this.#changed();
    } catch (error) {
      if (this.#over.signal.aborted) return;
      if (error.status === 404) return this.#missing();
      const again = h("button", { type: "button", onclick: () => this.seek() }, t("run.again_now"));
      fill(this.root, h("div.error", { role: "alert" }, wordsOf(error, "run.away")), h("p.row.run-retry", {}, again));
    }
  }

  #missing() {
    this.end();
    fill(
      this.root,
      h("h1", {}, t("run.missing.title")),
      h("p.muted", {}, t("run.missing.text")),
      h("p", {}, h("a.button", { href: "#/" }, t("run.to_runs"))),
    );
  }

  #changed() {
    if (this.#over.signal.aborted) return;
    const job = live.jobs.get(this.id);
    if (!job) return this.#parts ? this.#missing() : undefined;
    if (!this.#parts) this.#build(job);
    const history = live.history(this.id);
    const hasBegun = job.status === "running" && (history?.step.length ?? 0) > 0;
    if (job.status !== this.#status || hasBegun !== this.#hasBegun) this.#entered(job.status, hasBegun);
    for (const part of this.#parts) part.update({ ...job, ...this.#more }, history);
  }

  /** The list tells less of a run than itself, and its losses may not be read yet. */
  #entered(status, hasBegun) {
    [this.#status, this.#hasBegun] = [status, hasBegun];
    this.#lookCloser();
    live.load(this.id).catch(() => {}); // the connection's banner says why not
  }

  /** What the list does not tell: what trains it, its place in the queue and what it lacks, asked for as long as it waits. */
  async #lookCloser() {
    clearTimeout(this.#timer);
    try {
      const { backend, queue_position, waiting_for } = await live.look(this.id);
      this.#more = { backend, queue_position, waiting_for };
      this.#changed();
    } catch {
      // it is asked again, or gone
    }
    if (this.#status === "queued" && !this.#over.signal.aborted)
      this.#timer = setTimeout(() => this.#lookCloser(), QUEUE_MS);
  }

  #build(job) {
    document.title = `${labelOf(job)} · Descent`;
    const part = {
      head: head(),
      actions: actions(job),
      summary: summary(),
      curve: curve(this.route),
      log: log(),
      epochs: epochs(),
      evaluation: evaluation(this.id),
      downloads: downloads(this.id),
      events: events(this.id),
      spec: spec(),
    };
    this.#parts = Object.values(part);
    const stack = (...parts) => h("div.run-column", {}, ...parts.map((each) => each.element));
    fill(
      this.root,
      h("nav.run-crumb", { "aria-label": t("run.crumb") }, h("a", { href: "#/" }, `← ${t("run.to_runs")}`)),
      part.head.element,
      part.actions.element,
      part.summary.element,
      h("div.run-live", {}, part.curve.element, part.log.element),
      part.evaluation.element,
      h("div.run-rest", {}, stack(part.epochs, part.downloads), stack(part.events, part.spec)),
    );
  }
}

// --- how it stands -------------------------------------------------------------------------------------------------------

function head() {
  const title = h("div.run-title");
  const progress = h("progress", { max: 1, "aria-label": t("run.progress") });
  const standing = h("div.run-standing.small.muted");
  const told = h("p.hidden-text", { role: "status" });
  const element = h("header.run-head", {}, title, progress, standing, told);
  return { element, update };

  function update(job, history) {
    const verdict = isRangeTest(job.spec) ? null : live.overview(job.id)?.verdict;
    renew(title, [job.id, job.status, job.spec.name, verdict?.outcome], () => titleOf(job, verdict));
    progress.value = job.progress.fraction;
    progress.hidden = job.status === "succeeded";
    renew(standing, standingOf(job, history), () => standingOf(job, history).map((words) => h("span", {}, words)));
    renew(told, [job.status], () => t("run.told", { status: t(`status.${job.status}`) }));
  }
}

function titleOf(job, verdict) {
  const colour = colouring([job.spec])(job.spec);
  return [
    h("h1", {}, swatch(colour, dashOf(job.spec), 44), labelOf(job)),
    Object.assign(statusChip(job.status), { id: "status" }),
    verdict && verdictChip(verdict),
    job.spec.name && h("span.run-name", {}, job.spec.name),
    tagsOf(job.spec).map((tag) => h("span.chip.run-tag", {}, tag)),
  ];
}

function standingOf(job, history) {
  const { step, total_steps, epochs: all } = job.progress;
  const hasBegun = step > 0 || job.status === "running";
  const epoch = hasBegun ? Math.min(Math.floor(step / (total_steps / all)) + 1, all) : 0;
  const words = [
    t("run.steps", { step: number(step), total: number(total_steps) }),
    t("run.epoch_of", { epoch: number(epoch), epochs: number(all) }),
  ];
  if (job.status === "queued" && typeof job.queue_position === "number") {
    words.push(t("run.place", { place: number(job.queue_position + 1) }));
  }
  const toGo = job.status === "running" ? secondsToGo(job, history) : null;
  if (toGo !== null) words.push(t("run.to_go", { time: duration(toGo) }));
  return words;
}

/** At the speed so far; the server says it every few seconds, the points say it as they come. */
function secondsToGo(job, history) {
  if (!history || history.step.length < 2) return job.progress.eta_s;
  const [step, seconds] = [history.step.at(-1), history.time.at(-1)];
  return (seconds / (step + 1)) * (job.progress.total_steps - step - 1);
}

// --- what came of it -----------------------------------------------------------------------------------------------------

function summary() {
  const [notes, facts] = [h("div.run-notes"), h("dl.run-facts")];
  return { element: h("section", { "aria-label": t("run.results") }, notes, facts), update };

  function update(job, history) {
    const verdict = isRangeTest(job.spec) ? null : live.overview(job.id)?.verdict;
    renew(notes, [job.error, job.stopped_early, verdict?.en, job.status, job.waiting_for], () => notesOf(job, verdict));
    const shown = factsOf(job, history);
    renew(facts, shown, () => shown.map(factOf));
  }
}

const factOf = ([name, value, more]) =>
  h("div", {}, h("dt", {}, name), h("dd", {}, value, more && h("small", {}, more)));

function notesOf(job, verdict) {
  const early = job.stopped_early;
  return [
    job.error && errorOf(job.error),
    job.status === "queued" && job.waiting_for && h("p.run-note.run-waiting", {}, said(job.waiting_for)),
    early && h("p.run-note", {}, t("run.stopped_early", { ...early, valid_accuracy: percent(early.valid_accuracy) })),
    isRangeTest(job.spec) &&
      h("p.run-note", {}, t("run.is_range_test"), " ", h("a", { href: `#/rate/${job.id}` }, t("run.to_rate"))),
    job.terminal && verdict && verdictOf(verdict),
  ];
}

function errorOf({ code, message, step }) {
  const where = step === null || step === undefined ? "" : ` (${t("run.at_step", { step: number(step) })})`;
  return h(
    "div.error.run-note",
    {},
    h("strong", {}, `${failureOf({ code })}${where}`),
    h("p.small", {}, h("code", {}, code), ` ${message}`),
  );
}

function verdictOf(verdict) {
  const rows = Object.entries(verdict.numbers).map(([name, value]) =>
    h("tr", {}, h("th", { scope: "row" }, h("code", {}, name)), h("td.number", {}, shownNumber(value))),
  );
  return h(
    "div.run-note.run-verdict",
    {},
    verdictChip(verdict),
    h(
      "div",
      {},
      said(verdict),
      h("details.small", {}, h("summary", {}, t("run.verdict.why")), rule(verdict), h("table", {}, rows)),
    ),
  );
}

const rule = (verdict) => h("p.muted", {}, t("run.verdict.rule"), " ", ruleOf(verdict));

const shownNumber = (value) => (typeof value === "number" ? loss(value) : String(value ?? "–"));

function factsOf(job, history) {
  const { result, backend } = job;
  const accuracies = (history?.epochs ?? []).map((each) => each.valid_accuracy);
  const isThrough = job.status === "succeeded";
  const speed = (isThrough ? result.images_per_s : null) ?? history?.epochs.at(-1)?.images_per_s;
  return [
    [t("run.test_accuracy"), percent(isThrough ? result.test_accuracy : null)],
    [t("run.best_accuracy"), percent(accuracies.length ? Math.max(...accuracies) : null)],
    [t("run.last_loss"), loss(history?.lastLoss ?? job.latest?.loss)],
    [t("run.seconds"), duration((isThrough ? result.seconds : null) ?? history?.time.at(-1))],
    [t("run.speed"), speed ? t("run.images_per_s", { n: Math.round(speed), count: number(speed) }) : "–"],
    [
      t("run.device"),
      backend?.device ?? "–",
      backend && `${backend.kernel}, ${t("run.threads", { n: backend.threads })}`,
    ],
  ];
}
