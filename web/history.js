// A run's loss history as the page holds it: columns that grow.

/** So many points are shown as they are; of more, the least and the largest of each stretch. */
export const MOST_SHOWN = 5000;
const MOST_HELD = 2 * MOST_SHOWN; // of a run that goes on

export class History {
  /** `stepsPerEpoch` places points on an axis of epochs. */
  constructor(stepsPerEpoch) {
    this.stepsPerEpoch = stepsPerEpoch;
    /** Columns of the same length. A loss that was not finite is null. */
    this.step = [];
    this.time = [];
    this.loss = [];
    /** `EpochMetrics` of the API, in order. */
    this.epochs = [];
    /** How many points there are on the server; more than here when they were sampled there. */
    this.count = 0;
    /** Whether this is all there will be, unless the run is trained again. */
    this.isWhole = false;
  }

  /** Add points of the API, `{step, loss, time_s}`. Those that are here already are not added again. */
  append(points) {
    let last = this.step.at(-1) ?? -1;
    for (const point of points) {
      if (point.step <= last) continue;
      last = point.step;
      this.step.push(point.step);
      this.time.push(point.time_s);
      this.loss.push(point.loss);
      this.count += 1;
    }
    if (this.step.length > MOST_HELD) this.#thin();
  }

  /** As the server samples. */
  #thin() {
    const kept = shown(this.loss);
    for (const name of ["step", "time", "loss"]) this[name] = kept.map((index) => this[name][index]);
  }

  addEpoch(metrics) {
    if (!this.epochs.some((known) => known.epoch === metrics.epoch)) this.epochs.push(metrics);
  }

  /** The x values for an axis: `step`, `epoch` (0.5 is half of the first) or `time` (seconds of training). */
  along(axis) {
    if (axis === "time") return this.time;
    return axis === "epoch" ? this.step.map((step) => step / this.stepsPerEpoch) : this.step;
  }

  /** Where an epoch's metrics stand on an axis: at its end. */
  epochEnds(axis) {
    if (axis === "time") {
      let seconds = 0;
      return this.epochs.map((each) => {
        seconds += each.seconds;
        return seconds;
      });
    }
    const unit = axis === "epoch" ? 1 : this.stepsPerEpoch;
    return this.epochs.map((each) => (each.epoch + 1) * unit);
  }

  get lastLoss() {
    return this.loss.at(-1);
  }
}

/**
 * The exponential mean of a column as TensorBoard means it, without bias to its start (divided by 1 - weight^n, as in Adam).
 * null values stay null and do not count.
 */
export function smoothed(values, weight) {
  if (!(weight > 0)) return values;
  let mean = 0;
  let count = 0;
  return values.map((value) => {
    if (value === null) return null;
    count += 1;
    mean = weight * mean + (1 - weight) * value;
    return mean / (1 - weight ** count);
  });
}

/**
 * The indexes of at most `most` points that show a column's shape: the ends, and of each stretch between them the least and the
 * largest (null counts as the largest). All of them when they are no more than that.
 */
export function shown(values, most = MOST_SHOWN) {
  if (values.length <= most) return values.map((_, index) => index);
  const height = (index) => values[index] ?? Infinity;
  const buckets = Math.floor((most - 2) / 2);
  const inner = values.length - 2;
  const kept = [0];
  for (let bucket = 0; bucket < buckets; bucket++) {
    const from = 1 + Math.floor((bucket * inner) / buckets);
    const to = 1 + Math.floor(((bucket + 1) * inner) / buckets);
    let least = from;
    let largest = from;
    for (let index = from; index < to; index++) {
      if (height(index) < height(least)) least = index;
      if (height(index) > height(largest)) largest = index;
    }
    kept.push(...new Set([Math.min(least, largest), Math.max(least, largest)]));
  }
  return [...kept, values.length - 1];
}
