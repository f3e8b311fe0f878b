// All runs, kept fresh: the list by polling, and what happens in those that go on by one event stream for all of them
// (a browser opens six connections to a server at most). Views read from here, and are told when something changed.

import { get, Problem, pauseUnless, stream } from "./api.js";
import { History, MOST_SHOWN } from "./history.js";

const POLL_MS = 5000;
const TELL_MS = 200; // changes are told together
const PAGE = 100;
const MOST_STREAMED = 50;
const OVERVIEW_POINTS = 64;
const BACKOFF_MS = [1000, 2000, 4000, 8000];

/** What the table shows of a run that has ended, beside its summary. */
class Overview {
  constructor(curve, row) {
    /** `{outcome, rule, numbers, en, zh}` or null. */
    this.verdict = row.verdict;
    this.spark = curve.loss;
    this.bestAccuracy = curve.epochs.valid_accuracy.length ? Math.max(...curve.epochs.valid_accuracy) : null;
  }
}

/** Fires `change` with `detail.ids`, the runs that changed, and `detail.isList`, whether some came or went. */
class Live extends EventTarget {
  /** Summaries as `GET /jobs` tells them, by id. */
  jobs = new Map();
  /** Whether the list was read at all; until then there is nothing to show, not even that there is nothing. */
  isRead = false;
  /** Whether there are older runs than those in `jobs`. */
  hasMore = false;
  /** Why the list could not be read the last time, or null. */
  failure = null;

  #histories = new Map();
  #loading = new Map(); // id -> the promise of its history
  #overviews = new Map();
  #asked = new Map(); // id -> what its overview is of
  #cursors = new Map(); // id -> its part of the stream's ids
  #streamed = [];
  #restart = null;
  #oldest = null;
  #changed = new Set();
  #isListChanged = false;
  #timer = null;

  /** Newest first: an id's order is that of time. */
  get ids() {
    return [...this.jobs.keys()].sort().reverse();
  }

  history(id) {
    return this.#histories.get(id) ?? null;
  }

  overview(id) {
    return this.#overviews.get(id) ?? null;
  }

  /** Poll and stream from now on, as long as the page is looked at. */
  start() {
    this.#polling();
    this.#streaming();
  }

  /** Ask for the newest runs now. Raises as `send` does. */
  async refresh() {
    const page = await get(`/jobs?limit=${PAGE}`);
    const oldest = page.jobs.at(-1)?.id ?? "";
    const found = new Set(page.jobs.map((job) => job.id));
    for (const id of this.jobs.keys()) {
      if (!found.has(id) && (id > oldest || page.next === null)) this.#forget(id);
    }
    for (const job of page.jobs) this.#put(job);
    if (!this.isRead || page.next === null) this.hasMore = page.next !== null;
    this.#oldest ??= page.next;
    if (!this.isRead) this.#tellList();
    this.isRead = true;
    this.#overviewing();
  }

  /** Read the next older runs. */
  async more() {
    if (!this.hasMore) return;
    const page = await get(`/jobs?limit=${PAGE}&after=${this.#oldest}`);
    for (const job of page.jobs) this.#put(job);
    this.#oldest = page.next;
    this.hasMore = page.next !== null;
    this.#tellList();
    this.#overviewing();
  }

  /** Read the runs of a sweep, however old they are. Raises as `send` does. */
  async loadSweep(sweep) {
    for (let after = ""; after !== null; ) {
      const page = await get(`/jobs?limit=${PAGE}&sweep=${encodeURIComponent(sweep)}${after && `&after=${after}`}`);
      for (const job of page.jobs) this.#put(job);
      after = page.next;
    }
    this.#overviewing();
  }

  /** Read one run anew, after something was asked of it or where the list does not reach. Raises as `send` does. */
  async look(id) {
    const job = await get(`/jobs/${id}`);
    this.#put(job);
    this.#overviewing();
    return job;
  }

  /** A run that is gone. */
  forget(id) {
    this.#forget(id);
  }

  /** The losses of a run; they grow by themselves while it goes on. Raises as `send` does. */
  load(id) {
    const known = this.#histories.get(id);
    if (known && (known.isWhole || this.#streamed.includes(id))) return Promise.resolve(known);
    if (!this.#loading.has(id))
      this.#loading.set(
        id,
        this.#read(id).finally(() => this.#loading.delete(id)),
      );
    return this.#loading.get(id); // two readings of a run that goes on would take each other's points away
  }

  async #read(id) {
    const job = this.jobs.get(id) ?? (await this.look(id));
    const [page, metrics] = await Promise.all([
      get(`/jobs/${id}/loss?shape=columns&max_points=${MOST_SHOWN}`),
      get(`/jobs/${id}/metrics`),
    ]);
    const history = new History(job.progress.total_steps / job.progress.epochs);
    Object.assign(history, {
      step: page.points.step,
      time: page.points.time_s,
      loss: page.points.loss,
      epochs: metrics.epochs,
      count: page.count,
      isWhole: page.terminal,
    });
    this.#histories.set(id, history);
    this.#cursors.set(id, `${page.count}.${metrics.epochs.length}.0`);
    this.#tell(id);
    return history;
  }

  // --- the list ----------------------------------------------------------------------------------------------------------

  async #polling() {
    for (;;) {
      await whileLookedAt();
      try {
        await this.refresh();
        this.failure = null;
      } catch (error) {
        this.failure = error; // a refusal is tried again like an outage
        this.#tell();
      }
      await pauseUnless(POLL_MS, document, "visibilitychange");
    }
  }

  #put(job) {
    const before = this.jobs.get(job.id);
    if (before?.updated_at === job.updated_at && before.latest?.step === job.latest?.step) return;
    this.jobs.set(job.id, job);
    if (!before) this.#tellList();
    if (before?.terminal && !job.terminal) this.#reopened(job.id);
    this.#tell(job.id);
    if (!job.terminal && !this.#streamed.includes(job.id)) this.#restart?.();
  }

  #reopened(id) {
    const history = this.#histories.get(id);
    if (history) history.isWhole = false;
  }

  #forget(id) {
    this.jobs.delete(id);
    for (const each of [this.#histories, this.#overviews, this.#asked, this.#cursors]) each.delete(id);
    this.#tellList();
    this.#tell(id);
  }

  // --- what the table shows ------------------------------------------------------------------------------------------------

  async #overviewing() {
    const ended = this.ids.filter(
      (id) => this.jobs.get(id).terminal && this.jobs.get(id).spec.learning_rate.schedule !== "range_test",
    );
    const wanted = ended.filter((id) => this.#asked.get(id) !== this.jobs.get(id).updated_at);
    for (const id of wanted) this.#asked.set(id, this.jobs.get(id).updated_at);
    for (let from = 0; from < wanted.length; from += MOST_STREAMED) {
      const batch = wanted.slice(from, from + MOST_STREAMED);
      try {
        await this.#overview(batch);
      } catch {
        for (const id of batch) this.#asked.delete(id); // a later poll asks again
      }
    }
  }

  async #overview(ids) {
    const compared = await get(`/compare?jobs=${ids.join(",")}&max_points=${OVERVIEW_POINTS}`);
    compared.curves.forEach((curve, index) => {
      this.#overviews.set(curve.job_id, new Overview(curve, compared.table.runs[index]));
      this.#tell(curve.job_id);
    });
  }

  // --- the stream ----------------------------------------------------------------------------------------------------------

  async #streaming() {
    let failures = 0;
    for (;;) {
      await whileLookedAt();
      const stop = new AbortController();
      const changed = new Promise((resolve) => {
        this.#restart = () => {
          this.#restart = null;
          setTimeout(resolve, 300); // several that begin at once are one change
        };
      });
      this.#streamed = this.#liveIds();
      if (!this.#streamed.length) {
        await changed;
        continue;
      }
      document.addEventListener("visibilitychange", () => document.hidden && stop.abort(), { signal: stop.signal });
      changed.then(() => stop.abort());
      try {
        await this.#follow(this.#streamed, stop.signal);
        failures = 0;
      } catch (error) {
        if (!stop.signal.aborted) {
          if (error instanceof Problem && error.status === 422) this.#startOver();
          await pauseUnless(BACKOFF_MS[Math.min(failures++, BACKOFF_MS.length - 1)], window, "online");
        }
      }
      stop.abort();
      this.#streamed = [];
    }
  }

  #liveIds() {
    const live = this.ids.filter((id) => !this.jobs.get(id).terminal);
    const running = live.filter((id) => this.jobs.get(id).status !== "queued");
    const queued = live.filter((id) => this.jobs.get(id).status === "queued").reverse(); // the next to run first
    return [...running, ...queued].slice(0, MOST_STREAMED).sort();
  }

  async #follow(ids, signal) {
    for (const id of ids) {
      if (!this.#histories.has(id)) await this.load(id);
    }
    const lastId = ids.map((id) => this.#cursors.get(id)).join(",");
    const onEvent = ({ id, event, data }) => {
      this.#cursors.set(data.job_id, id.split(",")[ids.indexOf(data.job_id)]);
      this.#take(event, data);
    };
    const isOver = await stream(`/events?jobs=${ids.join(",")}`, { lastId, onEvent, signal });
    if (isOver) await this.refresh();
  }

  #take(event, data) {
    const [job, history] = [this.jobs.get(data.job_id), this.#histories.get(data.job_id)];
    if (!job || !history) return;
    if (event === "points") {
      history.append(data.points);
      const { step, loss } = data.points.at(-1);
      job.latest = { step, loss };
      job.progress.step = step + 1;
      job.progress.fraction = (step + 1) / job.progress.total_steps;
    } else if (event === "epoch") {
      history.addEpoch(data.metrics);
    } else {
      if (data.terminal) history.isWhole = true;
      if (data.status !== job.status || data.terminal) this.look(job.id).catch(() => {}); // the next poll asks again
    }
    this.#tell(job.id);
  }

  /** The server does not know our place any more: it was restored, or a job trained anew. */
  #startOver() {
    for (const id of this.#streamed) {
      this.#histories.delete(id);
      this.#cursors.delete(id);
    }
  }

  // --- telling -------------------------------------------------------------------------------------------------------------

  #tellList() {
    this.#isListChanged = true;
    this.#tell();
  }

  #tell(id) {
    if (id) this.#changed.add(id);
    const wait = this.isRead ? TELL_MS : 0; // the first list is waited for
    this.#timer ??= setTimeout(() => {
      const detail = { ids: this.#changed, isList: this.#isListChanged };
      [this.#changed, this.#isListChanged, this.#timer] = [new Set(), false, null];
      this.dispatchEvent(new CustomEvent("change", { detail }));
    }, wait);
  }
}

async function whileLookedAt() {
  while (document.hidden) {
    await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
  }
}

export const live = new Live();
