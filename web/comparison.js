// One sentence on the ticked runs that have ended: whether the best two can be told apart, as the server judges it.

import { get } from "./api.js";
import { add, fill, h } from "./dom.js";
import { live } from "./live.js";
import { ruleOf } from "./refusal.js";
import { said, t } from "./text.js";
import { tipped } from "./tip.js";

const [FEWEST, MOST] = [2, 50];
const WAIT_MS = 300; // ticks often come one after the other

export class Comparison {
  element = h("p.comparison", { role: "status", hidden: true });
  #asked = "";
  #timer = null;
  #stop = new AbortController();

  show(ids) {
    const ended = ids.filter((id) => live.jobs.get(id)?.terminal).sort();
    const asked = ended.map((id) => `${id}@${live.jobs.get(id).updated_at}`).join();
    if (asked === this.#asked) return;
    this.#asked = asked;
    this.gone();
    if (ended.length < FEWEST || ended.length > MOST) return this.#say(null);
    this.#stop = new AbortController();
    this.#timer = setTimeout(() => this.#ask(ended, this.#stop.signal), WAIT_MS);
  }

  async #ask(ids, signal) {
    try {
      const { table } = await get(`/compare?jobs=${ids.join(",")}&max_points=4`, { signal });
      this.#say(table.noise);
    } catch {
      if (signal.aborted) return;
      this.#asked = ""; // the next change asks again; the connection's banner says what is wrong
      this.#say(null);
    }
  }

  #say(noise) {
    this.element.hidden = !noise;
    fill(this.element);
    if (!noise) return;
    const why = h("button.quiet.small", { type: "button" }, t("runs.judged")); // for the keyboard and a finger, too
    add(this.element, said(noise), " ", tipped(why, t("runs.judged"), ruleOf(noise)));
  }

  gone() {
    clearTimeout(this.#timer);
    this.#stop.abort();
  }
}
