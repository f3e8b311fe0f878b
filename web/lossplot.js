// How the loss falls over the steps, on a log axis.

import { palette } from "./chart.js";
import { number, t } from "./text.js";
import { drawTrails, sized } from "./trails.js";

const HIGHEST = 4; // powers of ten
const LOWEST = -8;
const MARGIN = { left: 46, right: 10, top: 10, bottom: 34 };

export class LossPlot {
  #shown = null;

  constructor(canvas) {
    this.canvas = canvas;
    this.resizing = new ResizeObserver(() => this.#draw());
    this.resizing.observe(canvas);
  }

  gone() {
    this.resizing.disconnect();
  }

  /** `{ways, step, steps}`, as for the landscape. */
  show(shown) {
    this.#shown = shown;
    this.#draw();
  }

  #draw() {
    const place = this.#shown && sized(this.canvas);
    if (!place) return;
    const [context, width, height] = place;
    const { ways, step, steps } = this.#shown;
    const inner = [width - MARGIN.left - MARGIN.right, height - MARGIN.top - MARGIN.bottom];
    const x = (n) => MARGIN.left + (n / steps) * inner[0];
    const y = (power) => MARGIN.top + ((HIGHEST - power) / (HIGHEST - LOWEST)) * inner[1];
    drawAxes(context, x, y, steps, width, height);
    const power = (loss) => Math.min(HIGHEST, Math.max(LOWEST, Math.log10(Math.max(loss, Number.MIN_VALUE))));
    const trail = ({ losses }) =>
      losses.slice(0, step + 1).map((loss, n) => [x(n), y(Number.isNaN(loss) ? HIGHEST : power(loss))]);
    drawTrails(
      context,
      ways.map(([optimizer, way]) => [optimizer, trail(way)]),
    );
  }
}

function drawAxes(context, x, y, steps, width, height) {
  const { line, muted } = palette();
  context.font = "12px system-ui, sans-serif";
  context.fillStyle = muted;
  context.strokeStyle = line;
  context.lineWidth = 1;
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (let power = LOWEST; power <= HIGHEST; power += 2) {
    context.beginPath();
    context.moveTo(x(0), Math.round(y(power)) + 0.5);
    context.lineTo(x(steps), Math.round(y(power)) + 0.5);
    context.stroke();
    if (power % 4 === 0)
      context.fillText(power === 0 ? "1" : power > 0 ? number(10 ** power) : `1e${power}`, x(0) - 6, y(power));
  }
  context.textBaseline = "top";
  for (let n = 0; n <= steps; n += 100) {
    context.textAlign = n === steps ? "right" : "center";
    context.fillText(n, x(n), height - MARGIN.bottom + 7);
  }
  context.textAlign = "center";
  context.fillText(t("axis.step"), (x(0) + width) / 2, height - 15);
}
