// Draw a digit: a sheet of paper, what the network sees of it, and what up to four models say, while it is drawn.

import { connection, Problem, save } from "./api.js";
import { Asking } from "./asking.js";
import { Column } from "./bars.js";
import { copyOf } from "./clipboard.js";
import { curlForm } from "./curl.js";
import { fill, h } from "./dom.js";
import { live } from "./live.js";
import { Models } from "./models.js";
import { Drawing } from "./pad.js";
import { wordsOf } from "./refusal.js";
import { button, heading, Sheet } from "./sheet.js";
import { has, percent, t } from "./text.js";

const MOST_MODELS = 4;
const REST_MS = 600; // after the last answer, so that what is spoken is of the whole drawing

// What was drawn stays when the language or the view changes.
const drawing = new Drawing();
const models = new Models();

export function mount(root, route) {
  const view = new View(route);
  fill(root, view.element);
  view.start();
  return () => view.gone();
}

class View {
  #columns = [];
  #seen = new Map(); // by data set
  #said = "";
  #ended = "";
  #resting = null; // the timer of what is spoken next
  #stop = new AbortController();

  constructor(route) {
    this.route = route;
    const named = route.query.get("models")?.split(",").filter(Boolean) ?? [];
    this.wanted = [...new Set(named)].slice(0, MOST_MODELS);
    this.asking = new Asking({
      wanted: () => ({
        image: drawing.isEmpty ? null : drawing.canvas().toDataURL("image/png"),
        models: this.#columns.map((column) => column.model),
      }),
      onAnswer: (model, answer, error, image) => this.#answered(model, answer, error, image),
    });
    this.guesses = h("div.guesses");
    this.verdict = h("p.agreement", { hidden: true });
    this.spoken = h("p.hidden-text", { "aria-live": "polite" });
    this.seen = h("div.seen-all");
    this.adding = h("div");
    this.curl = h("code");
    this.sheet = new Sheet(drawing, (words) => fill(this.spoken, words));
    this.element = this.#page();
  }

  /** The models to ask; while none was chosen, the best. */
  get chosen() {
    return this.wanted.length ? this.wanted : [models.first];
  }

  start() {
    const { signal } = this.#stop;
    drawing.addEventListener("change", () => this.#drawn(), { signal });
    live.addEventListener("change", () => this.#runsChanged(), { signal });
    connection.addEventListener("change", () => connection.isUp && this.#read(), { signal });
    this.#drawn();
    this.#show();
    this.#read();
  }

  gone() {
    this.#stop.abort();
    clearTimeout(this.#resting);
    this.sheet.gone();
    this.asking.gone();
  }

  // --- the page ----------------------------------------------------------------------------------------------------------

  #page() {
    return h(
      "div.draw",
      {},
      h("h1", {}, t("title.draw")),
      h("p.muted.intro", {}, t("draw.intro")),
      this.spoken,
      h(
        "div.draw-steps",
        {},
        this.sheet.element,
        h("section.sees", { "aria-labelledby": "draw-sees" }, heading(2, "sees"), this.seen),
        h(
          "section.told",
          { "aria-labelledby": "draw-says" },
          h("div.row", {}, heading(3, "says"), h("span.space"), this.adding),
          this.verdict,
          this.guesses,
          this.#request(),
        ),
      ),
    );
  }

  #request() {
    this.saving = button(t("draw.save"), () => drawing.canvas().toBlob((blob) => save(blob, "digit.png")));
    const copied = h("span.small.muted", { "aria-live": "polite" });
    const copy = button(t("draw.copy"), () => copyOf(this.curl, copied));
    return h(
      "details.request",
      {},
      h("summary", {}, t("draw.curl")),
      h("pre", { tabIndex: 0 }, this.curl),
      h("div.row", {}, this.saving, copy, copied),
    );
  }

  // --- the models --------------------------------------------------------------------------------------------------------

  async #read() {
    try {
      await models.read();
    } catch (error) {
      if (this.#stop.signal.aborted) return;
      if (!models.isRead) fill(this.guesses, h("p.error", {}, reasonOf(error)));
      return;
    }
    if (this.#stop.signal.aborted) return;
    this.#show();
    this.asking.soon();
  }

  /** Read the models anew when a run has left one, or was deleted. */
  #runsChanged() {
    const ended = [...live.jobs.values()].filter((job) => job.status === "succeeded");
    const now = `${live.isRead} ${ended.map((job) => job.id + job.updated_at).join()}`;
    if (now === this.#ended) return;
    this.#ended = now;
    this.#read();
  }

  #choose(wanted) {
    this.wanted = wanted;
    this.route.setQuery({ models: wanted.join(",") });
    this.#show();
    this.asking.soon();
  }

  #show() {
    const isEmpty = models.isRead && models.isEmpty && !this.wanted.length;
    const answers = new Map(this.#columns.map((column) => [column.model, column.answer]));
    this.#columns = isEmpty || !models.isRead ? [] : this.chosen.map((model) => this.#column(model));
    for (const column of this.#columns) column.show(drawing.isEmpty ? null : (answers.get(column.model) ?? null), null);
    fill(this.guesses, isEmpty ? nothingYet() : this.#columns.map((column) => column.element));
    if (!models.isRead) fill(this.guesses, h("p.muted", {}, t("draw.reading")));
    this.guesses.dataset.count = this.#columns.length;
    const wasThere = this.adding.contains(document.activeElement);
    fill(this.adding, isEmpty || !models.isRead ? null : this.#adder());
    if (wasThere) (this.adding.querySelector("select:enabled") ?? this.guesses.querySelector("button"))?.focus();
    fill(this.curl, curlOf(this.chosen[0]));
    const sets = [...new Set(this.chosen.map((model) => models.datasetOf(model)))];
    this.sheet.suggest(sets, models);
    this.#showSeen(sets);
    this.#compare();
  }

  #column(model) {
    const rest = this.chosen.filter((each) => each !== model);
    const describe = models.describe(model);
    return new Column(model, {
      title: model.startsWith("job_") ? describe : model,
      detail: model.startsWith("job_") ? `…${model.slice(-6)}` : describe,
      accuracy: models.accuracy(model),
      dataset: models.datasetOf(model),
      classes: models.classesOf(models.datasetOf(model)),
      onRemove: rest.length ? () => this.#choose(rest) : null,
    });
  }

  #adder() {
    const free = (names) => names.filter((name) => !this.chosen.includes(name));
    const group = (label, names) =>
      names.length > 0 &&
      h("optgroup", { label }, ...names.map((value) => h("option", { value }, models.option(value))));
    const isFull = this.chosen.length >= MOST_MODELS;
    const go = button(t("draw.add_go"), () => this.#choose([...this.chosen, select.value]));
    go.disabled = true;
    const chosen = () => {
      go.disabled = !select.value;
    };
    const select = h(
      "select",
      { disabled: isFull, "aria-label": t("draw.add"), onchange: chosen },
      h("option", { value: "" }, t(isFull ? "draw.full" : "draw.add")),
      group(t("draw.names"), free(models.names)),
      group(t("draw.runs"), free(models.jobs)),
    );
    return h("div.row", {}, select, go);
  }

  // --- drawing and answers -----------------------------------------------------------------------------------------------

  #drawn() {
    const { isEmpty } = drawing;
    this.saving.disabled = isEmpty;
    if (isEmpty) {
      for (const column of this.#columns) column.show(null, null);
      this.#showSeen([...this.#seen.keys()]);
      this.#compare();
    }
    this.asking.soon();
  }

  #answered(model, answer, error, image) {
    const column = this.#columns.find((each) => each.model === model);
    if (!column || drawing.isEmpty) return;
    column.image = image;
    if (answer) column.show(answer, null);
    else column.show(error instanceof Problem ? null : column.answer, reasonOf(error));
    if (answer) this.#paintSeen(models.datasetOf(model), answer.predictions[0].seen);
    this.#compare();
  }

  #showSeen(sets) {
    const kept = this.#seen;
    this.#seen = new Map(sets.map((set) => [set, (!drawing.isEmpty && kept.get(set)) || blankSeen()]));
    fill(
      this.seen,
      [...this.#seen].map(([set, canvas]) => {
        const caption = sets.length > 1 ? t("draw.seen_by", { set }) : t("draw.seen");
        canvas.setAttribute("aria-label", caption);
        return h("figure", {}, canvas, h("figcaption.small.muted", {}, caption));
      }),
    );
  }

  async #paintSeen(set, png) {
    const canvas = this.#seen.get(set);
    const picture = new Image();
    picture.src = `data:image/png;base64,${png}`;
    await picture.decode();
    canvas?.getContext("2d").drawImage(picture, 0, 0);
  }

  /** Whether models of the same data set say the same; and the news for those who listen. */
  #compare() {
    const told = this.#columns.filter((column) => column.answer);
    if (new Set(told.map((column) => column.image)).size > 1) return; // some have not seen the newest drawing yet
    const peers = (column) => told.filter((each) => each.dataset === column.dataset);
    const compared = told.length === this.#columns.length ? told.filter((column) => peers(column).length > 1) : [];
    const odd = compared.filter((column) => !isCommon(column, peers(column)));
    for (const column of this.#columns) column.mark(odd.includes(column));
    this.verdict.hidden = !compared.length;
    this.verdict.classList.toggle("differs", odd.length > 0);
    const labels = [...new Set(compared.map((column) => column.label))].join(" / ");
    fill(this.verdict, t(odd.length ? "draw.disagree" : "draw.agree", { labels }));
    this.#speak(told);
  }

  /** Say what is found once the drawing rests, when it is something else than before. */
  #speak(told) {
    clearTimeout(this.#resting);
    const said = told.map((column) => `${column.title}: ${column.label}, ${percent(column.confidence, 0)}`).join("; ");
    if (said === this.#said) return;
    this.#resting = setTimeout(() => {
      this.#said = said;
      fill(this.spoken, said);
    }, REST_MS);
  }
}

function blankSeen() {
  const canvas = h("canvas.seen", { width: 28, height: 28, role: "img" });
  canvas.getContext("2d").fillRect(0, 0, 28, 28);
  return canvas;
}

function nothingYet() {
  return h(
    "div.card.nothing",
    {},
    h("h3", {}, t("draw.no_model")),
    h("p.muted", {}, t("draw.no_model_text")),
    h("a.button.primary", { href: "#/new" }, t("draw.train")),
  );
}

/** No class is said by more of them than this column's: one against two differs, one against one both do. */
function isCommon(column, peers) {
  return peers.filter((each) => each.best === column.best).length > peers.length / 2;
}

const curlOf = (model) => curlForm("/predict?debug=true", { image: "@digit.png", model, top_k: 3 });

function reasonOf(error) {
  if (error.errors?.[0]?.pointer === "/image") return t("draw.problem.image");
  return has(`draw.problem.${error.code}`) ? t(`draw.problem.${error.code}`) : wordsOf(error, "draw.unreachable");
}
