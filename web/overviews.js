// What the table shows of runs that have ended, beside their summaries: verdict, sparkline, best accuracy.

import { get, Problem } from "./api.js";

const MOST_COMPARED = 50;
const POINTS = 64;

class Overview {
  constructor(curve, row) {
    /** `{outcome, rule, numbers, en, zh}` or null. */
    this.verdict = row.verdict;
    this.spark = curve.loss;
    this.bestAccuracy = curve.epochs.valid_accuracy.length ? Math.max(...curve.epochs.valid_accuracy) : null;
  }
}

export class Overviews {
  #known = new Map();
  #asked = new Map(); // id -> when the run was changed that it is of
  #check;
  #tell;

  /** `check(ids)` looks whether runs are still there, and has those forgotten that are not; `tell(id)` is called for each overview. */
  constructor({ check, tell }) {
    [this.#check, this.#tell] = [check, tell];
  }

  get(id) {
    return this.#known.get(id) ?? null;
  }

  forget(id) {
    this.#known.delete(id);
    this.#asked.delete(id);
  }

  /** Ask for those of these runs that are not here; they have ended. */
  async need(jobs) {
    const wanted = jobs.filter((job) => this.#asked.get(job.id) !== job.updated_at);
    for (const job of wanted) this.#asked.set(job.id, job.updated_at);
    for (let from = 0; from < wanted.length; from += MOST_COMPARED) {
      const batch = wanted.slice(from, from + MOST_COMPARED);
      try {
        await this.#compare(batch);
      } catch {
        for (const { id } of batch) this.#asked.delete(id); // a later poll asks again
      }
    }
  }

  /** One run that was deleted would leave all without an answer. */
  async #compare(batch) {
    try {
      await this.#ask(batch);
    } catch (error) {
      if (!(error instanceof Problem && error.status === 404)) throw error;
      await this.#check(batch.map((job) => job.id));
      await this.#ask(batch);
    }
  }

  async #ask(batch) {
    const isAsked = (job) => this.#asked.get(job.id) === job.updated_at; // not forgotten meanwhile, and not trained again
    const jobs = batch.filter(isAsked);
    if (!jobs.length) return;
    const ids = jobs.map((job) => job.id).join(",");
    const { curves, table } = await get(`/compare?jobs=${ids}&max_points=${POINTS}`);
    jobs.forEach((job, index) => {
      if (!isAsked(job)) return;
      this.#known.set(job.id, new Overview(curves[index], table.runs[index]));
      this.#tell(job.id);
    });
  }
}
