// The surface, the rate, the momentum and the noise of the valley, to be set by hand.

import { add, fill, h } from "./dom.js";
import { number, t } from "./text.js";
import { MOST_MOMENTUM, RATES } from "./tour.js";
import { curvature, SURFACES } from "./valley.js";

const LESSON_RATES = [0.1, 0.01, 0.001];

/** Fill `root` with them; returns what shows settings. `onChange(changes)` is told what somebody sets. */
export function controls(root, onChange) {
  const surfaces = Object.keys(SURFACES).map((surface) => {
    const press = () => onChange({ surface, start: SURFACES[surface].start });
    return [surface, h("button", { type: "button", onclick: press }, t(`explain.surface.${surface}`))];
  });
  const chips = LESSON_RATES.map((rate) => [
    rate,
    h("button", { type: "button", onclick: () => onChange({ rate }) }, rate),
  ]);
  const [from, to] = RATES.map(Math.log10);
  const rate = h("input", { type: "range", id: "explain-rate", min: from, max: to, step: 0.01 });
  rate.oninput = () => onChange({ rate: Number((10 ** Number(rate.value)).toPrecision(2)) });
  const momentum = h("input", { type: "range", id: "explain-momentum", min: 0, max: MOST_MOMENTUM, step: 0.01 });
  momentum.oninput = () => onChange({ momentum: Number(momentum.value) });
  const noise = h("input", { type: "checkbox", id: "explain-noise" });
  noise.onchange = () => onChange({ isNoisy: noise.checked });
  const [rateShown, momentumShown, limit] = [h("output"), h("output"), h("p.small.muted.limit")];
  for (const [output, input] of [
    [rateShown, rate],
    [momentumShown, momentum],
  ])
    output.setAttribute("for", input.id);
  add(
    root,
    h(
      "div.row",
      { role: "group", "aria-label": t("explain.surface") },
      surfaces.map(([, each]) => each),
    ),
    h("div.knob", {}, h("label", { htmlFor: rate.id }, t("axis.rate")), rate, rateShown),
    h(
      "div.row.chips",
      {},
      chips.map(([, each]) => each),
      limit,
    ),
    h("div.knob", {}, h("label", { htmlFor: momentum.id }, t("explain.momentum")), momentum, momentumShown),
    h("label.row", {}, noise, t("explain.noise")),
  );
  return (settings) => {
    for (const [surface, each] of surfaces) each.setAttribute("aria-pressed", surface === settings.surface);
    for (const [value, each] of chips) each.setAttribute("aria-pressed", value === settings.rate);
    rate.value = Math.log10(settings.rate);
    rate.setAttribute("aria-valuetext", settings.rate);
    fill(rateShown, settings.rate);
    momentum.value = settings.momentum;
    fill(momentumShown, settings.momentum.toFixed(2));
    noise.checked = settings.isNoisy;
    fill(limit, limitText(settings));
  };
}

function limitText({ surface, start }) {
  const most = curvature(surface, start);
  return most > 0
    ? t("explain.limit", {
        curvature: number(most, most < 10 && most % 1 ? 1 : 0),
        rate: Number((2 / most).toPrecision(2)),
      })
    : "";
}
