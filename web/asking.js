// Asks models what a picture shows while it is drawn: soon after it changed, one request at a time, always with the newest picture.

import { post, Unreachable } from "./api.js";

const DELAY_MS = 150;
const LIMIT_MS = 15_000;

export class Asking {
  #isDue = false;
  #isGoing = false;
  #timer = null;
  #stop = new AbortController();

  /**
   * `wanted()` tells what to ask when it is time, `{image, models}`: a data URL (null: nothing) and the models' names.
   * `onAnswer(model, answer, error, image)` is told of each, with an answer of `/predict` or with Problem or Unreachable.
   */
  constructor({ wanted, onAnswer }) {
    this.wanted = wanted;
    this.onAnswer = onAnswer;
  }

  /** Something changed. However often this is said, one round of requests follows, and one more when it came in its middle. */
  soon(delayMs = DELAY_MS) {
    this.#isDue = true;
    if (!this.#isGoing && !this.#stop.signal.aborted) this.#timer ??= setTimeout(() => this.#go(), delayMs);
  }

  gone() {
    clearTimeout(this.#timer);
    this.#stop.abort();
  }

  async #go() {
    this.#timer = null;
    this.#isDue = false;
    this.#isGoing = true;
    const { image, models } = this.wanted();
    if (image) for (const model of models) await this.#ask(model, image);
    this.#isGoing = false;
    if (this.#isDue) this.soon();
  }

  async #ask(model, image) {
    const { signal } = this.#stop;
    if (signal.aborted) return;
    try {
      const answer = await post("/predict?debug=true", { model, image, top_k: 3 }, { signal, limitMs: LIMIT_MS });
      this.onAnswer(model, answer, null, image);
    } catch (error) {
      if (signal.aborted) return;
      this.onAnswer(model, null, error, image);
      if (error.retryAfterS) setTimeout(() => this.soon(), error.retryAfterS * 1000);
      else if (!(error.status || error instanceof Unreachable)) throw error;
    }
  }
}
