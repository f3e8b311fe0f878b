// The guided tour through the valley, and how what is set stands in the address.

import { OPTIMIZERS, SURFACES } from "./valley.js";

export const RATES = [1e-4, 1]; // from, to
export const MOST_MOMENTUM = 0.99;
export const SPEEDS = [10, 40, 160];

/** What each step sets, and which real training it leads to. */
export const TOUR = [
  { surface: "valley", rate: 0.01, optimizers: ["sgd"], leadsTo: "optimizer=sgd&rate=0.01" },
  { surface: "valley", rate: 0.085, optimizers: ["sgd"], leadsTo: "optimizer=sgd&rate=0.1" },
  { surface: "valley", rate: 0.01, optimizers: ["sgd", "momentum"], leadsTo: "optimizer=momentum&rate=0.01" },
  { surface: "valley", rate: 0.1, optimizers: ["adagrad", "rmsprop"], leadsTo: "optimizer=rmsprop&rate=0.001" },
  { surface: "saddle", rate: 0.01, optimizers: OPTIMIZERS, leadsTo: "do=lesson" },
];

/** What a step of the tour sets, from 1. */
export function settingsOfTour(tour) {
  const { surface, rate, optimizers } = TOUR[tour - 1];
  return {
    tour,
    surface,
    start: SURFACES[surface].start,
    rate,
    momentum: 0.9,
    optimizers: [...optimizers],
    isNoisy: false,
  };
}

/** What an address asks for: a step of the tour, and what is set otherwise than there. What cannot be is left as it is. */
export function settingsOf(query) {
  const tour = Number(query.get("tour"));
  const settings = settingsOfTour(TOUR[tour - 1] ? tour : 1);
  const surface = query.get("surface");
  if (Object.hasOwn(SURFACES, surface ?? "")) Object.assign(settings, { surface, start: SURFACES[surface].start });
  settings.rate = within(query.get("rate"), RATES) ?? settings.rate;
  settings.momentum = within(query.get("momentum"), [0, MOST_MOMENTUM]) ?? settings.momentum;
  if (query.has("optimizers")) {
    const named = query.get("optimizers").split(",");
    settings.optimizers = OPTIMIZERS.filter((each) => named.includes(each));
  }
  settings.isNoisy = query.get("noise") === "1";
  const { x, y } = SURFACES[settings.surface];
  const [left, up] = query.get("start")?.split(",") ?? [];
  const start = [within(left, x), within(up, y)];
  if (!start.includes(null)) settings.start = start;
  return settings;
}

function within(text, [from, to]) {
  const value = text ? Number(text) : Number.NaN;
  return value >= from && value <= to ? value : null;
}

/** What of it goes into the address: what differs from the tour's step. */
export function queryOf(settings) {
  const base = settingsOfTour(settings.tour);
  const { start } = SURFACES[settings.surface];
  const changed = (name, text = String) => (text(settings[name]) === text(base[name]) ? null : text(settings[name]));
  return {
    tour: settings.tour === 1 ? null : settings.tour,
    surface: changed("surface"),
    rate: changed("rate"),
    momentum: changed("momentum"),
    optimizers: changed("optimizers", (names) => names.join() || "none"),
    noise: settings.isNoisy ? 1 : null,
    start: settings.start.join() === start.join() ? null : settings.start.join(),
  };
}
