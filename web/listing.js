// The server's list of runs, newest first, a page at a time, and how far down it was read.

import { get } from "./api.js";

const PAGE = 100;
const MOST_PAGES = 10; // at once; what is left is among the older ones
const LIVE = ["running", "pausing", "cancelling", "queued", "paused"];

export class Listing {
  #newest = null; // from this run
  #oldest = null; // down to this one all were read; null: all there are

  /** Whether there are older runs than those that were read. */
  get hasMore() {
    return this.#oldest !== null;
  }

  /** The newest runs, down to those that were read before: `{jobs, floor}`, all newer than the id `floor` ("": all). */
  async newest() {
    const jobs = [];
    const isMet = (next) => next === null || this.#newest === null || next <= this.#newest;
    let next = "";
    for (let pages = 0; pages < MOST_PAGES; pages++) {
      const page = await get(`/jobs?limit=${PAGE}${next && `&after=${next}`}`);
      jobs.push(...page.jobs);
      next = page.next;
      if (isMet(next)) break;
    }
    if (next === null || this.#newest === null || !isMet(next)) this.#oldest = next;
    this.#newest = jobs[0]?.id ?? null;
    return { jobs, floor: next ?? "" };
  }

  /** The next older ones. */
  async older() {
    const after = this.#oldest;
    const page = await get(`/jobs?limit=${PAGE}&after=${after}`);
    if (this.#oldest === after) this.#oldest = page.next;
    return page.jobs;
  }

  /** Those that go on, however old they are; of those that wait the newest. */
  async live() {
    const pages = await Promise.all(LIVE.map((status) => get(`/jobs?limit=${PAGE}&status=${status}`)));
    return pages.flatMap((page) => page.jobs);
  }

  /** Those of a sweep, page by page. */
  async *ofSweep(sweep) {
    for (let after = ""; after !== null; ) {
      const page = await get(`/jobs?limit=${PAGE}&sweep=${encodeURIComponent(sweep)}${after && `&after=${after}`}`);
      yield page.jobs;
      after = page.next;
    }
  }
}
