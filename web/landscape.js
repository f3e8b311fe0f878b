// A valley seen from above, with the ways that optimizers take in it. The start is taken along with the pointer or the arrow keys.

import { palette } from "./chart.js";
import { isDark } from "./encoding.js";
import { drawTrails, sized } from "./trails.js";
import { SURFACES } from "./valley.js";

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const KEY_STEPS = 60; // from one side to the other
const BANDS = 3; // for each factor of ten in the loss
const LOWEST = 0.003; // below that all is one band
const TINTS = {
  light: [
    [255, 255, 255],
    [196, 211, 226],
  ],
  dark: [
    [49, 74, 97],
    [18, 24, 30],
  ],
};

export class Landscape {
  #ground = { key: null, canvas: document.createElement("canvas") };
  #shown = null;
  #isHeld = false;
  #stop = new AbortController();

  /** `onStart(place)` is told where somebody puts the start. */
  constructor(canvas, { onStart }) {
    this.canvas = canvas;
    this.onStart = onStart;
    const { signal } = this.#stop;
    const on = (name, act) => canvas.addEventListener(name, act, { signal });
    on("pointerdown", (event) => this.#take(event));
    on("pointermove", (event) => this.#isHeld && this.#put(event));
    for (const name of ["pointerup", "pointercancel"]) {
      on(name, () => {
        this.#isHeld = false;
      });
    }
    on("keydown", (event) => this.#pressed(event));
    this.resizing = new ResizeObserver(() => this.#draw());
    this.resizing.observe(canvas);
  }

  gone() {
    this.#stop.abort();
    this.resizing.disconnect();
  }

  /** `{surface, start, ways, step}`; `ways` are pairs of an optimizer and what `descend` gave. */
  show(shown) {
    this.#shown = shown;
    this.#draw();
  }

  #draw() {
    const place = this.#shown && sized(this.canvas);
    if (!place) return;
    const [context, width, height] = place;
    const { surface, start, ways, step } = this.#shown;
    context.drawImage(this.#groundOf(surface), 0, 0, width, height);
    const toPixel = this.#scale(width, height);
    for (const minimum of SURFACES[surface].minima) drawTarget(context, toPixel(minimum));
    drawStart(context, toPixel(start));
    drawTrails(
      context,
      ways.map(([optimizer, way]) => [optimizer, way.places.slice(0, step + 1).map(toPixel)]),
    );
  }

  /** From a place to pixels; what has flown far away is kept near enough to be drawn. */
  #scale(width, height) {
    const { x, y } = SURFACES[this.#shown.surface];
    const near = (value, length) => Math.min(20 * length, Math.max(-20 * length, value));
    return (place) => [
      near(((place[0] - x[0]) / (x[1] - x[0])) * width, width),
      near(((y[1] - place[1]) / (y[1] - y[0])) * height, height),
    ];
  }

  #groundOf(surface) {
    const { width, height } = this.canvas;
    const key = `${surface} ${width} ${height} ${isDark()}`;
    if (this.#ground.key !== key) {
      Object.assign(this.#ground.canvas, { width, height });
      paintGround(this.#ground.canvas.getContext("2d"), SURFACES[surface], TINTS[isDark() ? "dark" : "light"]);
      this.#ground.key = key;
    }
    return this.#ground.canvas;
  }

  // --- the start ---------------------------------------------------------------------------------------------------------

  #take(event) {
    if (event.button !== 0) return;
    this.#isHeld = true;
    this.canvas.setPointerCapture(event.pointerId);
    this.#put(event);
  }

  #put(event) {
    const box = this.canvas.getBoundingClientRect();
    const { x, y } = SURFACES[this.#shown.surface];
    this.#begin([
      x[0] + ((event.clientX - box.left) / box.width) * (x[1] - x[0]),
      y[1] - ((event.clientY - box.top) / box.height) * (y[1] - y[0]),
    ]);
  }

  #pressed(event) {
    const direction = ARROWS[event.key];
    if (!direction || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const { x } = SURFACES[this.#shown.surface];
    const length = (x[1] - x[0]) / KEY_STEPS;
    this.#begin(this.#shown.start.map((value, axis) => value + length * direction[axis]));
  }

  #begin(place) {
    const { x, y } = SURFACES[this.#shown.surface];
    const within = (value, [from, to]) => Number(Math.min(to, Math.max(from, value)).toFixed(3));
    this.onStart([within(place[0], x), within(place[1], y)]);
  }
}

/** Bands of equal loss, on a log scale, with smooth edges: the slope says how wide an edge is. */
function paintGround(context, surface, [low, high]) {
  const { width, height } = context.canvas;
  const image = context.createImageData(width, height);
  const unit = (surface.x[1] - surface.x[0]) / width;
  const top = bandOf(Math.max(surface.loss([surface.x[0], surface.y[1]]), surface.loss([surface.x[1], surface.y[0]])));
  for (let row = 0, n = 0; row < height; row++) {
    for (let column = 0; column < width; column++, n += 4) {
      const place = [surface.x[0] + (column + 0.5) * unit, surface.y[1] - (row + 0.5) * unit];
      const loss = surface.loss(place);
      const band = bandOf(loss);
      const slope = (BANDS * Math.hypot(...surface.gradient(place)) * unit) / (Math.LN10 * (loss + LOWEST));
      const edge = Math.min(1, (band - Math.floor(band)) / Math.max(slope, 1e-6));
      const level = Math.min(1, (Math.floor(band) - 1 + edge) / top);
      for (let c = 0; c < 3; c++) image.data[n + c] = low[c] + (high[c] - low[c]) * level;
      image.data[n + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}

const bandOf = (loss) => 1 + BANDS * Math.log10((loss + LOWEST) / LOWEST);

function drawTarget(context, [x, y]) {
  context.lineWidth = 1.5;
  context.strokeStyle = palette().muted;
  context.beginPath();
  context.moveTo(x - 7, y);
  context.lineTo(x + 7, y);
  context.moveTo(x, y - 7);
  context.lineTo(x, y + 7);
  context.stroke();
}

function drawStart(context, [x, y]) {
  const { text, ground } = palette();
  context.beginPath();
  context.arc(x, y, 9, 0, 2 * Math.PI);
  for (const [width, colour] of [
    [5, ground],
    [2, text],
  ]) {
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.stroke();
  }
}
