// Counts steps while it plays, so many a second. It asks for the screen's pictures, of which a tab that is not looked at gets none.

const LONGEST_MS = 100; // a pause of the browser is not caught up with

export class Player {
  step = 0;
  isPlaying = false;
  perSecond = 40;
  #exact = 0;
  #frame = null;
  #last = null;

  /** `onStep` is told of each new step and of each stop. */
  constructor(steps, onStep) {
    this.steps = steps;
    this.onStep = onStep;
  }

  /** From here on, or from a step; at the end, from the beginning. */
  play(from = this.step) {
    this.#set(from >= this.steps ? 0 : from);
    this.isPlaying = true;
    this.#last = null;
    cancelAnimationFrame(this.#frame);
    this.#frame = requestAnimationFrame((now) => this.#tick(now));
    this.onStep();
  }

  pause() {
    this.isPlaying = false;
    cancelAnimationFrame(this.#frame);
    this.onStep();
  }

  goTo(step) {
    this.#set(step);
    this.pause();
  }

  runAt(perSecond) {
    this.perSecond = perSecond;
  }

  /** End without another word. */
  gone() {
    this.isPlaying = false;
    cancelAnimationFrame(this.#frame);
  }

  #set(step) {
    this.#exact = Math.min(this.steps, Math.max(0, step));
    this.step = Math.floor(this.#exact);
  }

  #tick(now) {
    const before = this.step;
    this.#set(this.#exact + (Math.min(now - (this.#last ?? now), LONGEST_MS) / 1000) * this.perSecond);
    this.#last = now;
    if (this.step >= this.steps) return this.pause();
    this.#frame = requestAnimationFrame((next) => this.#tick(next));
    if (this.step !== before) this.onStep();
  }
}
