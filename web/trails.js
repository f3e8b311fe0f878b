// How an optimizer's way is told apart wherever it is drawn: a colour, dashes and a mark of its own. (Elsewhere a colour is a rate;
// here all have the same. The dashes are those of the curves.)

import { palette } from "./chart.js";
import { h, s } from "./dom.js";
import { dashLengths, dashOf, isDark } from "./encoding.js";

// Okabe and Ito's, darker on light ground and lighter on dark: three to one against either at least.
const LOOKS = {
  sgd: { light: "#5a3fb0", dark: "#b9a6ff", mark: "M-5 0A5 5 0 1 0 5 0A5 5 0 1 0 -5 0Z" },
  momentum: { light: "#c04a00", dark: "#ff9a57", mark: "M-5 -5H5V5H-5Z" },
  adagrad: { light: "#00714f", dark: "#3fd6a6", mark: "M0 -6L6 5H-6Z" },
  rmsprop: { light: "#a5317a", dark: "#f29ac8", mark: "M0 -7L6 0L0 7L-6 0Z" },
  adam: {
    light: "#0062a3",
    dark: "#6cc0ff",
    mark: "M-6 -3.5L-3.5 -6L0 -2.5L3.5 -6L6 -3.5L2.5 0L6 3.5L3.5 6L0 2.5L-3.5 6L-6 3.5L-2.5 0Z",
  },
};

export const colourOf = (optimizer) => LOOKS[optimizer][isDark() ? "dark" : "light"];
const dashes = (optimizer) => dashLengths(dashOf({ optimizer: { name: optimizer } }));

/** A canvas that fills its element, sharp on any screen: `[context, width, height]` in CSS pixels, or null while it is not shown. */
export function sized(canvas) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width || !height) return null;
  const [w, h] = [width, height].map((length) => Math.round(length * devicePixelRatio));
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  const context = canvas.getContext("2d");
  context.setTransform(w / width, 0, 0, h / height, 0, 0);
  context.clearRect(0, 0, width, height);
  return [context, width, height];
}

/** Ways through pixels, pairs of an optimizer and its places, with the optimizers' marks at their ends above all ways. */
export function drawTrails(context, trails) {
  const { ground } = palette();
  for (const [optimizer, pixels] of trails) drawTrail(context, optimizer, pixels, ground);
  for (const [optimizer, pixels] of trails) drawMark(context, optimizer, pixels.at(-1), ground);
}

function drawTrail(context, optimizer, pixels, ground) {
  const pattern = dashes(optimizer);
  context.lineJoin = "round";
  context.beginPath();
  for (const [x, y] of pixels) context.lineTo(x, y);
  for (const [width, colour, lines] of [
    [4.5, ground, []],
    [2.2, colourOf(optimizer), pattern],
  ]) {
    context.setLineDash(lines);
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.globalAlpha = colour === ground ? 0.5 : 1;
    context.stroke();
  }
  context.setLineDash([]);
}

function drawMark(context, optimizer, [x, y], ground) {
  context.save();
  context.translate(x, y);
  const mark = new Path2D(LOOKS[optimizer].mark);
  context.lineWidth = 3;
  context.strokeStyle = ground;
  context.stroke(mark);
  context.fillStyle = colourOf(optimizer);
  context.fill(mark);
  context.restore();
}

/** The same as a small picture, for tables and texts. */
export function swatch(optimizer) {
  const colour = colourOf(optimizer);
  return h(
    "span.swatch",
    { "aria-hidden": "true" },
    s(
      "svg",
      { viewBox: "0 0 44 16", width: 44, height: 16 },
      s("path", {
        d: "M0 8H44",
        stroke: colour,
        "stroke-width": 2.2,
        "stroke-dasharray": dashes(optimizer).join(" ") || null,
      }),
      s("path", { d: LOOKS[optimizer].mark, transform: "translate(22 8)", fill: colour }),
    ),
  );
}
