// Small valleys and five optimizers in them, as numbers alone: nothing here knows the page.
//
// The rules are Paddle's, with its defaults (core/catalogue.py); a test runs Paddle beside them.

/** The longest run that is shown, in steps. */
export const STEPS = 300;
/** A loss of so little counts as having arrived. */
export const ARRIVED = 0.001;
/** A loss of so many times the first one counts as diverged. */
const BLOWN_UP = 1000;

/**
 * The surfaces, in closed form: `loss`, `gradient` and `hessian` (`[xx, xy, yy]`) of a place; `x` and `y` are what is shown of
 * them, `minima` where they are lowest, `noise` is the standard deviation of a noisy gradient.
 */
export const SURFACES = {
  valley: {
    x: [-3, 3],
    y: [-1.5, 1.5],
    start: [-2.5, 0.9],
    minima: [[0, 0]],
    noise: 2,
    loss: ([x, y]) => (x * x + 25 * y * y) / 2, // 25 times as steep across as along
    gradient: ([x, y]) => [x, 25 * y],
    hessian: () => [1, 0, 25],
  },
  curved: {
    x: [-2, 2],
    y: [-0.5, 1.5],
    start: [-1.1, 0.9],
    minima: [[1, 1]],
    noise: 1,
    loss: ([x, y]) => ((1 - x) ** 2 + 10 * (y - x * x) ** 2) / 2, // after Rosenbrock 1960, less steep
    gradient: ([x, y]) => [x - 1 - 20 * x * (y - x * x), 10 * (y - x * x)],
    hessian: ([x, y]) => [1 - 20 * y + 60 * x * x, -20 * x, 10],
  },
  saddle: {
    x: [-1.8, 1.8],
    y: [-0.9, 0.9],
    start: [0.01, 0.75],
    minima: [
      [-1, 0],
      [1, 0],
    ],
    noise: 0.3,
    loss: ([x, y]) => (x * x - 1) ** 2 / 4 + 4 * y * y, // flat at (0, 0), down to both sides of it
    gradient: ([x, y]) => [x * (x * x - 1), 8 * y],
    hessian: ([x]) => [3 * x * x - 1, 0, 8],
  },
};

/** The largest curvature at a place: the larger eigenvalue of the Hessian. Plain steps longer than 2 over it grow. */
export function curvature(surface, place) {
  const [xx, xy, yy] = SURFACES[surface].hessian(place);
  return (xx + yy) / 2 + Math.hypot((xx - yy) / 2, xy);
}

/**
 * The rules. Each takes the gradient `g` of one parameter, what it `kept` from the step before (null at first), the rate, the
 * momentum and the number of the step from 1, and gives `[what is added to the parameter, what it keeps]`.
 */
export const RULES = {
  sgd: (g, _kept, { rate }) => [-rate * g, null],

  momentum(g, kept, { rate, momentum }) {
    const v = momentum * (kept ?? 0) + g;
    return [-rate * v, v];
  },

  adagrad(g, kept, { rate }) {
    const sum = (kept ?? 0) + g * g;
    return [(-rate * g) / (Math.sqrt(sum) + 1e-6), sum];
  },

  rmsprop(g, kept, { rate }) {
    const mean = 0.95 * (kept ?? 0) + 0.05 * g * g;
    return [(-rate * g) / Math.sqrt(mean + 1e-6), mean]; // Paddle adds its epsilon under the root here
  },

  adam(g, kept, { rate }, step) {
    const [m, v] = [0.9 * (kept?.m ?? 0) + 0.1 * g, 0.999 * (kept?.v ?? 0) + 0.001 * g * g];
    const [first, second] = [m / (1 - 0.9 ** step), v / (1 - 0.999 ** step)]; // corrected for their start at zero
    return [(-rate * first) / (Math.sqrt(second) + 1e-8), { m, v }];
  },
};
export const OPTIMIZERS = Object.keys(RULES);

/**
 * The way of one optimizer: `{places, losses, divergedAt, arrivedAt}`, with the start as place 0. It ends early where it diverges.
 * `settings` are `{surface, start, rate, momentum, isNoisy}`.
 */
export function descend(optimizer, settings, steps = STEPS) {
  const surface = SURFACES[settings.surface];
  const way = { places: [settings.start], losses: [surface.loss(settings.start)], divergedAt: null, arrivedAt: null };
  let [place, kept] = [settings.start, [null, null]];
  for (let step = 1; step <= steps; step++) {
    const noise = settings.isNoisy ? noiseOf(step) : [0, 0];
    const gradient = surface.gradient(place).map((slope, axis) => slope + surface.noise * noise[axis]);
    const moves = gradient.map((g, axis) => RULES[optimizer](g, kept[axis], settings, step));
    place = place.map((value, axis) => value + moves[axis][0]);
    kept = moves.map(([, keeps]) => keeps);
    const loss = surface.loss(place);
    way.places.push(place);
    way.losses.push(loss);
    if (way.arrivedAt === null && loss < ARRIVED) way.arrivedAt = step;
    if (!(loss < BLOWN_UP * way.losses[0] + 1)) {
      way.divergedAt = step;
      break;
    }
  }
  return way;
}

/** The same for all at a step, as all see the same mini-batches: two numbers, normally distributed. */
function noiseOf(step) {
  const radius = Math.sqrt(-2 * Math.log(1 - fraction(2 * step)));
  const angle = 2 * Math.PI * fraction(2 * step + 1);
  return [radius * Math.cos(angle), radius * Math.sin(angle)];
}

/** A number from 0 up to 1 that looks random, always the same for the same n: a hash of 32 bits (Wellons' lowbias32). */
function fraction(n) {
  let x = Math.imul(n ^ (n >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return ((x ^ (x >>> 16)) >>> 0) / 2 ** 32;
}
