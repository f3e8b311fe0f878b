// All runs, kept fresh: the list by polling, and what happens in those that go on by one event stream for all of them
// (a browser opens six connections to a server at most). Views read from here, and are told when something changed.

import { get, Problem, stream } from "./api.js";
import { isRangeTest } from "./encoding.js";
import { Histories } from "./histories.js";
import { Listing } from "./listing.js";
import { Overviews } from "./overviews.js";
import { happening, pauseUnless, turn, whileLookedAt } from "./patience.js";

const POLL_MS = 5000;
const TELL_MS = 200; // changes are told together
const RESTART_MS = 300; // runs that begin together are one change of the stream
const MOST_STREAMED = 50;
const MOST_LOOKED_AT = 20; // with one poll, of runs that no list has
const BACKOFF_MS = [1000, 2000, 4000, 8000];
const URGENCY = ["running", "pausing", "cancelling", "queued", "paused"]; // which runs the stream is for, if it is too many

const isGone = (error) => error instanceof Problem && error.status === 404;

/** Fires `change` with `detail.ids`, the runs that changed, and `detail.isList`, whether some came or went. */
class Live extends EventTarget {
  /** Summaries as `GET /jobs` tells them, by id. */
  jobs = new Map();
  /** Whether the list was read at all; until then there is nothing to show, not even that there is nothing. */
  isRead = false;
  /** Why the list could not be read the last time, or null. */
  failure = null;

  #listing = new Listing();
  #histories = new Histories();
  #overviews = new Overviews({ check: (ids) => this.#lookAt(ids), tell: (id) => this.#tell(id) });
  #questions = 0; // asked so far: the server's answers can overtake each other
  #reads = new Map(); // id -> the question that its summary answers
  #streamed = [];
  #failures = 0; // of the stream, since it last told something
  #restart = null;
  #restarting = null;
  #changed = new Set();
  #isListChanged = false;
  #timer = null;

  /** Newest first: an id's order is that of time. */
  get ids() {
    return [...this.jobs.keys()].sort().reverse();
  }

  /** Whether there are older runs than those in `jobs`. */
  get hasMore() {
    return this.#listing.hasMore;
  }

  history(id) {
    return this.#histories.get(id);
  }

  overview(id) {
    return this.#overviews.get(id);
  }

  /** Poll and stream from now on, as long as the page is looked at. */
  start() {
    this.#polling();
    this.#streaming();
  }

  /** Ask for the newest runs and for those that go on now. Raises as `send` does. */
  async refresh() {
    const question = ++this.#questions;
    const { jobs, floor } = await this.#listing.newest();
    const found = new Set(jobs.map((job) => job.id));
    for (const [id, read] of this.#reads) {
      if (read < question && id > floor && !found.has(id)) this.#forget(id); // one that was read since is newer than the list
    }
    this.#putAll(jobs, question);
    if (!this.isRead) this.#tellList();
    this.isRead = true;
    this.#overviewing();
    if (floor) await this.#refreshOlder(question);
    if (this.#failures) await this.#catchUp();
  }

  /** Read the next older runs. */
  async more() {
    if (!this.hasMore) return;
    const question = ++this.#questions;
    this.#putAll(await this.#listing.older(), question);
    this.#tellList();
    this.#overviewing();
  }

  /** Read the runs of a sweep, however old they are. Raises as `send` does. */
  async loadSweep(sweep) {
    const question = ++this.#questions;
    for await (const jobs of this.#listing.ofSweep(sweep)) this.#putAll(jobs, question);
    this.#overviewing();
  }

  /** Read one run anew, after something was asked of it or where the list does not reach. Raises as `send` does. */
  async look(id) {
    const question = ++this.#questions;
    try {
      const job = await get(`/jobs/${id}`);
      this.#put(job, question);
      this.#histories.complete(job);
      this.#overviewing();
      return job;
    } catch (error) {
      if (isGone(error) && this.jobs.has(id)) this.#forget(id);
      throw error;
    }
  }

  /** A run that is gone. */
  forget(id) {
    this.#forget(id);
  }

  /** The losses of a run; they grow by themselves while it goes on. Raises as `send` does. */
  load(id) {
    this.#histories.want(id);
    const known = this.#histories.get(id);
    if (known && (known.isWhole || this.#streamed.includes(id))) return Promise.resolve(known);
    return this.#read(id);
  }

  async #read(id) {
    const history = await this.#histories.read(id, () => this.#found(id));
    if (!this.jobs.has(id)) this.#histories.forget(id); // meanwhile it was deleted
    this.#tell(id);
    return history;
  }

  /** A run to read the history of; of one that goes on all is needed that the server says of it. */
  #found(id) {
    const job = this.jobs.get(id);
    return job && (job.terminal || !job.latest) ? job : this.look(id);
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

  /** The runs that go on and are older than the list was read; `question` was the list's. */
  async #refreshOlder(question) {
    const next = ++this.#questions;
    this.#putAll(await this.#listing.live(), next);
    const unseen = this.#live().filter((id) => this.#reads.get(id) < question); // ended, deleted, or far down in the queue
    unseen.sort((one, other) => this.#reads.get(one) - this.#reads.get(other));
    await this.#lookAt(unseen.slice(0, MOST_LOOKED_AT));
  }

  /** Look at each of them; who is gone is forgotten. */
  #lookAt(ids) {
    const look = (id) =>
      this.look(id).catch((error) => {
        if (!isGone(error)) throw error;
      });
    return Promise.all(ids.map(look));
  }

  #putAll(jobs, question) {
    for (const job of jobs) this.#put(job, question);
  }

  /** Take what the server says of a run, unless it said more when it was asked later. */
  #put(job, question) {
    if (this.#reads.get(job.id) > question) return;
    this.#reads.set(job.id, question);
    const before = this.jobs.get(job.id);
    if (before?.updated_at === job.updated_at && before.latest?.step === job.latest?.step) return;
    this.jobs.set(job.id, job);
    if (!before) this.#tellList();
    if (before?.terminal) this.#trained(job);
    this.#tell(job.id);
    if (before?.status !== job.status) this.#restartSoon();
  }

  /** A run that had ended was trained more. */
  #trained({ id, terminal }) {
    const history = this.#histories.get(id);
    if (history) history.isWhole = false;
    if (!terminal) this.#overviews.forget(id);
  }

  #forget(id) {
    for (const each of [this.jobs, this.#reads]) each.delete(id);
    for (const each of [this.#histories, this.#overviews]) each.forget(id);
    this.#tellList();
    this.#tell(id);
    this.#restartSoon(); // there is room for another in the stream
  }

  /** What the table shows of those that have ended; with it their histories are needed only where a view asked for them. */
  async #overviewing() {
    await turn(); // in which the views are told, and ask for the curves that they draw
    await this.#histories.whenRead(); // these go first: the server and the browser may share two cores
    const jobs = this.ids.map((id) => this.jobs.get(id));
    await this.#overviews.need(jobs.filter((job) => job.terminal && !isRangeTest(job.spec)));
    const hasEnded = (id) => !this.#streamed.includes(id) && (this.jobs.get(id)?.terminal ?? true);
    for (const id of this.#histories.settle(hasEnded)) this.#read(id).catch(() => {}); // a later poll tries again
  }

  // --- the stream ----------------------------------------------------------------------------------------------------------

  async #streaming() {
    for (;;) {
      await whileLookedAt();
      const ids = this.#mostUrgent();
      const stop = new AbortController();
      this.#streamed = ids;
      this.#restart = () => stop.abort();
      if (!ids.length) await happening(stop.signal, "abort");
      else await this.#follow(ids, stop);
      this.#streamed = [];
    }
  }

  /** Follow these runs until others are more urgent, nobody looks, or the stream ends; then wait, if it told nothing. */
  async #follow(ids, stop) {
    document.addEventListener("visibilitychange", () => document.hidden && stop.abort(), { signal: stop.signal });
    try {
      await this.#listen(ids, stop.signal);
      const isNew = ids.join() !== this.#mostUrgent().join();
      this.#failures = isNew ? 0 : this.#failures + 1;
    } catch (error) {
      if (stop.signal.aborted) return;
      this.#failures += 1;
      await this.#refused(error, ids);
    }
    stop.abort();
    this.#streamed = [];
    const pause = BACKOFF_MS[Math.min(this.#failures, BACKOFF_MS.length) - 1];
    if (pause) await pauseUnless(pause, window, "online");
  }

  async #listen(ids, signal) {
    for (const id of ids) {
      if (!this.#histories.get(id)) await this.#read(id);
    }
    const lastId = ids.map((id) => this.#histories.cursor(id)).join(",");
    const onEvent = ({ id, event, data }) => {
      this.#failures = 0;
      this.#histories.move(data.job_id, id.split(",")[ids.indexOf(data.job_id)]);
      this.#take(event, data);
    };
    const isOver = await stream(`/events?jobs=${ids.join(",")}`, { lastId, onEvent, signal });
    if (!isOver) return;
    await this.refresh();
    await this.#lookAt(this.#live().filter((id) => ids.includes(id))); // they ended since, or were deleted
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
    } else if (data.status !== job.status || data.terminal) {
      this.look(job.id).catch(() => {}); // the next poll asks again
    }
    this.#tell(job.id);
  }

  /** The server would not let us listen: it knows less than we do (it was restored, or a job trained anew), or a run is gone. */
  async #refused(error, ids) {
    if (error instanceof Problem && error.status === 422) for (const id of ids) this.#histories.drop(id);
    if (isGone(error)) await this.#lookAt(ids).catch(() => {}); // the next try asks again
  }

  /** What the stream did not tell. */
  async #catchUp() {
    const isBehind = (id) => {
      const [{ latest, progress }, history] = [this.jobs.get(id), this.#histories.get(id)];
      return history && (latest?.step > (history.step.at(-1) ?? -1) || progress.epoch > history.epochs.length);
    };
    for (const id of this.#mostUrgent().filter(isBehind)) {
      await this.#histories.catchUp(id).catch((error) => this.#refused(error, [id]));
      this.#tell(id);
    }
  }

  #live() {
    return this.ids.filter((id) => !this.jobs.get(id).terminal);
  }

  /** Of those that go on as many as a stream may have: what trains first, then what trains next. */
  #mostUrgent() {
    const live = this.#live().reverse(); // the next to run first
    const of = (status) => live.filter((id) => this.jobs.get(id).status === status);
    return URGENCY.flatMap(of).slice(0, MOST_STREAMED).sort();
  }

  #restartSoon() {
    if (this.#restarting) return;
    this.#restarting = setTimeout(() => {
      this.#restarting = null;
      if (this.#mostUrgent().some((id) => !this.#streamed.includes(id))) this.#restart?.();
    }, RESTART_MS);
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

export const live = new Live();
