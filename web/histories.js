// The loss histories that the page holds. One is read once; then it grows by the stream or, where that is cut, by asking for more.

import { get } from "./api.js";
import { History, MOST_SHOWN } from "./history.js";

const MOST_KEPT = 60; // of runs that have ended

export class Histories {
  #known = new Map();
  #cursors = new Map(); // id -> its part of the stream's ids: points, epochs and changes of its status
  #reading = new Map(); // id -> the promise of its history
  #wanted = new Set(); // the runs that a view asked for, the last one last

  get(id) {
    return this.#known.get(id) ?? null;
  }

  /** Where a stream goes on with a run. */
  cursor(id) {
    return this.#cursors.get(id);
  }

  /** A stream has told so much. */
  move(id, cursor) {
    this.#cursors.set(id, cursor);
  }

  /** A view wants it; it is kept when the run has ended. */
  want(id) {
    this.#wanted.delete(id);
    this.#wanted.add(id);
  }

  /** What is here of it is not to be trusted, or not to be kept. */
  drop(id) {
    for (const each of [this.#known, this.#cursors]) each.delete(id);
  }

  forget(id) {
    this.drop(id);
    this.#wanted.delete(id);
  }

  /**
   * Read a run's history; `find()` gives the run, with its transitions when it goes on. Once at a time: two readings of a run that
   * goes on would take each other's points away.
   */
  read(id, find) {
    if (!this.#reading.has(id)) {
      const reading = this.#read(id, find).finally(() => this.#reading.delete(id));
      this.#reading.set(id, reading);
    }
    return this.#reading.get(id);
  }

  /** Until what is being read now is here, or could not be read. */
  async whenRead() {
    await Promise.allSettled(this.#reading.values());
  }

  async #read(id, find) {
    const job = await find();
    const history = new History(job.progress.total_steps / job.progress.epochs);
    let cursor = "0.0.0"; // of a run that has told nothing yet, the stream tells all
    if (job.terminal || job.latest) {
      const [page, metrics] = await Promise.all([
        get(`/jobs/${id}/loss?shape=columns&max_points=${MOST_SHOWN}`),
        get(`/jobs/${id}/metrics`),
      ]);
      const { step, time_s: time, loss } = page.points;
      const isWhole = page.terminal && metrics.terminal; // they are of two moments
      Object.assign(history, { step, time, loss, epochs: metrics.epochs, count: page.count, isWhole });
      cursor = `${page.count}.${metrics.epochs.length}.${job.transitions?.length ?? 0}`;
    }
    this.#known.set(id, history);
    this.#cursors.set(id, cursor);
    return history;
  }

  /** Ask for what a run has told beyond its history. */
  async catchUp(id) {
    const [points, , told] = this.#cursors.get(id).split(".");
    const [page, metrics] = await Promise.all([get(`/jobs/${id}/loss?after=${points}`), get(`/jobs/${id}/metrics`)]);
    const history = this.#known.get(id);
    if (!history) return;
    history.append(page.points);
    for (const each of metrics.epochs) history.addEpoch(each);
    this.#cursors.set(id, `${Number(points) + page.points.length}.${metrics.epochs.length}.${told}`);
  }

  /** The run as it is now: when it has ended and the stream has told every change of its status, it has told all before them. */
  complete(job) {
    const history = this.#known.get(job.id);
    if (history && job.terminal && this.#cursors.get(job.id).split(".")[2] === String(job.transitions.length))
      history.isWhole = true;
  }

  /** Of runs that have ended only what a view wanted stays. Returns those of them whose end is not here. */
  settle(hasEnded) {
    const ended = [...this.#known.keys()].filter(hasEnded);
    const kept = [...this.#wanted].filter(hasEnded).slice(-MOST_KEPT);
    for (const id of ended) if (!kept.includes(id)) this.drop(id);
    for (const id of this.#wanted) if (hasEnded(id) && !kept.includes(id)) this.#wanted.delete(id);
    return kept.filter((id) => this.#known.get(id)?.isWhole === false);
  }
}
