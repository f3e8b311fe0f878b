// A loss history as small as a word.

import { s } from "./dom.js";
import { dashLengths } from "./encoding.js";

const [WIDTH, HEIGHT, EDGE] = [88, 22, 2];
const LEAST = 1e-6; // a loss of 0 has no logarithm

/** The losses from left to right, on a log axis of their own; where they were not finite there is a gap. */
export function sparkline(losses) {
  const heights = losses.map((loss) => (loss === null ? null : Math.log(Math.max(loss, LEAST))));
  const path = s("path", { d: pathOf(heights), fill: "none" });
  return s(
    "svg.sparkline",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, height: HEIGHT, "aria-hidden": "true" },
    path,
  );
}

function pathOf(heights) {
  const finite = heights.filter((height) => height !== null);
  const low = Math.min(...finite);
  const span = Math.max(...finite) - low || 1;
  const stretch = (WIDTH - 2 * EDGE) / Math.max(heights.length - 1, 1);
  let path = "";
  let isDown = false;
  heights.forEach((height, index) => {
    if (height !== null) {
      const y = HEIGHT - EDGE - ((height - low) / span) * (HEIGHT - 2 * EDGE);
      path += `${isDown ? "L" : "M"}${(EDGE + index * stretch).toFixed(1)} ${y.toFixed(1)}`;
    }
    isDown = height !== null;
  });
  return path;
}

/** A sample of a run's line, to know it by: its colour and its dashes. */
export function swatch(colour, dash, width = 34) {
  const dashes = dashLengths(dash).join(" ") || null;
  const line = s("line", { x1: 1, x2: width - 1, y1: 5, y2: 5, stroke: colour, "stroke-dasharray": dashes });
  return s("svg.swatch", { viewBox: `0 0 ${width} 10`, width, height: 10, "aria-hidden": "true" }, line);
}
