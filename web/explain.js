// Explain: five optimizers run side by side in a small valley. A tour in five steps sets it up and says what to look at.

import { fill, h } from "./dom.js";
import { controls } from "./knobs.js";
import { Landscape } from "./landscape.js";
import { LossPlot } from "./lossplot.js";
import { Player } from "./player.js";
import { loss, t } from "./text.js";
import { queryOf, SPEEDS, settingsOf, settingsOfTour, TOUR } from "./tour.js";
import { swatch } from "./trails.js";
import { descend, OPTIMIZERS, STEPS } from "./valley.js";

const TOLD_MS = 120; // the table's numbers change no faster while it plays
const FORMULAS = {
  sgd: ["x ← x − η·g"],
  momentum: ["v ← μ·v + g", "x ← x − η·v"],
  adagrad: ["G ← G + g²", "x ← x − η·g / (√G + ε)"],
  rmsprop: ["G ← 0.95·G + 0.05·g²", "x ← x − η·g / √(G + ε)"],
  adam: ["m ← 0.9·m + 0.1·g", "v ← 0.999·v + 0.001·g²", "x ← x − η·m̂ / (√v̂ + ε)"],
};

const isCalm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

export function mount(root, route) {
  const view = new View(route);
  fill(root, view.element);
  view.begin();
  return () => view.gone();
}

class View {
  #ways = [];
  #rows = new Map();
  #toldAt = 0;

  constructor(route) {
    this.route = route;
    this.settings = settingsOf(route.query);
    this.player = new Player(STEPS, () => this.#show());
    this.map = h("canvas.map", { tabIndex: 0, role: "application", "aria-describedby": "explain-keys" });
    this.plot = h("canvas.plot", { role: "img", "aria-label": t("explain.plot") });
    this.landscape = new Landscape(this.map, { onStart: (start) => this.#set({ start }) });
    this.losses = new LossPlot(this.plot);
    this.tour = h("section.card.tour", { "aria-labelledby": "tour-title" });
    this.knobs = h("div.knobs");
    this.outcome = h("p.outcome", { "aria-live": "polite" });
    this.element = h(
      "div.explain",
      {},
      h("h1", {}, t("title.explain")),
      h("p.muted.intro", {}, t("explain.intro")),
      this.tour,
      h("div.stage", {}, this.#mapAndButtons(), this.#numbers()),
      h("h2", {}, t("explain.optimizers")),
      h("div.rules", {}, OPTIMIZERS.map(ruleCard)),
    );
  }

  begin() {
    this.#showTour();
    this.#changed();
    this.#start();
  }

  gone() {
    this.player.gone();
    this.landscape.gone();
    this.losses.gone();
  }

  /** From the first step; where nothing may move by itself, all of it at once. */
  #start() {
    if (isCalm()) this.player.goTo(STEPS);
    else this.player.play(0);
  }

  /** Change what is set. A run that was seen to its end stays there: its ways bend under the slider. */
  #set(changes) {
    Object.assign(this.settings, changes);
    this.#changed();
    if ("surface" in changes) this.#start();
    else this.#show();
    this.route.setQuery(queryOf(this.settings));
  }

  #goOn(tour) {
    this.settings = settingsOfTour(tour);
    this.#showTour();
    this.#changed();
    this.#start();
    this.route.setQuery(queryOf(this.settings));
  }

  #changed() {
    const { optimizers } = this.settings;
    this.#ways = OPTIMIZERS.filter((each) => optimizers.includes(each)).map((each) => [
      each,
      descend(each, this.settings),
    ]);
    this.knobs.update ??= controls(this.knobs, (changes) => this.#set(changes));
    this.knobs.update(this.settings);
    for (const [optimizer, { box }] of this.#rows) box.checked = optimizers.includes(optimizer);
    const [x, y] = this.settings.start;
    this.map.setAttribute(
      "aria-label",
      t("explain.map", { surface: t(`explain.surface.${this.settings.surface}`), x, y }),
    );
    this.#toldAt = 0;
  }

  // --- what moves --------------------------------------------------------------------------------------------------------

  #show() {
    const { step, isPlaying } = this.player;
    const shown = { ...this.settings, ways: this.#ways, step, steps: STEPS };
    this.landscape.show(shown);
    this.losses.show(shown);
    this.scrub.value = step;
    fill(this.count, t("explain.step_of", { step, steps: STEPS }));
    fill(this.playing, t(isPlaying ? "explain.pause" : "explain.play"));
    if (isPlaying && performance.now() - this.#toldAt < TOLD_MS) return;
    this.#toldAt = performance.now();
    this.#tell(step, isPlaying);
  }

  #tell(step, isPlaying) {
    const ways = new Map(this.#ways);
    for (const [optimizer, row] of this.#rows) showRow(row, ways.get(optimizer), step);
    const words = isPlaying ? this.#gone(step) : [...this.#lowest(step), ...this.#gone(step)];
    const said = words.join(" ");
    if (said === this.outcome.textContent) return; // no news: whoever listens is left in peace
    fill(this.outcome, said);
  }

  /** Who has diverged, in words. */
  #gone(step) {
    const gone = this.#ways.filter(([, way]) => isGone(way, step));
    return gone.map(([each, { divergedAt }]) => t("explain.diverged_at", { name: nameOf(each), step: divergedAt }));
  }

  /** Who of several is lowest, in words. */
  #lowest(step) {
    const at = ([, way]) => way.losses[step];
    const going = this.#ways.filter(([, way]) => !isGone(way, step)).sort((one, other) => at(one) - at(other));
    if (step === 0 || going.length === 0 || this.#ways.length < 2) return [];
    return [t("explain.lowest", { step, name: nameOf(going[0][0]), loss: loss(at(going[0])) })];
  }

  // --- the parts ---------------------------------------------------------------------------------------------------------

  #showTour() {
    const { tour } = this.settings;
    const steps = TOUR.map((_, n) =>
      h(
        "li",
        {},
        h(
          "button",
          { type: "button", "aria-current": n + 1 === tour ? "step" : null, onclick: () => this.#goOn(n + 1) },
          h("span.step", {}, n + 1),
          t(`explain.tour.${n + 1}.title`),
        ),
      ),
    );
    const next = tour < TOUR.length && button(t("explain.next"), () => this.#goOn(tour + 1), "primary");
    const again = button(t("explain.again"), () => this.#goOn(tour));
    const real = h(
      "a.button",
      { href: `#/new?${TOUR[tour - 1].leadsTo}` },
      t(tour === TOUR.length ? "explain.lesson" : "explain.real"),
    );
    const hadFocus = this.tour.contains(document.activeElement);
    fill(
      this.tour,
      h("ol", { "aria-label": t("explain.tour") }, steps),
      h("h2", { id: "tour-title", tabIndex: -1 }, t(`explain.tour.${tour}.title`)),
      h("p", {}, t(`explain.tour.${tour}.text`)),
      h("p.try", {}, h("strong", {}, t("explain.try")), " ", t(`explain.tour.${tour}.try`)),
      h("div.row", {}, next, again, h("span.space"), real),
    );
    if (hadFocus) this.tour.querySelector("h2").focus();
  }

  #mapAndButtons() {
    this.playing = button("", () => (this.player.isPlaying ? this.player.pause() : this.player.play()), "primary");
    this.playing.classList.add("play");
    this.count = h("span.count.small.muted");
    this.scrub = h("input", { type: "range", min: 0, max: STEPS, "aria-label": t("explain.scrub") });
    this.scrub.oninput = () => this.player.goTo(Number(this.scrub.value));
    const speed = h(
      "select",
      { "aria-label": t("explain.speed"), onchange: () => this.player.runAt(Number(speed.value)) },
      ...SPEEDS.map((each) =>
        h(
          "option",
          { value: each, selected: each === this.player.perSecond },
          t("explain.per_second", { steps: each }),
        ),
      ),
    );
    return h(
      "section.where",
      { "aria-label": t("explain.valley") },
      this.map,
      h("p.small.muted.keys", { id: "explain-keys" }, t("explain.keys")),
      h(
        "div.row.playing",
        {},
        this.playing,
        button(t("explain.one_step"), () => this.player.goTo(this.player.step + 1)),
        button(t("explain.restart"), () => this.player.goTo(0)),
        this.scrub,
        this.count,
        speed,
      ),
      this.knobs,
    );
  }

  #numbers() {
    const rows = OPTIMIZERS.map((optimizer) => {
      const box = h("input", {
        type: "checkbox",
        id: `show-${optimizer}`,
        onchange: () => this.#toggle(optimizer, box.checked),
      });
      const [place, value, state] = [h("td.mono.place"), h("td.number"), h("td")];
      const label = h("label", {}, box, swatch(optimizer), nameOf(optimizer));
      const row = h("tr", { dataset: { optimizer } }, h("th", { scope: "row" }, label), place, value, state);
      this.#rows.set(optimizer, { row, box, place, value, state });
      return row;
    });
    const heads = ["optimizer", "place", "loss", "state"].map((name) =>
      h(name === "loss" ? "th.number" : "th", { scope: "col" }, t(`explain.head.${name}`)),
    );
    return h(
      "section.numbers",
      { "aria-label": t("explain.numbers") },
      h("div.plot-head.small.muted", {}, t("explain.plot")),
      this.plot,
      h(
        "table",
        {},
        h("caption.hidden-text", {}, t("explain.numbers")),
        h("thead", {}, h("tr", {}, heads)),
        h("tbody", {}, rows),
      ),
      this.outcome,
    );
  }

  #toggle(optimizer, isShown) {
    const { optimizers } = this.settings;
    this.#set({ optimizers: OPTIMIZERS.filter((each) => (each === optimizer ? isShown : optimizers.includes(each))) });
  }
}

const nameOf = (optimizer) => t(`explain.name.${optimizer}`);

function button(label, onclick, kind = null) {
  return h(kind ? `button.${kind}` : "button", { type: "button", onclick }, label);
}

function showRow({ row, place, value, state }, way, step) {
  row.classList.toggle("off", !way);
  const at = way && Math.min(step, way.places.length - 1);
  fill(place, way && !isGone(way, step) ? way.places[at].map((each) => each.toFixed(3)).join(", ") : "–");
  fill(value, way ? loss(way.losses[at]) : "–");
  fill(state, way ? stateOf(way, step) : null);
}

const isGone = (way, step) => way.divergedAt !== null && way.divergedAt <= step;

function stateOf(way, step) {
  if (isGone(way, step)) return h("span.chip.bad", {}, t("explain.state.diverged", { step: way.divergedAt }));
  if (way.arrivedAt === null || way.arrivedAt > step) return h("span.muted", {}, t("explain.state.going"));
  return h("span.chip.good", {}, t("explain.state.arrived", { step: way.arrivedAt }));
}

function ruleCard(optimizer) {
  const rate = optimizer === "sgd" || optimizer === "momentum" ? 0.01 : 0.001;
  return h(
    "article.card",
    {},
    h("h3", {}, swatch(optimizer), nameOf(optimizer)),
    h("p", {}, t(`explain.idea.${optimizer}`)),
    h("pre", {}, FORMULAS[optimizer].join("\n")),
    h(
      "a",
      { href: `#/new?optimizer=${optimizer}&rate=${rate}` },
      t("explain.train", { name: nameOf(optimizer), rate }),
    ),
  );
}
