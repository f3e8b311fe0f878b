// The models there are to ask: their names, their jobs, and the classes of their data sets.

import { get } from "./api.js";
import { labelOf } from "./encoding.js";
import { live } from "./live.js";
import { language, percent, t } from "./text.js";

/** What `GET /models` and `GET /datasets` say. */
export class Models {
  #classes = new Map();
  #models = new Map(); // by job
  #aliases = {};
  isRead = false;

  /** Raises as `get` does. */
  async read() {
    const [page, { datasets }] = await Promise.all([get("/models?limit=100"), get("/datasets")]);
    this.#models = new Map(page.models.map((model) => [model.job_id, model]));
    this.#aliases = page.aliases;
    for (const each of datasets) this.#classes.set(each.name, each);
    this.isRead = true;
  }

  get isEmpty() {
    return this.#models.size === 0;
  }

  /** Names that stand for a job's model, those that the server keeps first. */
  get names() {
    return Object.keys(this.#aliases);
  }

  get jobs() {
    return [...this.#models.keys()];
  }

  /** The job whose model a name means; a job's id means itself. */
  jobOf = (name) => this.#aliases[name] ?? name;

  of = (name) => this.#models.get(this.jobOf(name)) ?? null;

  /** The data set of a model, as its name tells it where the list does not reach. */
  datasetOf(name) {
    return this.of(name)?.dataset ?? live.jobs.get(this.jobOf(name))?.spec.dataset ?? name.split(":")[1] ?? "mnist";
  }

  /** The names of a data set's classes in the reader's language. */
  classesOf(dataset) {
    const found = this.#classes.get(dataset);
    return (language === "zh" ? found?.classes_zh : found?.classes) ?? [..."0123456789"];
  }

  /** What was trained, in a line: `adam 0.001 · my first`. */
  describe(name) {
    const job = live.jobs.get(this.jobOf(name));
    if (!job) return `…${this.jobOf(name).slice(-6)}`;
    return job.spec.name ? `${labelOf(job)} · ${job.spec.name}` : labelOf(job);
  }

  /** The same with how good it is and what on. */
  option(name) {
    const model = this.of(name);
    const dataset = this.datasetOf(name) === "mnist" ? "" : ` · ${this.datasetOf(name)}`;
    const accuracy = model?.test_accuracy == null ? "" : ` · ${percent(model.test_accuracy)}`;
    return `${name.startsWith("job_") ? "" : `${name}: `}${this.describe(name)}${accuracy}${dataset}`;
  }

  accuracy(name) {
    const model = this.of(name);
    return model?.test_accuracy == null ? "" : t("draw.accuracy", { accuracy: percent(model.test_accuracy) });
  }

  /** The first to show somebody who chose none. */
  get first() {
    return this.names.includes("best") || !this.names.length ? "best" : this.names[0];
  }
}
