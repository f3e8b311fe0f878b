// Something to begin with: drawings as points, for those who have no hand free. x and y go from 0 to 1; a point that stands twice
// is a corner, because lines are drawn round.

const WIDTH = 0.08;
const stroke = (...points) => ({ points, width: WIDTH });
const shape = (fill, ...points) => ({ points: points.flatMap((point) => [point, point]), fill });

/** A part of an ellipse, in turns from the right, clockwise. */
function arc(x, y, width, height, from, to) {
  return Array.from({ length: 25 }, (_, n) => {
    const angle = 2 * Math.PI * (from + ((to - from) * n) / 24);
    return [x + (width / 2) * Math.cos(angle), y + (height / 2) * Math.sin(angle)];
  });
}

const DIGITS = [
  [stroke(...arc(0.5, 0.5, 0.4, 0.62, -0.25, 0.76))],
  [stroke([0.56, 0.18], [0.54, 0.4], [0.49, 0.6], [0.46, 0.82])],
  [stroke(...arc(0.5, 0.36, 0.36, 0.34, -0.45, 0.1), [0.42, 0.68], [0.3, 0.8], [0.3, 0.8], [0.5, 0.78], [0.73, 0.8])],
  [stroke(...arc(0.48, 0.35, 0.34, 0.32, -0.42, 0.22), ...arc(0.47, 0.65, 0.4, 0.34, -0.22, 0.4))],
  [
    stroke([0.36, 0.2], [0.34, 0.4], [0.32, 0.54], [0.32, 0.54], [0.5, 0.54], [0.7, 0.52]),
    stroke([0.64, 0.2], [0.62, 0.5], [0.58, 0.84]),
  ],
  [stroke([0.68, 0.2], [0.4, 0.21], [0.4, 0.21], [0.37, 0.45], [0.37, 0.45], ...arc(0.47, 0.62, 0.4, 0.38, -0.3, 0.4))],
  [stroke([0.6, 0.16], [0.46, 0.3], [0.36, 0.48], ...arc(0.5, 0.66, 0.32, 0.32, -0.5, 0.52))],
  [stroke([0.27, 0.24], [0.5, 0.22], [0.74, 0.22], [0.74, 0.22], [0.6, 0.48], [0.46, 0.84])],
  [stroke(...arc(0.5, 0.34, 0.28, 0.3, 0.25, -0.75), ...arc(0.5, 0.66, 0.34, 0.34, -0.25, 0.75))],
  [stroke(...arc(0.48, 0.36, 0.32, 0.34, 0, -1), [0.64, 0.5], [0.6, 0.68], [0.54, 0.86])],
];

const CLOTHES = {
  0: [
    shape(
      "#555555",
      [0.36, 0.12],
      [0.5, 0.18],
      [0.64, 0.12],
      [0.9, 0.26],
      [0.82, 0.42],
      [0.7, 0.38],
      [0.71, 0.9],
      [0.29, 0.9],
      [0.3, 0.38],
      [0.18, 0.42],
      [0.1, 0.26],
    ),
  ],
  1: [shape("#444444", [0.34, 0.06], [0.66, 0.06], [0.7, 0.94], [0.56, 0.94], [0.5, 0.3], [0.44, 0.94], [0.3, 0.94])],
  8: [
    shape("#444444", [0.1, 0.4], [0.9, 0.4], [0.94, 0.9], [0.06, 0.9]),
    { points: arc(0.5, 0.4, 0.4, 0.44, -0.5, 0), width: 0.05 },
  ],
  9: [
    shape(
      "#333333",
      [0.5, 0.08],
      [0.9, 0.06],
      [0.87, 0.45],
      [0.93, 0.92],
      [0.8, 0.92],
      [0.76, 0.84],
      [0.6, 0.9],
      [0.06, 0.92],
      [0.06, 0.78],
      [0.3, 0.62],
      [0.47, 0.46],
    ),
  ],
};

/** Drawings by the class they show, `[class, items]`, for models of a data set. */
export function examplesOf(dataset) {
  return dataset === "fashion-mnist"
    ? Object.entries(CLOTHES).map(([number, items]) => [Number(number), items])
    : [...DIGITS.entries()];
}
