// A sheet of paper to draw on, with a finger, a pen, a mouse or the keys. It keeps strokes, not pixels: they are sharp at any size
// and can be taken back.

const INK = "#111111";
const PAPER = "#ffffff";
/** The longer side of the picture that is sent, in pixels: the server makes what is larger smaller before it looks for ink. */
const SIDE = 280;
const KEY_STEP = 0.02;
const FINE_STEP = 0.005;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/**
 * What is on the paper. Fires `change`. Lengths are parts of its side: a point is `[x, y]` from 0 to 1. An item is a stroke
 * `{points, width}`, a shape `{points, fill}` or a picture `{picture, width, height}`.
 */
export class Drawing extends EventTarget {
  items = [];
  #past = [];

  get isEmpty() {
    return this.items.length === 0;
  }

  get canUndo() {
    return this.#past.length > 0;
  }

  /** Add a stroke. It may grow; say so with `grown`. */
  add(stroke) {
    this.#become([...this.items, stroke]);
  }

  grown() {
    this.dispatchEvent(new Event("change"));
  }

  /** Put these in the place of all there is. */
  replace(items) {
    this.#become(items);
  }

  clear() {
    if (!this.isEmpty) this.#become([]);
  }

  /** Take back the last stroke, or clearing, or replacing. */
  undo() {
    if (!this.canUndo) return;
    this.items = this.#past.pop();
    this.dispatchEvent(new Event("change"));
  }

  #become(items) {
    this.#past.push(this.items);
    this.items = items;
    this.dispatchEvent(new Event("change"));
  }

  /** As it is sent: dark on white, or a picture in its own shape, as transparent as it came. */
  canvas() {
    const canvas = document.createElement("canvas");
    const framed = this.items.find((item) => item.picture);
    const [left, top, width, height] = framed ? placeOf(framed) : [0, 0, 1, 1];
    const side = SIDE / Math.max(width, height);
    canvas.width = Math.max(1, Math.round(width * side));
    canvas.height = Math.max(1, Math.round(height * side));
    const context = canvas.getContext("2d");
    if (!framed) fillPaper(context, side);
    context.translate(-left * side, -top * side);
    paint(context, this.items, side);
    return canvas;
  }
}

/** Where a picture lies on the paper: whole, in its middle. `[left, top, width, height]`. */
function placeOf({ width, height }) {
  const longer = Math.max(width, height);
  const [w, h] = [width / longer, height / longer];
  return [(1 - w) / 2, (1 - h) / 2, w, h];
}

function fillPaper(context, side) {
  context.fillStyle = PAPER;
  context.fillRect(0, 0, side, side);
}

function paint(context, items, side) {
  context.lineCap = "round";
  context.lineJoin = "round";
  context.strokeStyle = INK;
  context.imageSmoothingQuality = "high";
  for (const item of items) {
    if (item.picture) {
      context.drawImage(item.picture, ...placeOf(item).map((length) => length * side));
      continue;
    }
    trace(context, item.points, side);
    context.fillStyle = item.fill ?? INK;
    if (item.fill) context.fill();
    else {
      context.lineWidth = item.width * side;
      context.stroke();
    }
  }
}

/** A curve through the middles between points: what comes in as corners is drawn round. */
function trace(context, points, side) {
  const scaled = points.map(([x, y]) => [x * side, y * side]);
  const [last, [x0, y0]] = [scaled.at(-1), scaled[0]];
  context.beginPath();
  context.moveTo(x0, y0);
  for (let n = 1; n < scaled.length - 1; n++) {
    const [[x, y], [nextX, nextY]] = [scaled[n], scaled[n + 1]];
    context.quadraticCurveTo(x, y, (x + nextX) / 2, (y + nextY) / 2);
  }
  context.lineTo(last[0] + 0.01, last[1]); // a line of no length would draw no dot
}

/** Shows a drawing on a canvas and takes what is drawn there; `penWidth` is a part of the side. Ends with `gone`. */
export class Pad {
  penWidth = 0.08;
  #stroke = null;
  #pointer = null;
  #pen = { at: [0.5, 0.5], isDown: false, isShown: false };
  #held = new Set();
  #frame = null;
  #stop = new AbortController();

  constructor(canvas, drawing, { onPen = () => {} } = {}) {
    this.canvas = canvas;
    this.drawing = drawing;
    this.onPen = onPen;
    const { signal } = this.#stop;
    const on = (name, act) => canvas.addEventListener(name, act, { signal });
    on("pointerdown", (event) => this.#began(event));
    on("pointermove", (event) => this.#moved(event));
    for (const name of ["pointerup", "pointercancel"]) on(name, (event) => this.#ended(event));
    on("keydown", (event) => this.#pressed(event));
    on("keyup", (event) => this.#held.delete(event.key));
    on("focus", () => this.#showPen(canvas.matches(":focus-visible")));
    on("blur", () => this.#showPen(false));
    drawing.addEventListener("change", () => this.draw(), { signal });
    this.resizing = new ResizeObserver(() => this.draw());
    this.resizing.observe(canvas);
  }

  gone() {
    this.#stop.abort();
    this.resizing.disconnect();
    cancelAnimationFrame(this.#frame);
  }

  /** Draw before the next picture of the screen. */
  draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    const side = Math.round(this.canvas.clientWidth * devicePixelRatio);
    if (!side) return;
    if (this.canvas.width !== side) this.canvas.width = this.canvas.height = side;
    const context = this.canvas.getContext("2d");
    fillPaper(context, side);
    paint(context, this.drawing.items, side);
    if (this.#pen.isShown) this.#drawPen(context, side);
  }

  #drawPen(context, side) {
    const [x, y] = this.#pen.at.map((part) => part * side);
    context.beginPath();
    context.arc(x, y, (this.penWidth * side) / 2 + 3, 0, 2 * Math.PI);
    context.lineWidth = 3;
    context.strokeStyle = "#0a5f9e";
    context.stroke();
    context.beginPath();
    context.arc(x, y, this.#pen.isDown ? 6 : 2.5, 0, 2 * Math.PI);
    context.fillStyle = "#0a5f9e";
    context.fill();
  }

  // --- mouse, pen, finger ------------------------------------------------------------------------------------------------

  #began(event) {
    if (this.#pointer !== null || event.button !== 0) return; // a second finger draws nothing
    event.preventDefault();
    this.canvas.focus({ preventScroll: true, focusVisible: false });
    this.#pointer = event.pointerId;
    try {
      this.canvas.setPointerCapture(event.pointerId);
    } catch {
      // a pointer that is gone already
    }
    this.#lift();
    this.#showPen(false);
    this.#stroke = { points: [this.#placeOf(event)], width: this.penWidth };
    this.drawing.add(this.#stroke);
  }

  #moved(event) {
    if (event.pointerId !== this.#pointer) return;
    const passed = event.getCoalescedEvents?.() ?? [];
    for (const each of passed.length ? passed : [event]) this.#stroke.points.push(this.#placeOf(each));
    this.drawing.grown();
  }

  #ended(event) {
    if (event.pointerId !== this.#pointer) return;
    this.#pointer = this.#stroke = null;
  }

  #placeOf(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  // --- keys --------------------------------------------------------------------------------------------------------------

  #pressed(event) {
    const isCommand = event.ctrlKey || event.metaKey;
    if (isCommand && event.key === "z") this.drawing.undo();
    else if (isCommand || event.altKey) return;
    else if (event.key in ARROWS) this.#travel(event);
    else if (event.key === " ") this.#turnPen();
    else if (event.key === "Backspace") this.drawing.undo();
    else if (event.key === "Delete") this.drawing.clear();
    else return;
    if (!(event.key in ARROWS || event.key === " ")) this.#lift();
    event.preventDefault();
  }

  /** Two arrows held together go aslant. */
  #travel(event) {
    this.#held.add(event.key);
    const length = event.shiftKey ? FINE_STEP : KEY_STEP;
    const at = [...this.#pen.at];
    for (const key of this.#held) {
      for (const axis of [0, 1]) at[axis] = Math.min(1, Math.max(0, at[axis] + length * (ARROWS[key]?.[axis] ?? 0)));
    }
    this.#pen.at = at;
    this.#showPen(true);
    if (!this.#pen.isDown) return;
    this.#stroke.points.push(at);
    this.drawing.grown();
  }

  #turnPen() {
    const isDown = !this.#pen.isDown;
    this.#lift();
    this.#pen.isDown = isDown;
    this.#showPen(true);
    if (isDown) {
      this.#stroke = { points: [this.#pen.at], width: this.penWidth };
      this.drawing.add(this.#stroke);
    }
    this.onPen(isDown);
  }

  #lift() {
    this.#pen.isDown = false;
    this.#stroke = null;
  }

  #showPen(isShown) {
    this.#pen.isShown = isShown;
    if (!isShown) this.#held.clear();
    this.draw();
  }
}
